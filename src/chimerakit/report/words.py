"""Numbers and names as a page says them."""

import math
from collections.abc import Sequence

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.errors import printable

_LONGEST = 300
"""Characters of a text out of a file: more only come from one that wants to be repeated."""
_STORAGES = {FP8_BLOCK: "FP8 128×128", FP8_BLOCK_UE8M0: "FP8 128×128 ue8m0"}  # noqa: RUF001 - a sign that is meant
_MOST = 200
"""Lines of a list that anybody reads in a page; the result holds all."""


def say_text(text: object) -> str:
    """A text out of a file: no control characters, and no longer than anybody reads."""
    found = str(text)
    return printable(found if len(found) <= _LONGEST else f"{found[:_LONGEST]} ...")


def say_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """As many lines as anybody reads, each as `say_text` does it."""
    more = (f"and {len(lines) - _MOST:,} more, which the saved result holds",) if len(lines) > _MOST else ()
    return (*map(say_text, lines[:_MOST]), *more)


def say_nbytes(number: int) -> str:
    """Bytes, decimal: 688.6 GB."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB"))


def say_count(number: int | None) -> str:
    """Parameters as people say them: 671.0 B is short for billions."""
    return "unknown" if number is None else _scaled(number, ("", "k", "M", "B", "T"))


def _scaled(number: int, units: Sequence[str]) -> str:
    size, power = float(number), 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.0f} {units[0]}".strip() if power == 0 else f"{size:,.1f} {units[power]}"


def say_number(value: float) -> str:
    """Three significant digits; a dash where a figure has no meaning."""
    return "–" if math.isnan(value) else f"{value:.3g}"  # noqa: RUF001 - a dash is what is meant


def say_share(value: float) -> str:
    """A share from 0 to 1 in percent."""
    return "–" if math.isnan(value) else f"{100 * value:.3g} %"  # noqa: RUF001


def say_storage(storage: str) -> str:
    """How weights are stored."""
    return _STORAGES.get(storage, storage)


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def say_shares(shares: dict[str, float]) -> str:
    """A mix: `0.25 v3 + 0.75 r1`."""
    return " + ".join(f"{share:.7g} {parent}" for parent, share in shares.items())
