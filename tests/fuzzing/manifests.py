"""Manifests: that of a real child, and such with something wrong, each from one seed."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzzing.trees import (
    Node,
    Pairs,
    change_bytes,
    change_literal,
    change_tree,
    copy_of,
    holders_of,
    text_of,
    tree_of,
)

OUTSIDE = ("../secret", "/etc/hostname", ".trap/link", ".trap/shelf/secret", "a/../../secret", "..", ".", "", "../child/../secret", "~/x",
           "a\\..\\..\\secret", "secret\0", "./model.safetensors", ".chimerakit/plan.json")  # fmt: skip
"""Names that no manifest may have us read; links in `.trap` lead out of the child."""


def maker(manifest: bytes) -> Callable[[int], bytes]:
    """What makes a text of this manifest from a seed."""
    tree = tree_of(json.loads(manifest))

    def make(seed: int) -> bytes:
        random, changed = Random(seed), copy_of(tree)
        kinds = [] if random.random() < 0.1 else [random.randrange(8) for _ in range(random.choice((1, 1, 2, 3)))]
        for kind in kinds:
            if kind < 2:
                _rename(random, changed)
            elif kind < 4:
                _change_record(random, changed)
            elif kind < 7:
                change_tree(random, changed)
        text = text_of(changed, random.choice((",", ",\n ")), random.choice((":", ": "))).encode(
            "utf-8", "surrogatepass"
        )
        return change_bytes(random, text) if 7 in kinds else text

    return make


def _pairs_of(tree: Node, key: str) -> list[Pairs]:
    """The objects under keys of this name, wherever they stand."""
    items = [item for holder in holders_of(tree) if isinstance(holder, Pairs) for item in holder.items]
    return [value for name, value in items if name == f'"{key}"' and isinstance(value, Pairs) and value.items]


def _rename(random: Random, tree: Node) -> None:
    """Another name for a file, a tensor or a parent."""
    places = [pairs for key in ("weights", "files", "tensors", "parents", "shards") for pairs in _pairs_of(tree, key)]
    if places:
        items = random.choice(places).items
        at = random.randrange(len(items))
        items[at] = (random.choice((*map(json.dumps, OUTSIDE), *(key for key, _ in items))), items[at][1])


def _change_record(random: Random, tree: Node) -> None:
    """Another number or text of the same kind somewhere, so that the manifest can still be read."""
    places: list[tuple[Any, int]] = []
    for holder in holders_of(tree):
        if isinstance(holder, Pairs):
            places += [(holder.items, at) for at, (_, value) in enumerate(holder.items) if isinstance(value, str)]
        else:
            places += [(holder, at) for at, value in enumerate(holder) if isinstance(value, str)]
    if places:
        items, at = random.choice(places)
        key, literal = items[at] if isinstance(items[at], tuple) else (None, items[at])
        other = _like(random, literal)
        items[at] = other if key is None else (key, other)


def _like(random: Random, literal: str) -> Node:
    if literal.startswith('"'):
        return json.dumps(literal[1:-1][::-1] if random.random() < 0.5 else random.choice(OUTSIDE))
    if literal.isdigit():
        return str(random.choice((0, 1, 2**31, 2**63 - 1, int(literal) + 1)))
    return change_literal(random, literal)
