"""Importance matrices of parents -> that of a child: sums and counts, weighted alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chimerakit.numerics.fp8 import F32

F64 = npt.NDArray[np.float64]


def blend(sums: Sequence[F32], counts: Sequence[F32], weights: F64) -> tuple[F32, F32, int]:
    """Weighted sums of squares, and counts weighted in the same way, in whole numbers: means are then weighted by weight x count.

    sums: of each parent (rows, cols). counts: of each parent (rows,). weights: (parents, rows), of each parent's rows; a parent
    with a count of 0 in a row, or sums that are no numbers, says nothing of that row. Where none with a weight says anything, all
    that do count alike; the last number is of how many rows that is.
    """
    known = np.stack([(count > 0) & np.isfinite(each).all(axis=1) for each, count in zip(sums, counts, strict=True)])
    weights = np.where(known, weights, 0.0)
    lost = weights.sum(axis=0) <= 0
    weights[:, lost] = known[:, lost]
    total = np.zeros(sums[0].shape, np.float64)
    seen = np.zeros(len(counts[0]), np.float64)
    for each, count, weight in zip(sums, counts, weights, strict=True):
        there = weight > 0
        total[there] += weight[there, None] * each[there].astype(np.float64)
        seen[there] += weight[there] * count[there]
    # Counts are whole numbers there, see `means`: nothing that was seen may become unseen, and means stay what they are.
    whole = np.maximum(np.rint(seen), seen > 0)
    total *= (whole / np.where(seen > 0, seen, 1))[:, None]
    return total.astype(np.float32), whole.astype(np.float32), int(lost.sum())


def means(sums: F32, counts: F32) -> F32:
    """Mean squares, (rows, cols), as llama-quantize takes them: counts are rounded to whole numbers, and where nothing was seen
    all columns have 1. sums: (rows, cols), counts: (rows,)."""
    whole = np.floor(counts + np.float32(0.5))[:, None]
    return np.where(whole > 0, sums / np.where(whole > 0, whole, 1), 1).astype(np.float32)
