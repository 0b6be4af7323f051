"""Quants: blocks of weights in a row, as llama.cpp stores them, decoded to float32 and encoded.

Formats: ggml-quants.c and ggml-common.h of https://github.com/ggml-org/llama.cpp. Decoding, and encoding of the types that have
one way to round (Q8_0 and the legacy types), are gguf-py's. k- and i-quants search for the scales that lose the least,
and with an imatrix the legacy types do, too: that is llama.cpp's own code, in libgguf. Tests hold all of it against another
build of llama.cpp, byte for byte.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import GGML_TYPES, QUANTS, nbytes_of
from chimerakit.errors import MissingExtraError
from chimerakit.numerics.fp8 import F32, U8
from chimerakit.numerics.kernels import require

Importance = npt.NDArray[np.float32]
"""(cols,): how much each column of a matrix matters, the mean square of what it is multiplied with."""

_BY_RULE = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
"""Types that gguf-py encodes as llama.cpp does."""
_NO_IMPORTANCE = frozenset(("Q8_0", "TQ1_0", "TQ2_0", "MXFP4"))
"""Types that are encoded alike with an imatrix and without."""


def decode_rows(data: U8, dtype: str) -> F32:
    """(rows, bytes of a row) -> (rows, cols)."""
    from gguf import GGMLQuantizationType, quants

    require(dtype in QUANTS and data.ndim == 2, f"{data.shape} bytes of {dtype}")
    kind = GGML_TYPES[dtype]
    require(data.shape[1] % kind.nbytes == 0, f"{data.shape[1]} bytes in rows of {dtype}")
    with np.errstate(all="ignore"):  # a scale may be anything
        found = quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType(kind.id))
    return np.ascontiguousarray(found, np.float32).reshape(len(data), data.shape[1] // kind.nbytes * kind.weights)


def encode_rows(values: F32, dtype: str, out: U8, importance: Importance | None = None) -> None:
    """Store rows of values. out: (rows, bytes of a row), written. Raises MissingExtraError where libgguf is needed."""
    kind = GGML_TYPES[dtype]
    require(out.shape == (len(values), nbytes_of(dtype, values.shape[1:])), f"{out.shape} for {values.shape} {dtype}")
    importance = None if dtype in _NO_IMPORTANCE else importance
    if dtype in _BY_RULE and importance is None:
        from gguf import GGMLQuantizationType, quants

        with np.errstate(all="ignore"):
            out[:] = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType(kind.id))
        return
    out[:] = _libgguf().quantize_rows(values, kind.id, importance)


def needs_libgguf(dtype: str, *, with_importance: bool) -> bool:
    """Whether a type is encoded by libgguf."""
    return dtype not in _BY_RULE or (with_importance and dtype not in _NO_IMPORTANCE)


def check_libgguf() -> None:
    """Refuse to begin what needs libgguf where it is not installed."""
    if find_spec("libgguf") is None:
        raise MissingExtraError("libgguf", "gguf-quant")


def _libgguf() -> Any:
    check_libgguf()
    import libgguf

    return libgguf
