"""Whether a folder can become this child: its place, what it holds, the disk. Asked before anything is written there."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.errors import CheckpointError, OutputError
from chimerakit.manifest import MANIFEST, WORKSPACE, read_manifest
from chimerakit.plan.ranges import equal_shards
from chimerakit.records import Plan
from chimerakit.stores.local import PART, Reader, read_file
from chimerakit.stores.part import allocated_nbytes, can_share, free_nbytes

BEGUN = "plan.json"
"""In the workspace: what an unfinished child says about itself."""
MAX_BEGUN = 1 << 30
_SPARE = 16 << 20
"""Bytes kept free for manifest, receipts and folders."""


class Begun(Struct, frozen=True):
    """What an unfinished child says about itself."""

    plan: str
    segments: tuple[tuple[int, int], ...]
    signatures: dict[str, dict[str, tuple[int, int]]]
    allow_nonfinite: bool
    sha256: bool
    link: bool
    files: tuple[str, ...]
    """Every name that it may write, so that starting over deletes nothing else."""


def is_finished(path: Path) -> bool:
    """Whether a folder holds a complete child."""
    return (path / MANIFEST).is_file() and not (path / WORKSPACE / BEGUN).exists()


def encode_begun(begun: Begun) -> bytes:
    """The text of plan.json; the same for the same child."""
    return msgspec.json.encode(begun, order="deterministic")


def read_begun(path: Path) -> Begun | None:
    """What an unfinished child in a folder says about itself; None if there is none, or it can't be understood."""
    file = path / WORKSPACE / BEGUN
    if file.parent.is_symlink() or file.is_symlink() or not file.is_file():
        return None
    try:
        return msgspec.json.decode(read_file(file, MAX_BEGUN), type=Begun)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def check_output(
    plan: Plan, path: Path, *, force: bool = False, link: bool = False, shared: Collection[str] = ()
) -> None:
    """Refuse what can't become this child, before anything is written: the folder, the disk, unreadable files.

    shared: weight files that will be links to another child's.
    """
    try:
        _check_place(plan, path)
        _check_contents(plan, path, force=force)
        is_there = is_finished(path) and not force
        if (
            not is_there
            and (needed := missing_nbytes(plan, path, {*(equal_shards(plan) if link else ()), *shared})) > 0
        ):
            free = free_nbytes(path)
            raise OutputError(
                "too little disk space", where=path, expected=f"{needed + free} bytes", found=f"{free} bytes free"
            )
    except OSError as e:  # a name too long, a folder that may not be entered
        raise OutputError(f"can't be used: {e.strerror}", where=e.filename or path) from e
    for parent in plan.parents.values():  # its config was planned with, whoever's is copied
        if (signature := parent.signatures.get("config.json")) is not None:
            Reader(Path(parent.root, "config.json"), signature).close()
    for row in plan.files:
        if row.parent is not None and row.source is not None:
            source = Path(plan.parents[row.parent].root, row.source)
            if not os.access(source, os.R_OK):
                raise CheckpointError("can't be read; the child would get it", where=source)


def _check_place(plan: Plan, path: Path) -> None:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as e:
        raise OutputError("the output folder's name is not UTF-8", where=path, do="choose another name") from e
    if path.is_symlink():
        raise OutputError("is a symbolic link; output is never written through one", where=path)
    if path.exists() and not path.is_dir():
        raise OutputError("is not a folder", where=path)
    real = path.resolve()
    for name, parent in plan.parents.items():
        root = Path(parent.root).resolve()
        if not parent.is_folder:  # its neighbours are none of its business
            continue
        how = {real == root: "is", root in real.parents: "lies inside", real in root.parents: "holds"}.get(True)
        if how is not None:
            raise OutputError(
                f"the output folder {how} the parent {name!r}", where=path, found=root, do="choose another folder"
            )


