"""GGUF: weights with their config and tokenizer in one file, or in several that are numbered.

A checkpoint is a file, the first of such files, or a folder that holds no other model. Opening reads headers only.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chimerakit.errors import CheckpointError
from chimerakit.formats.gguf_header import ARCHITECTURE, CHAT_TEMPLATE, SPLIT, Parsed, TooShortError, parse_header
from chimerakit.formats.safetensors import WEIGHT_SUFFIXES
from chimerakit.records import Checkpoint, File, Shard, Tensor
from chimerakit.stores.digest import digest_of
from chimerakit.stores.local import Reader, list_files

SUFFIX = ".gguf"
MAX_HEADER = 256 << 20
"""Bytes. The largest vocabularies take a tenth of that."""
_STEPS = (1 << 20, 32 << 20, MAX_HEADER)
"""As many bytes are read first, and more if the header is longer."""
_SPLIT = re.compile(r"(?P<name>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
"""llama.cpp's llama_split_path."""
_STACK = re.compile(r"\.ffn_(?:gate|up|down|gate_up)_exps\.[a-z_]+$")
"""What llama.cpp calls the weights of all experts of a layer in one tensor."""
_NOT_OURS = ("chimerakit.json", "README.md")


def is_folder(path: Path) -> bool:
    """Whether a folder holds GGUF files."""
    return any(path.glob("*" + SUFFIX))


def split_name(name: str, number: int, count: int) -> str:
    """The file of one part, counted from 1, of a model; `name` without suffix."""
    return f"{name}{SUFFIX}" if count == 1 else f"{name}-{number:05d}-of-{count:05d}{SUFFIX}"


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint at a file or folder, from its headers."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError("there is no such file or folder", where=path)
    return _open_parts(path.parent, _parts_of(path))


def _open_folder(root: Path) -> Checkpoint:
    listed = [name for name, _ in list_files(root)]
    weights = [name for name in listed if name.endswith(SUFFIX) and "/" not in name]
    models = [name for name in weights if (found := _SPLIT.fullmatch(name)) is None or int(found["number"]) == 1]
    if len(models) != 1:
        raise CheckpointError(
            "holds several GGUF models" if models else "holds no first part of a GGUF model",
            where=root,
            found=", ".join((models or weights)[:5]),
            do="give the file that is meant" if models else "get all of its parts",
        )
    names = _parts_of(root / models[0])
    others = [name for name in listed if name not in {*names, *_NOT_OURS}]
    left_out = [name for name in others if name.endswith(WEIGHT_SUFFIXES)]
    files = [File(n, s.st_size, s.st_mtime_ns) for n in others if n not in left_out for s in [(root / n).stat()]]
    return _open_parts(root, names, files=files, left_out=left_out, is_folder=True)


def _parts_of(path: Path) -> list[str]:
    """The files of the model that a file is, or begins."""
    found = _SPLIT.fullmatch(path.name)
    if found is None:
        return [path.name]
    count = int(found["count"])
    names = [split_name(found["name"], number, count) for number in range(1, count + 1)] if count > 1 else [path.name]
    if path.name != names[0]:
        raise CheckpointError("is one part of a model", where=path, do=f"give the first: {path.parent / names[0]}")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"is the first of {count} parts, and {len(missing)} of them are missing",
            where=path,
            expected=path.parent / missing[0],
            do="get all of its parts",
        )
    return names


def _open_parts(
    root: Path,
    names: Sequence[str],
    *,
    files: Sequence[File] = (),
    left_out: Sequence[str] = (),
    is_folder: bool = False,
) -> Checkpoint:
    shard, first = _open_shard(root, names[0], {})
    _check_model(first.values, root / names[0])
    later = [_open_shard(root, name, first.values) for name in names[1:]]
    opened = [(shard, first), *later]
    for number, (shard, part) in enumerate(opened):
        _check_part(part.values, number, len(names), root / shard.name)
    tensors = dict[str, Tensor]()
    for tensor in (tensor for _, part in opened for tensor in part.tensors):
        if (there := tensors.setdefault(tensor.name, tensor)) is not tensor:
            where, parts = root / tensor.file, f"{there.file}, {tensor.file}"
            if there.file == tensor.file:
                raise CheckpointError(f"{tensor.name!r} is there twice, as a tensor and in a stack", where=where)
            what = f"the tensor {tensor.name!r} is in two parts, which are not of one model"
            raise CheckpointError(what, where=where, found=parts)
    _check_total(first.values, tensors, root / names[0])
    return Checkpoint(
        root=str(root.resolve()),
        shards=tuple(shard for shard, _ in opened),
        tensors=tensors,
        config={key: value for key, value in first.values.items() if not key.startswith(SPLIT)},
        files=tuple(files),
        left_out=tuple(left_out),
        index=None,
        is_folder=is_folder,
        format="gguf",
        texts={CHAT_TEMPLATE: template} if isinstance(template := first.values.get(CHAT_TEMPLATE), str) else {},
        fields=first.fields,
    )


def _open_shard(root: Path, name: str, model: Mapping[str, Any]) -> tuple[Shard, Parsed]:
    """One file. model: the keys of the first part, which the later ones don't have."""
    path = root / name
    reader = Reader(path)
    try:
        for step in _STEPS:
            data = reader.read(0, min(step, reader.nbytes))
            try:
                found = parse_header(data, name, reader.nbytes, path, is_stack, model)
            except TooShortError:
                if len(data) == reader.nbytes:
                    raise CheckpointError(
                        "ends within its header", where=path, found=f"{len(data)} bytes", do="get the file again"
                    ) from None
                continue
            header = data[: found.nbytes] if found.nbytes <= len(data) else reader.read(0, found.nbytes)
            digest = digest_of(header)
            return Shard(name, reader.nbytes, found.nbytes, digest, reader.mtime_ns, None), found
    finally:
        reader.close()
    raise CheckpointError("the header is too long", where=path, expected=f"at most {MAX_HEADER} bytes")


def stack_of(name: str) -> str | None:
    """The stack that a record named NAME[N] is a slice of; None if it is none."""
    stack, bracket, _ = name.rpartition("[") if name.endswith("]") else ("", "", "")
    return stack if bracket and is_stack(stack) else None


def is_stack(name: str) -> bool:
    """Whether a tensor holds the weights of all experts of a layer."""
    return _STACK.search(name) is not None


def _check_model(values: Mapping[str, Any], where: Path) -> None:
    kind = values.get("general.type", "model")
    if not isinstance(values.get(ARCHITECTURE), str) or kind != "model":
        raise CheckpointError(
            "holds no language model", where=where, expected=ARCHITECTURE, found=f"general.type {kind!r}"
        )


def _check_part(values: Mapping[str, Any], number: int, count: int, where: Path) -> None:
    """What a part says of itself is what its name says: parts of two models, or renamed ones, would be one broken model."""
    said = values.get("split.no", 0), values.get("split.count", 1)
    if said != (number, count) and not (count == 1 and said == (0, 0)):
        raise CheckpointError(
            "is not the part of a model that its name says",
            where=where,
            expected=f"split.no {number}, split.count {count}",
            found=f"split.no {said[0]}, split.count {said[1]}",
            do="give its files the names that llama-gguf-split gave them",
        )


def _check_total(values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path) -> None:
    said = values.get("split.tensors.count")
    found = len({stack_of(name) or name for name in tensors})
    if values.get("split.count", 1) > 1 and said != found:
        raise CheckpointError(
            "and its other parts are not one model", where=where, expected=f"{said} tensors", found=found
        )
