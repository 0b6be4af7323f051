"""The child on disk: its folder while it grows, and what makes it finished.

    CHILD/.chimerakit/plan.json        whose child this is
    CHILD/.chimerakit/receipts/N.json  what job N wrote, saved after its bytes were synced
    CHILD/NAME.part                    a file that still grows

A file is renamed when every job that touches it has a receipt. Then follow the other files, the card, index and config,
and last the manifest; then the folder .chimerakit goes. A folder without manifest is therefore unfinished.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from chimerakit.card import CARD, write_card
from chimerakit.errors import ManifestError, OutputError
from chimerakit.formats import used_padding
from chimerakit.formats.safetensors import INDEX
from chimerakit.manifest import MANIFEST, WORKSPACE, encode_manifest, make_manifest, read_manifest
from chimerakit.output import (
    BEGUN,
    Begun,
    check_output,
    encode_begun,
    foreign_files,
    is_finished,
    read_begun,
    signatures_of,
)
from chimerakit.plan.ranges import equal_shards
from chimerakit.receipts import RECEIPTS, Receipts
from chimerakit.records import FileRow, Job, Manifest, OtherFile, Plan, Receipt
from chimerakit.stores.digest import Hasher, digest_file, digest_of
from chimerakit.stores.local import CHUNK, PART, Reader
from chimerakit.stores.part import PartFile, finish_file, make_folder, new_part, sync_folder, write_file, write_file_too

_LAST = (INDEX, "config.json")
"""A folder without these looks unfinished to every loader."""


def _linkable(plan: Plan) -> dict[str, tuple[str, str]]:
    """Files of the child that may be a parent's: equal ones, without anything in their padding, which we leave zeros."""
    shards = {(name, shard.name): shard for name, parent in plan.parents.items() for shard in parent.shards}
    return {
        file: (parent, shard)
        for file, (parent, shard) in equal_shards(plan).items()
        if used_padding(plan.parents[parent], shards[parent, shard]) is None
    }


def clean_up(path: Path) -> None:
    """Remove the workspace. The caller holds the lock."""
    shutil.rmtree(path / WORKSPACE, ignore_errors=True)


def tidy(path: Path) -> None:
    """Remove what a kill right after the manifest may have left beside a finished child, if nobody works on it."""
    lock = _take_lock(path)
    try:
        if is_finished(path):
            clean_up(path)
    finally:
        os.close(lock)


def remove_child(path: Path) -> None:
    """Delete a finished child, or what was begun of one, and nothing else that may stand in its folder."""
    lock = _take_lock(path)
    try:
        _clear(path, read_begun(path))
        clean_up(path)
        if not any(path.iterdir()):
            path.rmdir()
    finally:
        os.close(lock)


def _clear(path: Path, there: Begun | None) -> None:
    """Delete what the child that stood here had written, and nothing else. The caller holds the lock."""
    names = set(there.files) if there is not None else set()
    if (path / MANIFEST).is_file():
        old = read_manifest(path)
        names |= {*old.weights, *old.files, MANIFEST}
    root = path.resolve()
    for name in names:
        parts = Path(name).parts
        if not parts or ".." in parts or not (root / name).parent.resolve().is_relative_to(root):
            raise ManifestError("names a file outside its folder", where=path / MANIFEST, found=repr(name))
    if left := foreign_files(path, names):
        raise OutputError(
            "the output folder holds something else; nothing was deleted",
            where=path,
            found=", ".join(left[:5]),
            do="move it away, or choose another folder",
        )
    # Said before anything goes, so that a kill in the middle leaves an unfinished child and no orphans.
    files = tuple(sorted({*names, MANIFEST}))
    _write_begun(path, Begun("", (), {}, allow_nonfinite=False, sha256=False, link=False, files=files))
    for name in sorted(names, key=lambda name: name != MANIFEST):
        for file in (path / name, path / (name + PART)):
            if file.is_symlink() or file.is_file():
                file.unlink()
    for folder in sorted({parent for name in names for parent in Path(name).parents if parent.parts}, reverse=True):
        if (path / folder).is_dir() and not (path / folder).is_symlink() and not any((path / folder).iterdir()):
            (path / folder).rmdir()
    sync_folder(path)  # before the workspace goes: files must not come back without it after a loss of power


