"""An importance matrix for a child, out of its parents': nobody has to run the child.

An imatrix says of each column of a tensor how large the activations are that it is multiplied with. Those come from the tensors
before it. So a tensor's entry is that of the parents that give these (`feeds` in the family's table), by their shares:

    routed experts' and MLPs' down      the gate and up of the same layer and expert
    attn_output                         the values of that attention
    attn_q_b, attn_kv_b, attn_v_b       what projects into the latent space
    attn_k_b                            the queries: it is multiplied with these, head by head
    everything else                     the base: it reads the stream of hidden states, which is the base's, as a rule

Sums and counts are weighted alike. The limits: what experts a token is sent to is the router's choice, and the stream carries
what all layers before have written; an imatrix of the child itself knows both.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.errors import PlanError
from chimerakit.formats.gguf import stack_of
from chimerakit.formats.imatrix import Entry, Imatrix
from chimerakit.records import Plan, Row

_REFUSED = "there can be no imatrix of this child"

Weights = dict[str, float]
"""How much each parent counts."""


class Blended(Struct, frozen=True):
    """A child's importance matrix, and how it came about."""

    imatrix: Imatrix
    by_parents: dict[str, int]
    """Tensors by whose entries they have: v3, or v3 + r1."""
    missing: tuple[str, ...]
    """Tensors that the child has and no parent has an entry of."""
    unseen: dict[str, int]
    """Of each tensor how many rows, experts of a stack, got no token in the text of the parents whose entry they should have;
    they have what the others saw, if anything."""


def blend_imatrix(plan: Plan, given: Mapping[str, Imatrix]) -> Blended:
    """The importance matrix of a planned GGUF child. given: that of each parent, by name.

    Raises PlanError for a child of safetensors, a parent that the plan does not have, or one that is missing.
    """
    if problems := list(_problems(plan, given)):
        raise PlanError(problems, _REFUSED)
    feeds = _Feeds(plan)
    rows_of: dict[str, list[Row]] = {}
    for row in plan.rows:
        rows_of.setdefault(stack_of(row.unit) or row.unit, []).append(row)
    entries, by_parents, missing, unseen = dict[str, Entry](), Counter[str](), list[str](), dict[str, int]()
    for name, rows in rows_of.items():
        cols = rows[0].outputs[0].shape[-1]
        found = {parent: _fitted(each.entries.get(name), cols) for parent, each in given.items()}
        there = {parent: entry for parent, entry in found.items() if entry is not None}
        if odd := [parent for parent, each in given.items() if name in each.entries and parent not in there]:
            raise PlanError(
                [f"the entry of {name} in the imatrix of {odd[0]!r} is of another shape than the tensor"], _REFUSED
            )
        if len({entry.rows for entry in there.values()}) > 1:
            raise PlanError([f"{name} has entries of other shapes in {' and '.join(there)}"], _REFUSED)
        if not there:
            if len(rows[0].outputs[0].shape) > 1:
                missing.append(name)
            continue
        weights = [feeds.weights_of(row) for row in sorted(rows, key=lambda row: row.role.expert or 0)]
        entries[name], used, lost = _blend(there, weights)
        by_parents[used] += 1
        if lost:
            unseen[name] = lost
    matrices = list(given.values())
    return Blended(
        Imatrix(
            entries,
            tuple(dict.fromkeys(dataset for each in matrices for dataset in each.datasets)),
            max(each.chunk_count for each in matrices),
            max(each.chunk_size for each in matrices),
        ),
        dict(by_parents),
        tuple(missing),
        unseen,
    )


def _problems(plan: Plan, given: Mapping[str, Imatrix]) -> Iterator[str]:
    base = plan.parents[plan.recipe.base]
    if base.format != "gguf":
        yield f"the parents are {base.format}; an imatrix names tensors as GGUF does"
    if strange := sorted(given.keys() - plan.parents.keys()):
        yield f"an imatrix is given of {', '.join(strange)}, which the recipe does not name"
    if lacking := sorted({part.parent for row in plan.rows for part in row.inputs} - given.keys()):
        yield f"no imatrix is given of {', '.join(lacking)}"


class _Feeds:
    """Whose activations a tensor of the child sees."""

    def __init__(self, plan: Plan):
        self._base = plan.recipe.base
        self._shares = {row.unit: {part.parent: part.share for part in row.inputs} for row in plan.rows}
        self._patterns = Anatomy(plan.parents[self._base]).family.feeds

    def weights_of(self, row: Row) -> Weights:
        """By the shares of those that give its inputs; the base's where the child has none of these."""
        names = self._feeding(row.unit, row.role.layer, row.role.expert)
        found: Weights = {}
        for shares in (self._shares[name] for name in names if name in self._shares):
            for parent, share in shares.items():
                found[parent] = found.get(parent, 0.0) + max(0.0, share)
        whole = sum(found.values())
        return {parent: share / whole for parent, share in found.items()} if whole > 0 else {self._base: 1.0}

    def _feeding(self, name: str, layer: int | None, expert: int | None) -> list[str]:
        for feed in self._patterns:
            if any(_compiled(to).fullmatch(name) for to in feed.to):
                return [by.replace("{layer}", str(layer)).replace("{expert}", str(expert)) for by in feed.by]
        return []


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(?:layer|expert)\\\}", r"\\d+", re.escape(pattern)))


def _blend(there: Mapping[str, Entry], weights: list[Weights]) -> tuple[Entry, str, int]:
    """The entry of a tensor, whose it is, and how many of its rows these parents say nothing of. weights: of each of its units,
    the experts of a stack in order."""
    import numpy as np

    from chimerakit.numerics.importance import blend

    rows, cols = next((entry.rows, entry.cols) for entry in there.values())
    if len(weights) != rows:  # one entry for all of a stack, or several for what is one unit
        parents = dict.fromkeys(parent for each in weights for parent in each)
        weights = [{p: sum(each.get(p, 0.0) for each in weights) / len(weights) for p in parents}] * rows
    sums = [np.frombuffer(entry.sums, np.float32).reshape(rows, cols) for entry in there.values()]
    counts = [np.frombuffer(entry.counts, np.float32) for entry in there.values()]
    table = np.array([[row.get(parent, 0.0) for row in weights] for parent in there])
    total, seen, lost = blend(sums, counts, table)
    used = [parent for parent, line in zip(there, table, strict=True) if line.any()]
    return Entry(rows, cols, total.tobytes(), seen.tobytes()), " + ".join(used or there), lost


def _fitted(entry: Entry | None, cols: int) -> Entry | None:
    """An entry with a row for each expert: legacy files have them one after the other. None if it is of another shape."""
    if entry is None or entry.cols == cols:
        return entry
    if entry.rows > 1 or entry.cols % cols:
        return None
    rows = entry.cols // cols
    return Entry(rows, cols, entry.sums, entry.counts * rows)
