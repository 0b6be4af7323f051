"""The child's other files: each is a row too, a parent's bytes or an edit that the plan shows.

The base gives everything but its README and its weights; the recipe may say whose tokenizer and whose chat template.
"""

import json
from collections.abc import Mapping, Set
from typing import Any

from chimerakit.dtypes import FP8_BLOCK_UE8M0, FP8_BLOCKS
from chimerakit.formats.safetensors import INDEX
from chimerakit.plan.keys import key_problems
from chimerakit.plan.layout import Layout
from chimerakit.records import Checkpoint, FileRow, Recipe

CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER = (
    "tokenizer.json",
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "tiktoken.model",
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def plan_files(
    recipe: Recipe, parents: Mapping[str, Checkpoint], layout: Layout, storages: Set[str]
) -> tuple[tuple[FileRow, ...], list[str]]:
    """All files but weights, card and manifest; index and config last. And what is wrong with the wish."""
    base = parents[recipe.base]
    if base.format == "gguf":  # whose tokenizer and template it has stands in the weight files
        rows = {f.name: FileRow(f.name, f.nbytes, recipe.base, f.name) for f in base.files}
        return tuple(rows[name] for name in sorted(rows)), list(key_problems(recipe, parents))
    rows, problems = choose_files(recipe, parents)
    config = rows.pop(CONFIG, None)
    ordered = [rows[name] for name in sorted(rows)]
    if len(layout.shards) > 1 or base.index is not None:
        ordered.append(_index(recipe, base, layout))
    if config is not None:
        ordered.append(_config(recipe, base, storages) or config)
    return tuple(ordered), problems


def choose_files(recipe: Recipe, parents: Mapping[str, Checkpoint]) -> tuple[dict[str, FileRow], list[str]]:
    """By name, the base's files with the tokenizer and the template that the recipe chooses; and what is wrong with that.

    Its config is among them as it is, the index is not: what they say follows from the weights.
    """
    rows = {f.name: FileRow(f.name, f.nbytes, recipe.base, f.name) for f in parents[recipe.base].files}
    return rows, _tokenizer(recipe, parents, rows)


def _edited(name: str, content: object, edit: str) -> FileRow:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return FileRow(name, len(text.encode()), text=text, edit=edit)


def _index(recipe: Recipe, base: Checkpoint, layout: Layout) -> FileRow:
    is_untouched = layout.is_base and all(shard.header.parent is not None for shard in layout.shards)
    if is_untouched and base.index is not None:
        return FileRow(INDEX, base.index.nbytes, recipe.base, INDEX)
    files = {tensor.name: tensor.file for row in layout.rows for tensor in row.outputs}
    content = {
        "metadata": {"total_size": sum(row.nbytes for row in layout.rows)},
        "weight_map": dict(sorted(files.items())),
    }
    return _edited(INDEX, content, "made for the child's files")


def _config(recipe: Recipe, base: Checkpoint, storages: Set[str]) -> FileRow | None:
    """config.json with the dtype and quantization that the child has; None where the base's holds."""
    dtype, config = recipe.output.dtype, dict(base.config)
    if dtype == "keep":
        return None
    edits = []
    if dtype in _TORCH_DTYPES:
        for key in [k for k in ("torch_dtype", "dtype") if k in config] or ["torch_dtype"]:
            if config.get(key) != _TORCH_DTYPES[dtype]:
                config[key] = _TORCH_DTYPES[dtype]
                edits.append(f"{key}: {_TORCH_DTYPES[dtype]}")
    is_fp8 = not storages.isdisjoint(FP8_BLOCKS)
    if not is_fp8 and config.pop("quantization_config", None) is not None:
        edits.append("quantization_config removed")
    if is_fp8 and "quantization_config" not in config:
        config["quantization_config"] = _quantization(storages)
        edits.append("quantization_config added")
    return _edited(CONFIG, config, "; ".join(edits)) if edits else None


def _quantization(storages: Set[str]) -> dict[str, Any]:
    """As DeepSeek-V3 and, for powers of two, DeepSeek-V3.1 say it."""
    found = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    return found | ({"scale_fmt": "ue8m0"} if FP8_BLOCK_UE8M0 in storages else {})


def _tokenizer(recipe: Recipe, parents: Mapping[str, Checkpoint], rows: dict[str, FileRow]) -> list[str]:
    """Put the chosen parents' tokenizer and template in the place of the base's."""
    tokenizer = recipe.output.tokenizer or recipe.base
    template = recipe.output.chat_template or tokenizer
    problems = []
    if tokenizer != recipe.base:
        theirs = [f for f in parents[tokenizer].files if f.name in (*_TOKENIZER, *_TEMPLATES)]
        if not any(f.name in _TOKENIZER for f in theirs):
            problems.append(f"output: tokenizer: {tokenizer!r} has no tokenizer files")
        for name in (*_TOKENIZER, *_TEMPLATES):
            rows.pop(name, None)
        rows.update((f.name, FileRow(f.name, f.nbytes, tokenizer, f.name)) for f in theirs)
    if template != tokenizer:
        problems += _chat_template(parents, tokenizer, template, rows)
    return problems


def _chat_template(
    parents: Mapping[str, Checkpoint], tokenizer: str, template: str, rows: dict[str, FileRow]
) -> list[str]:
    """Another parent's template: a file of its own, or a value in tokenizer_config.json; never both."""
    try:
        from_config = _tokenizer_config(parents[template]).get("chat_template")
        config = _tokenizer_config(parents[tokenizer])
    except ValueError as e:
        return [f"output: chat_template: a tokenizer_config.json can't be read: {e}"]
    from_file = next((f for f in parents[template].files if f.name in _TEMPLATES), None)
    if from_file is None and from_config is None:
        return [f"output: chat_template: {template!r} has no chat template"]
    for name in _TEMPLATES:
        rows.pop(name, None)
    before = config.pop("chat_template", None)
    if from_file is not None:
        rows[from_file.name] = FileRow(from_file.name, from_file.nbytes, template, from_file.name)
        if before is not None:
            rows[_TOKENIZER_CONFIG] = _edited(_TOKENIZER_CONFIG, config, "chat_template removed (it is a file now)")
    else:
        config["chat_template"] = from_config
        rows[_TOKENIZER_CONFIG] = _edited(_TOKENIZER_CONFIG, config, f"chat_template of {template!r}")
    return []


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer_config.json; raises ValueError where it is no JSON object."""
    try:
        found = json.loads(checkpoint.texts.get(_TOKENIZER_CONFIG, "{}"))
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if not isinstance(found, dict):
        raise ValueError(f"it holds no object in {checkpoint.root}")  # noqa: TRY004 - as json says it
    return found
