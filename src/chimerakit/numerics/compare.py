"""How far values lie apart: allclose as published scripts use it, and least squares between a child and its parents."""

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.fp8 import F32, U8

RTOL = ATOL = 1e-5
"""numpy's and torch's allclose as in the checks that people published for merges."""

ROUNDING = {FP8_BLOCK: 0.0345, FP8_BLOCK_UE8M0: 0.0345, "BF16": 0.0023, "F16": 0.0003, "F32": 1e-6}
"""Relative RMS that storing values costs, with a third to spare; e4m3 measures 0.0265, bfloat16 0.0017."""


def are_close(a: F32, b: F32) -> bool:
    """|a - b| <= ATOL + RTOL * |b| everywhere; NaN is close to nothing. Same shapes."""
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(a - b) <= ATOL + RTOL * np.abs(b)))


def codes(data: U8, dtype: str) -> F32:
    """Stored numbers without their scales, as float32."""
    import ml_dtypes

    from chimerakit.dtypes import STORAGE_TYPES

    name = STORAGE_TYPES[dtype].numpy or "uint8"
    return data.view(getattr(ml_dtypes, name, None) or np.dtype(name)).astype(np.float32)


def add_products(products: npt.NDArray[np.float64], child: F32, parents: list[F32]) -> None:
    """Add a panel to the inner products of [child - base, parent_2 - base, ...] and of the child with itself.

    products: (n + 1, n + 1) float64 for n parents, the base first among them; the last row holds the child's own power.
    """
    base = parents[0].astype(np.float64).ravel()
    apart = [values.astype(np.float64).ravel() - base for values in (child, *parents[1:])]
    stacked = np.stack(apart)
    products[:-1, :-1] += stacked @ stacked.T
    own = child.astype(np.float64).ravel()
    products[-1, -1] += own @ own


def fit_shares(products: npt.NDArray[np.float64]) -> tuple[list[float], float]:
    """Shares of all parents (base first) that come nearest to the child, and the RMS that is left, relative to the child's.

    A first guess at lambda: biased where rounding is as large as the parents' difference.
    """
    inner, right, power = products[1:-1, 1:-1], products[1:-1, 0], products[0, 0]
    shares = np.linalg.lstsq(inner, right, rcond=None)[0]
    left = max(0.0, float(power - 2 * shares @ right + shares @ inner @ shares))
    relative = np.sqrt(left / products[-1, -1]) if products[-1, -1] > 0 else 0.0
    return [float(1 - shares.sum()), *map(float, shares)], float(relative)
