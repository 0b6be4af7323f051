"""The keys of a GGUF child: the base's, those that the recipe takes from another parent, and those that must tell the truth.

A child with the base's weights alone says what the base says. Any other one is not what the base's keys call it: its name,
whose child it is, how most of it is stored, and whether an imatrix made its quants, are said anew.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, NamedTuple

from chimerakit.dtypes import numel_of
from chimerakit.formats.gguf_header import CHAT_TEMPLATE, SPLIT, encode_field
from chimerakit.plan.drafts import Draft
from chimerakit.records import Checkpoint, Field, HeaderPart, ImatrixFile, Recipe

_TOKENIZER = "tokenizer."
_TOKENS = "tokenizer.ggml.tokens"
_IMATRIX = "quantize.imatrix."
_IDENTITY = (
    "general.base_model.", "general.dataset.", "general.source.", "general.finetune", "general.version", "general.uuid",
    "general.url", "general.repo_url", "general.doi", "general.author", "general.organization", "general.quantized_by",
    "general.description",
)  # fmt: skip
"""What tells one model from others; of a parent it is said under general.base_model."""
_OF_PARENTS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
"""Keys of a model that general.base_model.N takes over (gguf-py's constants.py, Keys.General)."""
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17,
    "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30,
    "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "NVFP4": 39, "Q1_0": 40,
}  # fmt: skip
"""general.file_type of a file of which most weights are of a type: llama.cpp's `llama_ftype`, as its loader guesses it."""
_FILE_TYPE = "general.file_type"
_NAME = "general.name"


class Key(NamedTuple):
    """One key of the child's header."""

    key: str
    parent: str | None
    field: Field | None
    """With `parent`: where it stands there."""
    data: bytes = b""
    """Otherwise: the key and its value, encoded."""

    def part(self, parents: Mapping[str, Checkpoint]) -> HeaderPart:
        """Its bytes in a header."""
        if self.parent is None or self.field is None:
            return HeaderPart(len(self.data), data=self.data)
        shard = parents[self.parent].shards[0].name
        return HeaderPart(self.field.nbytes, self.parent, shard, self.field.start)


def keys_of_base(recipe: Recipe, base: Checkpoint) -> list[Key]:
    """The base's keys but those of its split into files."""
    return [Key(field.key, recipe.base, field) for field in base.fields if not field.key.startswith(SPLIT)]


def plan_keys(
    recipe: Recipe, parents: Mapping[str, Checkpoint], drafts: Sequence[Draft], imatrix: ImatrixFile | None
) -> list[Key]:
    """The child's keys but those of its split into files."""
    base = parents[recipe.base]
    found = {key.key: key for key in keys_of_base(recipe, base)}
    tokenizer = recipe.output.tokenizer or recipe.base
    template = recipe.output.chat_template or tokenizer
    if tokenizer != recipe.base:
        _take(found, tokenizer, parents[tokenizer], lambda key: key.startswith(_TOKENIZER) and not _is_template(key))
    if template != recipe.base:
        _take(found, template, parents[template], _is_template)
    used = [name for name in parents if any(part.parent == name for draft in drafts for part in draft.inputs)]
    is_stored_alike = all(base.tensors[draft.name].dtype == draft.storage for draft in drafts)
    if used != [recipe.base] or not is_stored_alike:
        _tell_the_truth(found, recipe, parents, drafts, used)
    if imatrix is not None and any(draft.importance is not None for draft in drafts):
        _set(found, f"{_IMATRIX}file", "string", imatrix.name)
        _set(found, f"{_IMATRIX}dataset", "string", ", ".join(imatrix.datasets))
        _set(found, f"{_IMATRIX}entries_count", "u32", len(imatrix.entries))
        _set(found, f"{_IMATRIX}chunks_count", "u32", imatrix.chunk_count)
    return list(found.values())


def key_problems(recipe: Recipe, parents: Mapping[str, Checkpoint]) -> Iterator[str]:
    """What is wrong with the wish for another parent's tokenizer or template."""
    tokenizer, template = recipe.output.tokenizer, recipe.output.chat_template
    if tokenizer is not None and not any(_keys_of(parents[tokenizer], _TOKENIZER)):
        yield f"output: tokenizer: {tokenizer!r} has no tokenizer"
    if tokenizer is not None and (mine := _length(parents[recipe.base])) != (theirs := _length(parents[tokenizer])):
        yield f"output: tokenizer: {tokenizer!r} has {theirs} tokens, and the base's embedding {mine}"
    if template is not None and CHAT_TEMPLATE not in parents[template].config:
        yield f"output: chat_template: {template!r} has no chat template"


