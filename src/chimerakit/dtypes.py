"""One table of storage types: how many bits, and how numpy sees them.

The names are those of the safetensors format (https://github.com/huggingface/safetensors, `Dtype` in its Rust core).
In its order, too, which is the order in which that writer sorts tensors.
Every type can be copied; those with a numpy name can be looked at; the ones in `MIXABLE` can be mixed.
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

BLOCK = 128
"""Both sides of an FP8 block."""
FP8_BLOCK = "FP8_BLOCK"
"""The storage of a unit, not of a tensor: F8_E4M3 codes with one scale for each 128x128 block."""
FP8_BLOCK_UE8M0 = "FP8_BLOCK_UE8M0"
"""The same with scales that are powers of two (DeepSeek-V3.1 and later), stored as F32 or F8_E8M0."""
FP8_BLOCKS = (FP8_BLOCK, FP8_BLOCK_UE8M0)

MIXABLE = ("F32", "F16", "BF16", *FP8_BLOCKS)
"""Storages whose values can be decoded to float32 and encoded again."""


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None if they are no whole number or more than any file can hold.

    Stops multiplying at the limit, so that a hostile shape costs no big arithmetic; a 0 after the limit comes too late,
    as it does for the reference reader.
    """
    bits = STORAGE_TYPES[dtype].bits
    for side in shape:
        bits *= side
        if bits > 8 * MAX_NBYTES:
            return None
    return bits // 8 if bits % 8 == 0 else None


@lru_cache(maxsize=1 << 12)
def blocks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a tensor in FP8 blocks: one for each block, also for the smaller ones at the edges."""
    return tuple(-(-side // BLOCK) for side in shape)


def numel_of(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    return math.prod(shape)
