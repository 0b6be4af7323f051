"""Numbers as people read them, the same on a terminal and on a page. What suits only one of them is with that one."""

import re
from collections.abc import Mapping, Sequence

_UNITS = {"": 1, "b": 1} | {
    letter + unit: kilo**power
    for kilo, units in ((1000, ("", "b")), (1024, ("ib",)))
    for power, letter in enumerate("kmgt", 1)
    for unit in units
}


def say_nbytes(number: int) -> str:
    """Bytes, decimal as disks and the hub count: 688.6 GB."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def parse_nbytes(text: str) -> int | None:
    """A number of bytes as people write it: 500MB, 1.5 GiB, 4096; None if it is none."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)", text)
    if found is None or found[2].lower() not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2].lower()])


def say_count(number: int | None, gap: str = "") -> str:
    """Parameters: 671.0B is short for billions; gap: what stands before the letter."""
    return "unknown" if number is None else _scaled(number, ("", *(gap + letter for letter in "kMBT")))


def _scaled(number: int, endings: Sequence[str]) -> str:
    """A number with the ending of its size, each a thousand times the one before; whole with the first."""
    size, power = float(number), 0
    while size >= 1000 and power < len(endings) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.{min(power, 1)}f}{endings[power]}"


def say_seconds(number: float) -> str:
    """A time: 0.4 s, 12 s, 3.5 minutes, 60 hours."""
    for unit, size in ((" hours", 3600), (" minutes", 60)):
        if number >= 2 * size:
            return f"{number / size:,.{0 if number >= 20 * size else 1}f}{unit}"
    return f"{number:.{0 if number >= 10 else 1}f} s"


def say_many(number: int, what: str) -> str:
    """A number of things: 1 unit, 2,000 units."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def say_shares(shares: Mapping[str, float]) -> str:
    """A mix: `0.25 v3 + 0.75 r1`."""
    return " + ".join(f"{share:.7g} {parent}" for parent, share in shares.items())


def say_spans(shares: Mapping[str, tuple[float, float]]) -> str:
    """Units of several mixes, by the least and the largest share of each parent: `0.1 to 0.5 v3, 0.5 to 0.9 r1`."""
    return ", ".join(
        name if least == most == 1 else f"{least:g} {name}" if least == most else f"{least:g} to {most:g} {name}"
        for name, (least, most) in shares.items()
    )