def differing_keys(base: Checkpoint, other: Checkpoint) -> list[str]:
    """Keys that two models do not share, with values where they are short; not those that only identify a model."""
    identity = (_NAME, _FILE_TYPE, _IMATRIX, "general.license", "general.tags", *_IDENTITY)
    keys = [*base.config, *(key for key in other.config if key not in base.config)]
    return [
        f"{key} ({_short(other.config.get(key))}, not {_short(base.config.get(key))})"
        for key in keys
        if base.config.get(key) != other.config.get(key) and not key.startswith(identity)
    ]


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return f"another list of {value['length']}"
    text = repr(value)
    return text if len(text) <= 40 else "another text" if isinstance(value, str) else "another list"


def _length(checkpoint: Checkpoint) -> int | None:
    """How many tokens a vocabulary has."""
    found = checkpoint.config.get(_TOKENS)
    return found["length"] if isinstance(found, dict) else None if found is None else len(found)


def _is_template(key: str) -> bool:
    """Whether a key is a chat template: the one, or one with a name."""
    return key == CHAT_TEMPLATE or key.startswith((f"{CHAT_TEMPLATE}.", f"{CHAT_TEMPLATE}s"))


def _keys_of(checkpoint: Checkpoint, prefix: str) -> Iterator[str]:
    return (field.key for field in checkpoint.fields if field.key.startswith(prefix))


def _take(found: dict[str, Key], name: str, parent: Checkpoint, is_meant: Callable[[str], bool]) -> None:
    """Put another parent's keys of a kind in the place of the base's."""
    theirs = {field.key: field for field in parent.fields if is_meant(field.key)}
    for key in [key for key in found if is_meant(key) and key not in theirs]:
        del found[key]
    found.update({key: Key(key, name, field) for key, field in theirs.items()})


def _tell_the_truth(
    found: dict[str, Key],
    recipe: Recipe,
    parents: Mapping[str, Checkpoint],
    drafts: Sequence[Draft],
    used: Sequence[str],
) -> None:
    """Keys that follow from what the child is made of."""
    if used != [recipe.base]:
        for key in [key for key in found if key.startswith(_IDENTITY)]:
            del found[key]
        names = [str(parents[name].config.get(_NAME) or name) for name in used]
        _set(found, _NAME, "string", f"Chimera of {' and '.join(names)}")
        _set(found, "general.base_model.count", "u32", len(used))
        for number, (parent, name) in enumerate(zip(used, names, strict=True)):
            said = {"name": name} | {k: parents[parent].config.get(f"general.{k}") for k in _OF_PARENTS if k != "name"}
            for key, value in said.items():
                if isinstance(value, str):
                    _set(found, f"general.base_model.{number}.{key}", "string", value)
    is_copied = all(draft.kind == "copy" for draft in drafts)
    givers = {name: parents[name] for name in used}
    if not is_copied or not _take_if_alike(found, givers, _FILE_TYPE):
        _set_file_type(found, drafts)
    if not is_copied or not _take_if_alike(found, givers, _IMATRIX):
        for key in [key for key in found if key.startswith(_IMATRIX)]:
            del found[key]


def _take_if_alike(found: dict[str, Key], givers: Mapping[str, Checkpoint], prefix: str) -> bool:
    """Put the keys of a kind there that all parents which give anything have alike; the base's, if it gives nothing, are none."""
    values = [{key: giver.config[key] for key in _keys_of(giver, prefix)} for giver in givers.values()]
    is_alike = all(each == values[0] for each in values)
    if is_alike:
        name, first = next(iter(givers.items()))
        _take(found, name, first, methodcaller("startswith", prefix))
    return is_alike


def _set_file_type(found: dict[str, Key], drafts: Sequence[Draft]) -> None:
    """As most weights are stored; nothing where llama.cpp has no number for that."""
    most = Counter[str]()
    for draft in drafts:
        most[draft.storage] += numel_of(draft.tensors[0].shape)
    file_type = _FILE_TYPES.get(most.most_common(1)[0][0])
    if file_type is None:
        found.pop(_FILE_TYPE, None)
    else:
        _set(found, _FILE_TYPE, "u32", file_type)


def _set(found: dict[str, Key], key: str, kind: str, value: Any) -> None:
    found[key] = Key(key, None, None, encode_field(key, kind, value))
