"""The same weights in another arrangement: one matrix, or its rows in two tensors, the first of which may be transposed.

llama.cpp keeps DeepSeek's kv_b_proj whole (attn_kv_b) or cut, head by head, into attn_k_b and attn_v_b, of which the first is
transposed; and experts' gate and up in one tensor or in two. Rows are moved as bytes, whatever their type; a transpose needs
numbers that are stored one by one.
"""

import numpy as np
import numpy.typing as npt

from chimerakit.numerics.fp8 import U8
from chimerakit.numerics.kernels import require


def part_of(whole: U8, heads: int, rows: tuple[int, int], number: int, width: int | None) -> U8:
    """The first or second rows of each head of a matrix.

    whole: (heads * sum(rows), bytes of a row). number: 0 or 1. width: bytes of a number, to transpose what each head has; None
    for rows as they are. Returns bytes in storage order.
    """
    require(whole.shape[0] == heads * sum(rows), f"{whole.shape[0]} rows for {heads} heads of {rows}")
    found = np.split(whole.reshape(heads, sum(rows), -1), rows[:1], axis=1)[number]
    return _flat(found if width is None else _transposed(found, width))


def whole_of(first: U8, second: U8, heads: int, rows: tuple[int, int], width: int | None) -> U8:
    """The matrix of which these are the first and second rows of each head.

    first, second: bytes in storage order. width: bytes of a number, if the first is transposed head by head.
    """
    second = second.reshape(heads, rows[1], -1)
    nbytes = second.shape[2]
    if width is None:
        return _flat(np.concatenate([first.reshape(heads, rows[0], nbytes), second], axis=1))
    back = _transposed(first.reshape(heads, nbytes // width, rows[0] * width), width)
    return _flat(np.concatenate([back, second], axis=1))


def _transposed(data: U8, width: int) -> U8:
    """(heads, rows, bytes of a row) -> (heads, cols, bytes of a column)."""
    numbers: npt.NDArray[np.void] = np.ascontiguousarray(data).view(f"V{width}")
    return np.ascontiguousarray(numbers.transpose(0, 2, 1)).view(np.uint8)


def _flat(data: U8) -> U8:
    return np.ascontiguousarray(data).reshape(-1)
