"""Checkpoints that are headers only: what a planner sees of a model, without a byte on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from chimerakit.dtypes import STORAGE_TYPES
from chimerakit.plan import make_plan
from chimerakit.recipe import recipe_from_data
from chimerakit.records import Checkpoint, File, Plan, Recipe, Row, Shard, Tensor
from tests.synthetic import CONFIG, config_of, layout

Entry = tuple[str, str, tuple[int, ...]]
"""(name, dtype, shape)."""
INDEX = "model.safetensors.index.json"
PLAIN = {"f16": "F16", "f32": "F32"}


def entries_of(storage: str, config: Mapping[str, Any] = CONFIG, *, mtp: bool = True) -> list[Entry]:
    """What a synthetic checkpoint of that storage holds."""
    found: list[Entry] = []
    for name, shape, kind in layout(config, mtp=mtp):
        if kind == "linear" and storage in ("fp8", "ue8m0", "e8m0"):
            blocks = tuple(-(-side // 128) for side in shape)
            found.append((name, "F8_E4M3", shape))
            found.append((name + "_scale_inv", "F8_E8M0" if storage == "e8m0" else "F32", blocks))
        else:
            found.append((name, "F32" if kind == "bias" else PLAIN.get(storage, "BF16"), shape))
    return found


def checkpoint(
    entries: Sequence[Entry],
    config: Mapping[str, Any],
    *,
    shards: int = 3,
    shuffle: int | None = None,
    root: str = "/nowhere",
    files: Mapping[str, int] | None = None,
    texts: Mapping[str, str] | None = None,
    mtime_ns: int = 0,
    left_out: tuple[str, ...] = (),
) -> Checkpoint:
    """A checkpoint with these tensors dealt to shards; headers as any writer could have written them."""
    order = list(range(len(entries)))
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(order)
    size = -(-len(entries) // shards)
    groups = [[entries[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    found_shards, tensors = [], dict[str, Tensor]()
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):06d}.safetensors" if shards > 1 else "model.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, dtype, shape in group:
            nbytes = int(np.prod(shape)) * STORAGE_TYPES[dtype].bits // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
            end += nbytes
        text = json.dumps(header).encode()
        start = 8 + len(text)
        for name, dtype, shape in group:
            first, last = header[name]["data_offsets"]
            tensors[name] = Tensor(name, dtype, shape, file, start + first, last - first)
        found_shards.append(
            Shard(file, start + end, start, xxhash.xxh3_128_hexdigest(text), mtime_ns, {"format": "pt"})
        )
    listed = {"config.json": 100, "generation_config.json": 20, "LICENSE": 10} if files is None else files
    return Checkpoint(
        root=root,
        shards=tuple(found_shards),
        tensors=tensors,
        config=dict(config),
        files=tuple(File(name, listed[name], 0) for name in sorted(listed)),
        left_out=left_out,
        index=File(INDEX, 1000, 0) if shards > 1 else None,
        texts=dict(texts or {}),
    )


def model(
    storage: str = "bf16",
    *,
    config: Mapping[str, Any] = CONFIG,
    mtp: bool = True,
    drop: Callable[[str], bool] = lambda _: False,
    change: Mapping[str, tuple[str, tuple[int, ...]] | None] | None = None,
    **options: Any,
) -> Checkpoint:
    """A synthetic checkpoint's headers, without what `drop` says, with what `change` puts in place or adds."""
    changed = dict(change or {})
    entries = [
        (name, *(changed.pop(name, None) or (dtype, shape)))
        for name, dtype, shape in entries_of(storage, config, mtp=mtp)
        if not drop(name)
    ]
    entries += [(name, *what) for name, what in changed.items() if what is not None]
    return checkpoint(entries, config_of(storage, config, mtp=mtp), **options)


def recipe_of(*rules: Mapping[str, Any], parents: str = "v3 r1", **output: Any) -> Recipe:
    """A recipe with these rules; the first parent is the base."""
    names = parents.split()
    return recipe_from_data({"parents": dict.fromkeys(names), "base": names[0], "rules": list(rules), "output": output})


def plan_of(
    *rules: Mapping[str, Any],
    base: Checkpoint,
    output: Mapping[str, Any] | None = None,
    distances: Mapping[str, Mapping[str, float]] | None = None,
    **others: Checkpoint,
) -> Plan:
    """The plan of these rules over the base `v3` and other parents by name."""
    names = " ".join(["v3", *others])
    return make_plan(recipe_of(*rules, parents=names, **(output or {})), {"v3": base, **others}, distances)


def rows_by_name(plan: Plan) -> dict[str, Row]:
    """The plan's rows by the unit's name."""
    return {row.unit: row for row in plan.rows}
