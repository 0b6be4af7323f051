"""The storage types: how many bytes weights take, and how numpy sees them.

Names of plain types are those of the safetensors format (https://github.com/huggingface/safetensors, `Dtype` in its Rust
core), in its order, too, which is the order in which that writer sorts tensors. GGUF's types are those of ggml (`ggml_type`
in https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h): some of the plain ones, and quants, which store a
few dozen or hundred weights of a row as one block. Every type can be copied; those with a numpy name can be looked at; the
ones in `MIXABLE` can be mixed.
"""

import math
from functools import lru_cache
from typing import NamedTuple

# A tensor larger than this can't exist in a file: sizes and offsets are signed 64-bit for every operating system.
MAX_NBYTES = 2**63 - 1


class StorageType(NamedTuple):
    """One storage type."""

    bits: int
    """Bits of one element."""
    numpy: str | None
    """The numpy (or ml_dtypes) name, None where neither knows the type."""


STORAGE_TYPES: dict[str, StorageType] = {
    "BOOL": StorageType(8, "bool"),
    "F4": StorageType(4, None),  # two float4_e2m1fn in a byte
    "F6_E2M3": StorageType(6, None),
    "F6_E3M2": StorageType(6, None),
    "U8": StorageType(8, "uint8"),
    "I8": StorageType(8, "int8"),
    "F8_E5M2": StorageType(8, "float8_e5m2"),
    "F8_E4M3": StorageType(8, "float8_e4m3fn"),
    "F8_E8M0": StorageType(8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": StorageType(8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": StorageType(8, "float8_e5m2fnuz"),
    "I16": StorageType(16, "int16"),
    "U16": StorageType(16, "uint16"),
    "F16": StorageType(16, "float16"),
    "BF16": StorageType(16, "bfloat16"),
    "I32": StorageType(32, "int32"),
    "U32": StorageType(32, "uint32"),
    "F32": StorageType(32, "float32"),
    "C64": StorageType(64, "complex64"),
    "F64": StorageType(64, "float64"),
    "I64": StorageType(64, "int64"),
    "U64": StorageType(64, "uint64"),
}


class BlockType(NamedTuple):
    """One of ggml's types."""

    id: int
    """Its number in a GGUF file."""
    weights: int
    """Weights of a row that are stored together; 1 for plain types."""
    nbytes: int
    """Bytes that they take."""


GGML_TYPES: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q5_0": BlockType(6, 32, 22),
    "Q5_1": BlockType(7, 32, 24),
    "Q8_0": BlockType(8, 32, 34),
    "Q8_1": BlockType(9, 32, 36),
    "Q2_K": BlockType(10, 256, 84),
    "Q3_K": BlockType(11, 256, 110),
    "Q4_K": BlockType(12, 256, 144),
    "Q5_K": BlockType(13, 256, 176),
    "Q6_K": BlockType(14, 256, 210),
    "Q8_K": BlockType(15, 256, 292),
    "IQ2_XXS": BlockType(16, 256, 66),
    "IQ2_XS": BlockType(17, 256, 74),
    "IQ3_XXS": BlockType(18, 256, 98),
    "IQ1_S": BlockType(19, 256, 50),
    "IQ4_NL": BlockType(20, 32, 18),
    "IQ3_S": BlockType(21, 256, 110),
    "IQ2_S": BlockType(22, 256, 82),
    "IQ4_XS": BlockType(23, 256, 136),
    "I8": BlockType(24, 1, 1),
    "I16": BlockType(25, 1, 2),
    "I32": BlockType(26, 1, 4),
    "I64": BlockType(27, 1, 8),
    "F64": BlockType(28, 1, 8),
    "IQ1_M": BlockType(29, 256, 56),
    "BF16": BlockType(30, 1, 2),
    "Q4_0_4_4": BlockType(31, 32, 18),  # repacked for some CPUs; llama.cpp reads these no more
    "Q4_0_4_8": BlockType(32, 32, 18),
    "Q4_0_8_8": BlockType(33, 32, 18),
    "TQ1_0": BlockType(34, 256, 54),
    "TQ2_0": BlockType(35, 256, 66),
    "IQ4_NL_4_4": BlockType(36, 32, 18),
    "IQ4_NL_4_8": BlockType(37, 32, 18),
    "IQ4_NL_8_8": BlockType(38, 32, 18),
    "MXFP4": BlockType(39, 32, 17),
    "NVFP4": BlockType(40, 64, 36),
    "Q1_0": BlockType(41, 128, 18),
    "Q2_0": BlockType(42, 64, 18),
}
QUANTS = frozenset(name for name, kind in GGML_TYPES.items() if kind.weights > 1)
"""Types that store weights of a row in blocks, each with its own scale."""

BLOCK = 128
"""Both sides of an FP8 block."""
FP8_BLOCK = "FP8_BLOCK"
"""The storage of a unit, not of a tensor: F8_E4M3 codes with one scale for each 128x128 block."""
FP8_BLOCK_UE8M0 = "FP8_BLOCK_UE8M0"
"""The same with scales that are powers of two (DeepSeek-V3.1 and later), stored as F32 or F8_E8M0."""
FP8_BLOCKS = (FP8_BLOCK, FP8_BLOCK_UE8M0)

DECODABLE = tuple(
    name
    for name in GGML_TYPES
    if name in QUANTS and name not in ("Q8_1", "Q8_K", "NVFP4", "Q1_0", "Q2_0") and name.count("_") < 3
)
"""Quants whose values can be had: not those for sums in flight (Q8_1, Q8_K), repacked ones, and such as are not read yet."""
NEED_IMATRIX = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
"""Quants that llama.cpp encodes only by an imatrix (`ggml_quantize_requires_imatrix`)."""
MIXABLE = ("F32", "F16", "BF16", *FP8_BLOCKS, *DECODABLE)
"""Storages whose values can be decoded to float32 and encoded again."""


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None if they are no whole number, or of blocks that are not whole, or more than any file can hold.

    Stops multiplying at the limit, so that a hostile shape costs no big arithmetic; a 0 after the limit comes too late,
    as it does for the reference reader.
    """
    if dtype in QUANTS:
        kind = GGML_TYPES[dtype]
        if not shape or shape[-1] % kind.weights:
            return None
        bits, shape = 8 * kind.nbytes, (*shape[:-1], shape[-1] // kind.weights)
    else:
        bits = STORAGE_TYPES[dtype].bits
    for side in shape:
        bits *= side
        if bits > 8 * MAX_NBYTES:
            return None
    return bits // 8 if bits % 8 == 0 else None


def run_nbytes(dtype: str, weights: int) -> int:
    """Bytes of so many weights of a row, whole blocks of them."""
    if dtype in QUANTS:
        return weights // GGML_TYPES[dtype].weights * GGML_TYPES[dtype].nbytes
    return weights * STORAGE_TYPES[dtype].bits // 8


@lru_cache(maxsize=1 << 12)
def blocks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a tensor in FP8 blocks: one for each block, also for the smaller ones at the edges."""
    return tuple(-(-side // BLOCK) for side in shape)


def numel_of(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    return math.prod(shape)
