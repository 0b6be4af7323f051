"""Arrays of a saved map: .npy bytes that every version of numpy writes and reads alike, and nothing else."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

DType = Literal["<i8", "<f8"]


class DamageError(Exception):
    """What is wrong with a file, in words."""


def encode_array(values: Sequence[Any], dtype: DType, shape: tuple[int, ...]) -> bytes:
    """An .npy file."""
    import numpy as np

    return _header(dtype, shape) + np.array(values, dtype).reshape(shape).tobytes()


def decode_array(field: str, data: bytes, dtype: DType, shape: tuple[int, ...]) -> "npt.NDArray[Any]":
    """The numbers of an .npy file, which has to be of this very type and shape. Raises DamageError."""
    import numpy as np

    header, count = _header(dtype, shape), math.prod(shape)
    if not data.startswith(header) or len(data) != len(header) + 8 * count:
        raise DamageError(f"{field} is not {' x '.join(map(str, shape))} numbers")
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape)


def _header(dtype: DType, shape: tuple[int, ...]) -> bytes:
    """128 bytes; written here, so that no version of numpy writes another."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
