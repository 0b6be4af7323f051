"""Which children's weights stay when all are measured. Pure functions."""

import re
from collections.abc import Mapping

from msgspec import Struct

from chimerakit.errors import RecipeError
from chimerakit.evaluate.records import Measurement


class Keep(Struct, frozen=True):
    """How many children keep their weights; None for all."""

    best: int | None = None


def parse_keep(text: str) -> Keep:
    """all, none or best:N. Raises RecipeError."""
    if text == "all":
        return Keep()
    match = re.fullmatch(r"best:([0-9]{1,4})", "best:0" if text == "none" else text)
    if match is None:
        raise RecipeError("can't be read", where=f"--keep {text}", expected="all, none or best:N")
    return Keep(int(match[1]))


def to_drop(keep: Keep, measured: Mapping[str, Measurement]) -> list[str]:
    """Children whose weights are not kept: all but the most accurate; of equally accurate ones those with fewest tokens stay."""
    if keep.best is None:
        return []
    ranked = sorted(measured, key=lambda n: (-measured[n].accuracy.value, measured[n].output_tokens.value, n))
    return ranked[keep.best :]
