"""Which encoder made a child: decided over all its units, as one of them may look like anything.

A number that somebody changed looks like an encoder that rounds otherwise; but an encoder does so all over. And a share that
chimerakit's arithmetic can't have used may, in a unit here and there, give the same bytes as another with more decimals.
"""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from chimerakit.explain.evidence import Evidence, Mixture
from chimerakit.numerics.cells import OTHERS

_MOST = 0.95
"""The share of units for which an encoder must do, to have made the child."""
_EXACT = 1e-9
"""How far from 1 a sum of decimals may be that is 1."""
_RARE = 0.2
"""The share of a component's units that somebody may have changed by hand."""


def is_other(evidence: Sequence[Evidence]) -> bool:
    """Whether another encoder made the child: units that chimerakit's arithmetic does not give are more than a few of those
    of their components."""
    components = {found.role.component for found in evidence if _is_missed(found)}
    there = sum(found.role.component in components for found in evidence)
    return sum(map(_is_missed, evidence)) > _RARE * there


def decide(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The evidence with mixtures by the encoder that made the child, where chimerakit's arithmetic does not give it."""
    if is_other(evidence):  # what has bytes by chance gives way
        doubtful = [found for found in evidence if found.others]
    else:
        doubtful = [found for found in evidence if _is_missed(found) and not found.is_touched]
    names = [[other.encoder for other in found.others] for found in doubtful if _is_missed(found)]
    encoder = next((r.name for r in OTHERS if sum(r.name in there for there in names) >= _MOST * len(names)), "")
    ours = {found.unit: _by(encoder, found.others) for found in doubtful}
    return [replace(found, mixture=ours.get(found.unit, found.mixture)) for found in evidence]


def _is_missed(found: Evidence) -> bool:
    """Whether other arithmetic makes a unit that ours does not give, or gives by shares that are far-fetched: they don't sum to
    1, where some that do give nearly all of its numbers."""
    if not found.others:
        return False
    return found.mixture is None or (_is_whole(found.others[0]) and not _is_whole(found.mixture))


def _is_whole(mixture: Mixture) -> bool:
    return abs(math.fsum(mixture.shares.values()) - 1) <= _EXACT


def _by(encoder: str, others: Sequence[Mixture]) -> Mixture:
    return next((other for other in others if other.encoder == encoder), others[0])
