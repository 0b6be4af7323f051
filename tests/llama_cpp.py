"""llama.cpp as an oracle: the build inside of xllamacpp, called through its C interface."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import GGML_TYPES, run_nbytes

_P, _I64 = ctypes.c_void_p, ctypes.c_int64


class _Traits(ctypes.Structure):
    """The beginning of ggml_type_traits."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", _I64),
        ("blck_size_interleave", _I64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, _P, _P, _I64)),
    ]


@cache
def library() -> Any:
    """The shared library."""
    import xllamacpp

    found = ctypes.CDLL(next(str(file) for file in Path(xllamacpp.__file__).parent.glob("*.so")))
    found.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, _P, _P, _I64, _I64, _I64, _P]
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return found


def encode(values: npt.NDArray[np.float32], dtype: str, importance: npt.NDArray[np.float32] | None = None) -> Any:
    """Rows as `ggml_quantize_chunk` stores them."""
    values = np.ascontiguousarray(values, np.float32)
    rows, cols = values.shape
    found = np.zeros((rows, run_nbytes(dtype, cols)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    address = None if weights is None else weights.ctypes.data
    library().ggml_quantize_chunk(GGML_TYPES[dtype].id, values.ctypes.data, found.ctypes.data, 0, rows, cols, address)
    return found


def decode(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Rows as llama.cpp reads them."""
    kind = GGML_TYPES[dtype]
    data = np.ascontiguousarray(data)
    found = np.empty((len(data), data.shape[1] // kind.nbytes * kind.weights), np.float32)
    traits = library().ggml_get_type_traits(kind.id).contents
    traits.to_float(data.ctypes.data, found.ctypes.data, found.size)
    return found


def needs_importance(dtype: str) -> bool:
    """Whether llama.cpp encodes a type only by an imatrix."""
    return bool(library().ggml_quantize_requires_imatrix(GGML_TYPES[dtype].id))
