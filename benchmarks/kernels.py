"""How fast the kernels are, against a kernel that does nothing but move as much memory. One thread.

    python benchmarks/kernels.py [--quick]

Rounds go through all kernels in turn, so that what else the machine does hits all of them; medians of CPU time.
Matrices are those of DeepSeek-V3's experts, and so many of them that no cache holds them. A figure counts the bytes of
all inputs; outputs are written besides.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK, FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.compare import Differences, are_close
from chimerakit.numerics.mix import SCRATCH, Term, mix_into
from chimerakit.plan.panels import cut

COLS = 7168
NBYTES = 2048 * COLS * 2
"""Of one input: an expert's matrix in BF16, two of them in FP8."""
SHARES = (0.5, 0.3, 0.2)
STREAM = "memory stream"


class Row(NamedTuple):
    """One figure."""

    what: str
    figure: float
    unit: str
    ratio: float | None
    """Of the figure to that of what stands in `against`."""
    against: str


def measure(*, quick: bool) -> list[Row]:
    """All kernels: GB/s of input, and the ratio to the memory stream. Torch's ways too, where torch is installed."""
    matrices, rounds = [_Matrix(number) for number in range(9 if quick else 12)], 3 if quick else 9
    cases = [_Case(STREAM, 2, _run_stream), *_plain_cases(), *_block_cases(), *_compare_cases(), *_torch_cases()]
    seconds: dict[str, list[float]] = {case.what: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            start = time.thread_time()
            for matrix in matrices[: 1 if case.is_slow else None]:
                case.run(matrix)
            if number:  # the first round compiles
                seconds[case.what].append((time.thread_time() - start) / (1 if case.is_slow else len(matrices)))
    figures = {case.what: case.num_inputs * NBYTES / statistics.median(seconds[case.what]) / 1e9 for case in cases}
    return [Row(what, figure, "GB/s", figure / figures[STREAM], STREAM) for what, figure in figures.items()]


class _Matrix:
    """Three inputs and an output of the same bytes, which are numbers in every storage."""

    def __init__(self, seed: int):
        values = np.random.default_rng(seed).normal(0, 0.02, NBYTES // 2).astype(np.float32)
        halves = (values.view(np.uint32) >> 16).astype(np.uint16) & 0xFFFE  # as codes of FP8, too, none is NaN
        self.inputs = [np.roll(halves, 1000 * n).view(np.uint8) for n in range(len(SHARES))]
        self.out = np.zeros(NBYTES, np.uint8)
        self.twin = self.inputs[0].copy()
        self.scratch = np.empty(SCRATCH, np.uint8)


class _Case(NamedTuple):
    what: str
    num_inputs: int
    run: Callable[[_Matrix], object]
    is_slow: bool = False
    """One matrix says enough."""


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _stream(a: Any, b: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = a[i] ^ b[i]


def _run_stream(matrix: _Matrix) -> None:
    _stream(*(data.view(np.uint64) for data in (*matrix.inputs[:2], matrix.out)))


def _plain_cases() -> Iterator[_Case]:
    for storage in ("BF16", "F16", "F32"):
        for count in (2, 3) if storage == "BF16" else (2,):
            yield _Case(f"{storage} mix, {count} parents", count, partial(_mix_plain, storage, count))


def _mix_plain(storage: str, count: int, matrix: _Matrix) -> None:
    width = 4 if storage == "F32" else 2
    terms = [Term(storage, np.float32(SHARES[n]), matrix.inputs[n].reshape(1, -1)) for n in range(count)]
    mix_into(terms, (1, NBYTES // width), storage, None, matrix.out.reshape(1, -1), np.zeros(2), matrix.scratch)


def _block_cases() -> Iterator[_Case]:
    for storage, dtype, count in (
        (FP8_BLOCK, "F32", 2),
        (FP8_BLOCK, "F32", 3),
        (FP8_BLOCK_UE8M0, "F8_E8M0", 2),
    ):
        kind = "powers of two" if storage == FP8_BLOCK_UE8M0 else "float32 scales"
        yield _Case(f"FP8 mix, {count} parents, {kind}", count, partial(_mix_blocks, storage, dtype, count))


def _mix_blocks(storage: str, dtype: str, count: int, matrix: _Matrix) -> None:
    sums = np.zeros(2)
    for panel in cut((NBYTES // COLS, COLS), [storage]).panels():
        shape, start = (panel.rows, COLS), panel.row * COLS
        *inputs, out = (x[start : start + panel.rows * COLS].reshape(shape) for x in (*matrix.inputs, matrix.out))
        num_blocks = panel.rows * COLS // BLOCK**2
        codes = np.full(num_blocks, 120, np.uint8)
        scales = codes if dtype == "F8_E8M0" else np.full(num_blocks, 0.01, np.float32).view(np.uint8)
        terms = [Term(storage, np.float32(SHARES[n]), inputs[n], scales, dtype) for n in range(count)]
        mix_into(terms, shape, storage, dtype, out, sums, matrix.scratch)


def _compare_cases() -> Iterator[_Case]:
    yield _Case("difference statistics", 2, lambda m: Differences().add(*_twins(m)))
    yield _Case("are_close, equal values", 2, lambda m: are_close(*_twins(m)))


def _twins(matrix: _Matrix) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return matrix.inputs[0].view(np.float32), matrix.twin.view(np.float32)


def _torch_cases() -> list[_Case]:
    try:
        import torch
    except ImportError:
        return []
    torch.set_num_threads(1)

    def lerp(matrix: _Matrix) -> None:
        a, b, out = (torch.from_numpy(x).view(torch.bfloat16) for x in (*matrix.inputs[:2], matrix.out))
        torch.lerp(a, b, 0.25, out=out)

    def bands(matrix: _Matrix) -> None:
        """As a script would do it: decode 128 rows, mix, take a fresh scale for every block, cast."""
        a, b, out = (torch.from_numpy(x).view(-1, BLOCK, COLS) for x in (*matrix.inputs[:2], matrix.out))
        for first, second, target in zip(a, b, out, strict=True):
            x, y = (t.view(torch.float8_e4m3fn).float() * 0.01 for t in (first, second))
            blocks = (0.75 * x + 0.25 * y).view(BLOCK, -1, BLOCK)
            inverses = 448 / blocks.abs().amax((0, 2))
            target.copy_((blocks * inverses[:, None]).to(torch.float8_e4m3fn).view(BLOCK, COLS).view(torch.uint8))

    return [
        _Case("torch.lerp, BF16", 2, lerp),
        _Case("torch, FP8 in bands of 128 rows", 2, bands, is_slow=True),
        _Case("torch.allclose, float32", 2, lambda m: torch.allclose(*map(torch.from_numpy, _twins(m)))),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer matrices, fewer rounds")
    for row in measure(quick=parser.parse_args().quick):
        print(f"{row.what:42} {row.figure:7.2f} {row.unit}  {row.ratio:5.2f} of {row.against}")