def missing_nbytes(plan: Plan, path: Path, linked: Collection[str], *, promised: int = 0) -> int:
    """Bytes by which the free space of the disk is too little for a child; negative if it is enough.

    linked: weight files that are links. promised: bytes that others will take of the same space.
    """
    # What has another name is a parent's too, and takes no space here.
    there = [f.stat() for f in path.glob("*") if f.is_file()] if path.is_dir() else []
    on_disk = sum(found.st_blocks * 512 for found in there if found.st_nlink == 1)
    room = free_nbytes(path) - promised - _SPARE + on_disk
    needed = _needed(plan, linked, sharing=())
    if needed > room:
        sharing = [n for n, c in plan.parents.items() if c.shards and can_share(Path(c.root, c.shards[0].name), path)]
        needed = _needed(plan, linked, sharing)
    return needed - room


def _needed(plan: Plan, linked: Collection[str], sharing: Collection[str]) -> int:
    """Bytes on disk that the child takes at most: what is copied out of a file takes no more than that file does.

    sharing: parents whose blocks the child can share. What it can't share of them (unlike offsets, ends of pages) a full
    disk tells while it is written.
    """
    copied: dict[tuple[str, str], int] = defaultdict(int)
    needed = sum(f.nbytes for f in plan.files) + sum(s.header.nbytes for s in plan.shards if s.name not in linked)
    for row in plan.rows:
        if row.kind != "copy":
            needed += sum(tensor.nbytes for tensor in row.outputs if tensor.file not in linked)
            continue
        part = row.inputs[0]
        for source, target in zip(part.tensors, row.outputs, strict=True):
            if target.file not in linked and part.parent not in sharing:
                copied[part.parent, source.file] += target.nbytes
    allocated = {key: allocated_nbytes(Path(plan.parents[key[0]].root, key[1])) for key in copied}
    return needed + sum(min(nbytes, allocated[key]) for key, nbytes in copied.items())


def foreign_files(path: Path, names: Iterable[str]) -> list[str]:
    """What stands in a folder beside these files, their parts and hidden things."""
    tops = {Path(name).parts[0] for name in names}
    known = {*tops, *(top + PART for top in tops)}
    return sorted(p.name for p in path.iterdir() if p.name not in known and not p.name.startswith("."))


def _check_contents(plan: Plan, path: Path, *, force: bool) -> None:
    present = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    begun = read_begun(path)  # afterwards: others may be beginning right now
    if begun is None and WORKSPACE in present:  # killed before the first or after the last thing was written
        present.remove(WORKSPACE)
    if not present:
        return
    if begun is None and MANIFEST not in present:
        raise OutputError(
            "the output folder holds something else",
            where=path,
            found=", ".join(present[:5]),
            do="choose an empty folder",
        )
    if force:
        return
    if begun is None:
        manifest = read_manifest(path)
        if manifest.plan != plan.digest:
            raise OutputError("holds a finished child of another plan", where=path, do="--force starts over")
        if foreign := foreign_files(path, {*manifest.weights, *manifest.files, MANIFEST}):
            raise OutputError("holds something else beside the child", where=path, found=", ".join(foreign[:5]))
        return
    if begun.plan != plan.digest or begun.segments != plan.segments:
        raise OutputError("holds an unfinished child of another plan", where=path, do="--force starts over")
    if foreign := foreign_files(path, begun.files):
        raise OutputError("holds something else beside the unfinished child", where=path, found=", ".join(foreign[:5]))
    if begun.signatures != signatures_of(plan):
        raise OutputError(
            "a parent's file has changed since this child was begun", where=path, do="--force starts over"
        )


def signatures_of(plan: Plan) -> dict[str, dict[str, tuple[int, int]]]:
    """Of every file of a parent that the child has bytes of."""
    copied: dict[str, set[str]] = {name: set() for name in plan.parents}
    for row in plan.files:
        if row.parent is not None and row.source is not None:
            copied[row.parent].add(row.source)
    return {
        name: {
            file: signature
            for file, signature in c.signatures.items()
            if file in copied[name] or file in {s.name for s in c.shards}
        }
        for name, c in plan.parents.items()
    }
