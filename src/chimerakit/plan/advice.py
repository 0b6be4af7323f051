"""What to write in a recipe that asks for more than there is, so that it plans; and problems in few words."""

from collections.abc import Mapping, Sequence

from chimerakit.records import Unit

SHOWN = 3
"""Names that a problem gives as examples."""
_NAMED = 12


def way_out(missing: Mapping[str, Unit], taken: Sequence[Unit], base: str) -> str:
    """What to write so that a rule takes no more than the parent has; what is offered must plan.

    missing: by name, those of the `taken` units that can't be had.
    """
    lacking = list(missing.values())
    present = [unit for unit in taken if unit.name not in missing]
    if not present:
        return "leave the rule out"
    if all(u.role.mtp for u in lacking) and not any(u.role.mtp for u in present):
        return "add `mtp: false` to the rule to leave them out"
    for selector, words in _words(present).items():
        if words and words.isdisjoint(_selected_by(lacking)[selector]):
            return f"add `{_say(selector, words)}` to leave them out"
    for selector, words in _words(lacking).items():
        if words and words.isdisjoint(_selected_by(present)[selector]):
            return (
                f"put a rule before it that takes them from the base: `take: {base}`, `{_say(selector, words)}`, "
                "the rest as in this rule"
            )
    names = [u.name for u in lacking[:_NAMED]]
    more = f" and {len(lacking) - len(names)} more" if len(lacking) > len(names) else ""
    return f"put a rule before it that takes them from the base: `take: {base}`, `tensors: [{', '.join(names)}]`{more}"


def say_ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: 0, 3-5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] + 1 == number:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def few(complaints: Sequence[str]) -> list[str]:
    """The first of many problems of one kind."""
    if len(complaints) <= 2 * SHOWN:
        return list(complaints)
    return [*complaints[: 2 * SHOWN], f"and {len(complaints) - 2 * SHOWN} more of this kind"]


def _selected_by(units: Sequence[Unit]) -> dict[str, set[str | int | None]]:
    return {
        "components": {u.role.component for u in units},
        "layers": {u.role.layer for u in units},
        "experts": {u.role.expert for u in units},
    }


def _words(units: Sequence[Unit]) -> dict[str, set[str | int | None]]:
    """What each selector would have to say to select all these units; nothing where it can't."""
    found = _selected_by(units)
    if any(u.role.mtp for u in units):
        found["layers"] = set()  # it selects main layers only
    return {selector: set() if None in words else words for selector, words in found.items()}


def _say(selector: str, words: set[str | int | None]) -> str:
    numbers = sorted(w for w in words if isinstance(w, int))
    return f"{selector}: [{say_ranges(numbers) if numbers else ', '.join(sorted(map(str, words)))}]"
