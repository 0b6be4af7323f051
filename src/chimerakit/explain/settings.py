"""What rules can't say of a child: how its weights are stored and laid out, and whose files lie beside them.

Storage and layout are tried by planning with them: the plan says what each file of the child would be.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from msgspec.structs import replace

from chimerakit.dtypes import QUANTS
from chimerakit.errors import PlanError
from chimerakit.execute import header_digest
from chimerakit.formats.gguf_header import CHAT_TEMPLATE
from chimerakit.plan import make_plan
from chimerakit.plan.deltas import Distances
from chimerakit.plan.files import choose_files
from chimerakit.plan.keys import differing_keys
from chimerakit.records import Checkpoint, FileRow, Output, Plan, Recipe
from chimerakit.stores.digest import digest_of

_DTYPES = get_args(Output.__annotations__["dtype"])
_SHARDS: tuple[Literal["base", "by-rule"], ...] = ("base", "by-rule")
_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json", CHAT_TEMPLATE)
_OPENING = "<think>"

Digest = Callable[[Path], str]
"""The digest of a file beside the weights; each is asked for again and again."""


def find_plan(
    recipe: Recipe, child: Checkpoint, parents: Mapping[str, Checkpoint], distances: Distances, digest: Digest
) -> tuple[Plan, list[str]]:
    """The recipe's plan with the settings under which most of the child's files come out as they are; and what does not.

    Raises PlanError where the recipe can't be planned: parents of other shapes.
    """

    @cache  # at full size a plan takes seconds
    def plan_of(output: Output) -> Plan:
        return make_plan(replace(recipe, output=output), parents, distances)

    def files_of(output: Output) -> Collection[FileRow]:
        # Whose tokenizer and template are wanted changes no other file, so it takes no plan.
        rows, problems = choose_files(replace(recipe, output=output), parents)
        if problems:
            raise PlanError(problems)
        return rows.values()

    is_file = partial(_is_file, parents=parents, digest=digest)
    stored = {tensor.dtype for tensor in child.tensors.values()}
    dtypes = [dtype for dtype in _DTYPES if dtype.upper() not in QUANTS or dtype.upper() in stored]
    output = _best((Output(dtype=dtype) for dtype in dtypes), lambda o: _unlike_tensors(plan_of(o), child))
    output = _best([replace(output, shards=shards) for shards in _SHARDS], lambda o: _unlike_shards(plan_of(o), child))
    if child.format == "gguf":  # where tokenizer and template stand in the weight files
        output = _best(_texts(output, recipe), lambda o: _unlike_shards(plan_of(o), child))
    else:
        output = _best(_texts(output, recipe), lambda o: _unlike_files(files_of(o), child, is_file))
    plan = plan_of(output)
    return plan, [
        *(f"{name}: the recipe stores it otherwise, or not at all" for name in _unlike_tensors(plan, child)),
        *(f"{name}: the recipe lays this file out otherwise" for name in _unlike_shards(plan, child)),
        *(
            f"{name}: no parent's; the recipe gives another one, or none"
            for name in _unlike_files(plan.files, child, is_file)
        ),
    ]


def _texts(output: Output, recipe: Recipe) -> Iterator[Output]:
    """Each choice of a tokenizer and of a chat template, once."""
    whose = (None, *(name for name in recipe.parents if name != recipe.base))
    for tokenizer, template in product(whose, (None, *recipe.parents)):
        if template != (tokenizer or recipe.base):
            yield replace(output, tokenizer=tokenizer, chat_template=template)


def _best(outputs: Iterable[Output], unlike: Callable[[Output], Collection[str]]) -> Output:
    """The first of these settings that leave the fewest things unlike; the first of all where none can be planned."""
    best, least = None, math.inf
    for output in outputs:
        best = best or output
        with suppress(PlanError):
            if (count := len(unlike(output))) < least:
                best, least = output, count
        if least == 0:
            break
    assert best is not None
    return best


def _unlike_tensors(plan: Plan, child: Checkpoint) -> list[str]:
    planned = {t.name: (t.dtype, t.shape) for row in plan.rows for t in row.outputs}
    found = {t.name: (t.dtype, t.shape) for t in child.tensors.values()}
    return sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))


def _unlike_shards(plan: Plan, child: Checkpoint) -> list[str]:
    planned = {shard.name: (shard.nbytes, header_digest(plan, shard.header)) for shard in plan.shards}
    found = {shard.name: (shard.nbytes, shard.header_digest) for shard in child.shards}
    return sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))


def _unlike_files(rows: Iterable[FileRow], child: Checkpoint, is_file: Callable[[Path, FileRow], bool]) -> list[str]:
    there = {file.name: Path(child.root, file.name) for file in (*child.files, *filter(None, (child.index,)))}
    planned = {row.name: row for row in rows}
    return sorted(
        name
        for name in planned.keys() | there.keys()
        if name not in planned or name not in there or not is_file(there[name], planned[name])
    )


def _is_file(file: Path, row: FileRow, parents: Mapping[str, Checkpoint], digest: Digest) -> bool:
    """Whether a file of the child is what a plan makes it."""
    if file.stat().st_size != row.nbytes:
        return False
    if row.parent is None or row.source is None:
        return digest(file) == digest_of((row.text or "").encode())
    return digest(file) == digest(Path(parents[row.parent].root, row.source))


# ------------------------------------------------------------------------------ what weights can't show


def differences(child: Checkpoint, parent: Checkpoint, digest: Digest) -> list[str]:
    """In what else than weights a child differs from a parent: config, tokenizer, chat template, other files."""
    if child.format == "gguf":
        found = [f"the header: {says}" for says in differing_keys(parent, child)]
    else:
        found = [
            f"config.json: {key} is {child.config.get(key, 'absent')!r}, not {parent.config.get(key, 'absent')!r}"
            for key in sorted(child.config.keys() | parent.config.keys())
            if child.config.get(key, ...) != parent.config.get(key, ...)
        ]
    mine, theirs = ({f.name: Path(c.root, f.name) for f in c.files if f.name != "config.json"} for c in (child, parent))
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs:
            found.append(f"{name}: {'the child has it' if name in mine else 'the child lacks it'}")
        elif digest(mine[name]) != digest(theirs[name]):
            found.append(f"{name}: another")
    opens = [any(_OPENING in c.texts.get(name, "") for name in _TEMPLATES) for c in (child, parent)]
    if opens[0] != opens[1]:
        who = "the child's" if opens[0] else "the parent's"
        found.append(f"chat template: only {who} has {_OPENING}, which decides whether an answer begins with a trace")
    return found