def _write_begun(path: Path, begun: Begun) -> None:
    make_folder(path / WORKSPACE)
    write_file_too(path / WORKSPACE / BEGUN, encode_begun(begun))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """For one process at a time: a folder's lock, held as long as this lasts, however the process ends."""
    lock = _take_lock(path)
    try:
        yield
    finally:
        os.close(lock)


def _take_lock(path: Path, *, together: bool = False) -> int:
    """A descriptor that holds the folder's lock until it is closed, however this process ends.

    together: others that say so, too, may hold it at the same time.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        is_taken = isinstance(e, BlockingIOError)
        what = "another process is working on this folder" if is_taken else f"can't be locked: {e.strerror}"
        raise OutputError(what, where=path) from e
    return fd


class Child:
    """A child while it is being made. One process at a time works on it, or several that do a part each; jobs need no lock.

    shared: weight files that need no space, as they will be links to another child's. together: other processes, on this and
    other machines, may do other jobs of it. They begin it alike, so that it does not matter who is first, and none of them
    deletes or renames anything that another may need.
    """

    def __init__(
        self,
        plan: Plan,
        path: Path,
        *,
        force: bool = False,
        allow_nonfinite: bool = False,
        sha256: bool = False,
        link: bool = False,
        shared: Collection[str] = (),
        together: bool = False,
    ):
        self.path = path
        self.linked = _linkable(plan) if link else {}
        """Weight files that are hard links, and the (parent, shard) that each is a link to."""
        self._plan = plan
        self._sha256 = sha256
        self._allow_nonfinite = allow_nonfinite
        self._link = link
        self._shared = shared
        self._together = together
        self._workspace = path / WORKSPACE
        make_folder(path)
        self._lock = _take_lock(path, together=together)
        try:
            self._begin(force=force)
            make_folder(self._workspace / RECEIPTS)  # refuses a link, through which receipts would be saved elsewhere
            self._link_shards()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others work on the folder."""
        os.close(self._lock)

    def _begin(self, *, force: bool) -> None:
        check_output(self._plan, self.path, force=force, link=self._link, shared=self._shared)
        if is_finished(self.path) and not force:  # it was not when the caller looked, before the lock
            raise OutputError("another process has finished this child just now", where=self.path)
        names = (*(s.name for s in self._plan.shards), *(f.name for f in self._plan.files), CARD, MANIFEST)
        mine = Begun(
            plan=self._plan.digest,
            segments=self._plan.segments,
            signatures=signatures_of(self._plan),
            allow_nonfinite=self._allow_nonfinite,
            sha256=self._sha256,
            link=self._link,
            files=names,
        )
        self.receipts = Receipts(str(self.path.resolve()), digest_of(encode_begun(mine)))
        there = read_begun(self.path)
        if there == mine and not force:
            return
        if there is not None and not force:
            raise OutputError("was begun with other options", where=self.path, do="use the same ones, or --force")
        if force:
            _clear(self.path, there)
        if not self._together:
            clean_up(self.path)
        _write_begun(self.path, mine)

    def _link_shards(self) -> None:
        """Give whole files of parents a second name in the child."""
        for name, (parent, shard) in self.linked.items():
            self.link_file(name, Path(os.path.realpath(Path(self._plan.parents[parent].root, shard))))

    def link_file(self, name: str, source: Path) -> None:
        """Make a weight file a second name of one that equals it; a folder that has it already keeps it."""
        part, done = self.path / (name + PART), self.path / name
        if any(file.exists() and not file.is_symlink() and file.samefile(source) for file in (part, done)):
            return
        try:
            part.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process may have made it just now
                part.hardlink_to(source)
        except OSError as e:
            raise OutputError(
                f"can't be a hard link to {source}: {e.strerror}", where=done, do="leave --link out"
            ) from e

    def unlink_files(self, names: Iterable[str]) -> None:
        """Take files away that were links to what is not there any more, so that they can be written."""
        for name in names:
            for file in (self.path / name, self.path / (name + PART)):
                if name not in self.linked and file.is_file() and file.stat().st_nlink > 1:
                    file.unlink()

    def reopen(self, jobs: Sequence[Job]) -> None:
        """Give files that these jobs will write their temporary names, and make those that are not there."""
        self.receipts.check_place()  # somebody else may have finished while receipts were looked at
        if jobs and not self._together:
            (self.path / MANIFEST).unlink(missing_ok=True)
        for name, nbytes in {name: nbytes for job in jobs for name, nbytes in job.sizes.items()}.items():
            done, part = self.path / name, self.path / (name + PART)
            if done.is_symlink():
                raise OutputError("is a symbolic link; output is never written through one", where=done, do="remove it")
            for file in (done, part):
                if name not in self.linked and file.exists() and file.stat().st_nlink > 1:
                    raise OutputError(
                        "has another name (hard link), which would change with it", where=file, do="remove it"
                    )
            if done.exists():
                with suppress(FileNotFoundError):  # another process may have done it just now
                    done.rename(part)
            if name not in self.linked:
                PartFile(done, nbytes).close()

    # ------------------------------------------------------------------------------------------ finish

    def finish_shard(self, name: str) -> None:
        """Rename a weight file whose jobs all have receipts."""
        done, part = self.path / name, self.path / (name + PART)
        if done.exists():  # finished before; a part beside it is of somebody who came late
            part.unlink(missing_ok=True)
        elif part.exists():
            finish_file(done)

    def finish(self, receipts: Sequence[Receipt]) -> Manifest:
        """Write everything but the weights, the manifest last; then the child is finished."""
        self.receipts.check_place()  # another machine may have finished it
        last = [row for row in self._plan.files if row.name in _LAST]
        files = {row.name: self._write_other(row) for row in self._plan.files if row not in last}
        files[CARD] = self._write_text(CARD, write_card(self._plan).encode())
        files |= {row.name: self._write_other(row) for row in last}
        # A whole file's sha256 needs its bytes in order, so the file is read once more.
        names = [shard.name for shard in self._plan.shards]
        sha256 = {n: digest_file(self.path / n, sha256=True).sha256 if self._sha256 else None for n in names}
        manifest = make_manifest(self._plan, receipts, files, sha256, allow_nonfinite=self._allow_nonfinite)
        if missing := [name for name in names if not (self.path / name).is_file()]:
            raise OutputError(
                "a weight file was taken away while the child was being made", where=self.path / missing[0]
            )
        (self.path / (MANIFEST + PART)).unlink(missing_ok=True)  # nobody's: ours lie in the workspace
        write_file_too(self.path / MANIFEST, encode_manifest(manifest), beside=self._workspace)
        # First, so that a kill in the middle leaves a finished child.
        (self._workspace / BEGUN).unlink(missing_ok=True)
        clean_up(self.path)
        sync_folder(self.path)
        return manifest

    def _write_text(self, name: str, data: bytes) -> OtherFile:
        hasher = Hasher(sha256=self._sha256)
        hasher.update(data)
        write_file(self.path / name, data, below=self.path)
        return OtherFile(len(data), hasher.xxh3, hasher.sha256)

    def _write_other(self, row: FileRow) -> OtherFile:
        if row.text is not None:
            return self._write_text(row.name, row.text.encode())
        parent, source = self._plan.parents[row.parent or ""], row.source or ""
        reader = Reader(Path(parent.root, source), parent.signatures[source])
        target, hasher = self.path / row.name, Hasher(sha256=self._sha256)
        with closing(reader), closing(new_part(target, reader.nbytes, below=self.path)) as part:
            for piece in reader.pieces(0, reader.nbytes, memoryview(bytearray(CHUNK))):
                if piece.data is None:
                    hasher.update_zeros(piece.nbytes)
                else:
                    part.write(piece.data, piece.start)
                    hasher.update(piece.data)
            reader.check_unchanged()
            part.sync()
        finish_file(target)
        return OtherFile(reader.nbytes, hasher.xxh3, hasher.sha256)
