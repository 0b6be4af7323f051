"""Shares: what a mix may say, and what it comes to in one layer."""

import math
from collections.abc import Mapping, Sequence

from chimerakit.errors import RecipeError
from chimerakit.records import Gradient, Recipe, Rule

SUM_TOLERANCE = 1e-6
"""How far from 1 a sum of shares may be and still be meant as 1: people write 0.3333333."""


def check_shares(
    shares: Mapping[str, float | Gradient], parents: Sequence[str], base: str, normalize: bool | None, where: str
) -> None:
    """Refuse shares that do not say what the whole is."""
    ends = [[s.start if isinstance(s, Gradient) else s for s in shares.values()]]
    ends.append([s.stop if isinstance(s, Gradient) else s for s in shares.values()])
    if normalize is True:
        # A sum that changes its sign between the ends is 0, or nearly, in a layer between them.
        totals = [math.fsum(numbers) for numbers in ends]
        if min(map(abs, totals)) < SUM_TOLERANCE or (totals[0] < 0) != (totals[1] < 0):
            raise RecipeError("shares that sum to 0 can't be normalized", where=where)
        return
    for numbers in ends:
        total = math.fsum(numbers)
        everyone = all(p in shares for p in parents)
        beyond = [n for n in numbers if not 0 <= n <= 1] or (
            [total] if base not in shares and total > 1 + SUM_TOLERANCE else []
        )
        if normalize is None and beyond and not everyone:
            raise RecipeError(
                "a share below 0 or above 1 needs every parent written out, or normalize",
                where=where,
                expected=", ".join(parents),
                found=f"{', '.join(shares)} (with {beyond[0]:g})",
            )
        if normalize is None and base in shares and abs(total - 1) > SUM_TOLERANCE:
            raise RecipeError(
                "the shares do not sum to 1",
                where=where,
                expected="1",
                found=f"{total:g}",
                do=f"leave {base!r} out and it gets the rest; normalize: true divides by the sum, false takes them as is",
            )


def shares_at(rule: Rule, recipe: Recipe, layer: int | None, num_layers: int) -> dict[str, float]:
    """The shares of a rule in one layer: base first, then in the rule's order; parents with a share of 0 left out."""
    if rule.take is not None:
        return {rule.take: 1.0}
    written = {
        name: share.at(layer or 0, num_layers) if isinstance(share, Gradient) else share
        for name, share in (rule.mix or {}).items()
    }
    if rule.normalize is None and recipe.base not in written:
        # Rounded, so that 1 - 0.75 - 0.25 is nothing, not a speck of it.
        written[recipe.base] = round(1 - math.fsum(written.values()), 12)
    if rule.normalize:
        total = math.fsum(written.values())
        written = {name: share / total for name, share in written.items()}
    ordered = sorted(written, key=lambda name: name != recipe.base)
    return {name: written[name] for name in ordered if written[name] != 0}
