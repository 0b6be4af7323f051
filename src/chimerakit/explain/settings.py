"""What rules can't say of a child: how its weights are stored and laid out, and whose files lie beside them.

Every setting is tried by planning with it: the plan says what each file of the child would be.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from chimerakit.errors import PlanError
from chimerakit.execute import header_digest
from chimerakit.plan import make_plan
from chimerakit.plan.select import Distances
from chimerakit.records import Checkpoint, FileRow, Output, Plan, Recipe
from chimerakit.stores.digest import digest_file, digest_of

_DTYPES: tuple[Literal["keep", "bf16", "f16", "f32", "fp8-block"], ...] = ("keep", "bf16", "f16", "f32", "fp8-block")
_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
_OPENING = "<think>"


def find_plan(
    recipe: Recipe, child: Checkpoint, parents: Mapping[str, Checkpoint], distances: Distances
) -> tuple[Plan, list[str]]:
    """The recipe's plan with the settings under which most of the child's files come out as they are; and what does not.

    Raises PlanError where the recipe can't be planned: parents of other shapes.
    """
    plan_of = partial(make_plan, parents=parents, distances=distances)
    recipe = _best(recipe, child, plan_of, (Output(dtype=dtype) for dtype in _DTYPES), _unlike_tensors)
    plain = recipe.output
    recipe = _best(recipe, child, plan_of, (replace(plain, shards=s) for s in ("base", "by-rule")), _unlike_shards)
    plain = recipe.output
    whose = (None, *(name for name in parents if name != recipe.base))
    pairs = product(whose, (None, *parents))
    texts = (replace(plain, tokenizer=t, chat_template=c) for t, c in pairs if c != (t or recipe.base))
    recipe = _best(recipe, child, plan_of, texts, _unlike_files)
    plan = plan_of(recipe)
    return plan, [
        *(f"{name}: the recipe stores it otherwise, or not at all" for name in _unlike_tensors(plan, child)),
        *(f"{name}: the recipe lays this file out otherwise" for name in _unlike_shards(plan, child)),
        *(f"{name}: no parent's; the recipe gives another one, or none" for name in _unlike_files(plan, child)),
    ]


def _best(
    recipe: Recipe,
    child: Checkpoint,
    plan_of: Callable[[Recipe], Plan],
    outputs: Iterable[Output],
    unlike: Callable[[Plan, Checkpoint], list[str]],
) -> Recipe:
    """The recipe with the first of these settings that leave the fewest things unlike."""
    best, least = recipe, None
    for output in outputs:
        tried = replace(recipe, output=output)
        try:
            count = len(unlike(plan_of(tried), child))
        except PlanError:
            continue
        if least is None or count < least:
            best, least = tried, count
        if count == 0:
            break
    return best


def _unlike_tensors(plan: Plan, child: Checkpoint) -> list[str]:
    planned = {t.name: (t.dtype, t.shape) for row in plan.rows for t in row.outputs}
    found = {t.name: (t.dtype, t.shape) for t in child.tensors.values()}
    return [name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name)]


def _unlike_shards(plan: Plan, child: Checkpoint) -> list[str]:
    planned = {shard.name: (shard.nbytes, header_digest(plan, shard.header)) for shard in plan.shards}
    found = {shard.name: (shard.nbytes, shard.header_digest) for shard in child.shards}
    return sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))


def _unlike_files(plan: Plan, child: Checkpoint) -> list[str]:
    there = {file.name: Path(child.root, file.name) for file in (*child.files, *filter(None, (child.index,)))}
    planned = {row.name: row for row in plan.files}
    return sorted(
        n for n in planned.keys() | there.keys() if n not in planned or not _is(there.get(n), planned[n], plan)
    )


def _is(file: Path | None, row: FileRow, plan: Plan) -> bool:
    if file is None or file.stat().st_size != row.nbytes:
        return False
    if row.parent is None or row.source is None:
        return digest_file(file).xxh3 == digest_of((row.text or "").encode())
    return digest_file(file).xxh3 == digest_file(Path(plan.parents[row.parent].root, row.source)).xxh3


# ------------------------------------------------------------------------------ what weights can't show


def differences(child: Checkpoint, parent: Checkpoint) -> list[str]:
    """In what else than weights a child differs from a parent: config, tokenizer, chat template, other files."""
    found = [
        f"config.json: {key} is {child.config.get(key, 'absent')!r}, not {parent.config.get(key, 'absent')!r}"
        for key in sorted(child.config.keys() | parent.config.keys())
        if child.config.get(key, ...) != parent.config.get(key, ...)
    ]
    mine, theirs = ({f.name: Path(c.root, f.name) for f in c.files if f.name != "config.json"} for c in (child, parent))
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs:
            found.append(f"{name}: {'the child has it' if name in mine else 'the child lacks it'}")
        elif digest_file(mine[name]).xxh3 != digest_file(theirs[name]).xxh3:
            found.append(f"{name}: another")
    opens = [any(_OPENING in c.texts.get(name, "") for name in _TEMPLATES) for c in (child, parent)]
    if opens[0] != opens[1]:
        who = "the child's" if opens[0] else "the parent's"
        found.append(f"chat template: only {who} has {_OPENING}, which decides whether an answer begins with a trace")
    return found
