"""The child on disk against its manifest: files, headers, names, digests of every byte."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from msgspec import Struct

from chimerakit.errors import ChimerakitError, ManifestError, printable
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs
from chimerakit.formats import used_padding
from chimerakit.manifest import MANIFEST
from chimerakit.plan.ranges import read_runs
from chimerakit.records import (
    Checkpoint,
    Finding,
    Input,
    Manifest,
    OtherFile,
    Role,
    WeightFile,
)
from chimerakit.runners import Workers
from chimerakit.runners.watched import run_watched
from chimerakit.scan import ScanJob, ScanUnit, scan_jobs
from chimerakit.sinks import Digests
from chimerakit.stores.digest import digest_file, digest_range
from chimerakit.stores.local import Readers

_CHILD = "child"
_SHOWN = 160
"""Characters of a value in a message."""


def is_with_sha256(manifest: Manifest) -> bool:
    """Whether the child was made with sha256; then everything has one."""
    files: list[WeightFile | OtherFile] = [*manifest.weights.values(), *manifest.files.values()]
    return any(f.sha256 is not None for f in files) or any(made.sha256 is not None for made in manifest.units)


def check_files(path: Path, manifest: Manifest) -> Iterable[Finding]:
    """Every file that the manifest names is there with its size and its digest; nothing else is there."""
    for name in sorted(manifest.weights.keys() & manifest.files.keys()):
        yield Finding(False, name, "is in the manifest twice, as weights and as another file")
    has_sha256 = is_with_sha256(manifest)
    named: dict[str, WeightFile | OtherFile] = {**manifest.files, **manifest.weights}
    for name, said in named.items():
        # A manifest is a file that anybody may have written: it must not make us read elsewhere.
        is_outside = Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts
        if is_outside or "\\" in name or "\0" in name:
            raise ManifestError("names a file outside its folder", where=path / MANIFEST, found=name)
        objection = _object_to(path, name, said, sha256=has_sha256)
        kind = "headers as written" if isinstance(said, WeightFile) else "other files as written"
        yield Finding(objection is None, name, kind if objection is None else objection)
    for name, says in _others(path, {*named, MANIFEST}):
        yield Finding(False, printable(name), says)


def _object_to(path: Path, name: str, said: WeightFile | OtherFile, *, sha256: bool) -> str | None:
    """What is wrong with a file that the manifest names."""
    file = path / name
    # A link could show one file to us and another to whoever loads the child later.
    if Path(os.path.realpath(file)) != Path(os.path.realpath(path), name):
        return "is a symbolic link, or lies behind one"
    try:
        if not file.is_file():
            return "is missing"
        if (nbytes := file.stat().st_size) != said.nbytes:
            return f"has {nbytes} bytes, the manifest says {said.nbytes}"
        if isinstance(said, WeightFile):
            # A number from the manifest: it must not make us read before, or far beyond, the file.
            if not 0 <= said.header_nbytes <= nbytes:
                return f"has {nbytes} bytes, the manifest says {said.header_nbytes} for its header"
            is_same = digest_file(file, said.header_nbytes).xxh3 == said.header
            return None if is_same else "the header is not the one that was written (digest)"
        found = digest_file(file, sha256=sha256)
    except OSError as e:
        return f"can't be read: {e.strerror}"
    except ChimerakitError as e:
        return str(e)
    if found.xxh3 != said.digest:
        return "the file is not the one that was written (digest)"
    return None if found.sha256 == said.sha256 else claims("sha256", said.sha256, found.sha256, "it has")


def _others(path: Path, named: set[str]) -> Iterable[tuple[str, str]]:
    """What is in the folder and not in the manifest. Hidden files and folders belong to other tools: not looked at."""
    refused: list[OSError] = []
    for folder, below, names in os.walk(path, onerror=refused.append):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for entry in (Path(folder, name) for name in (*below, *sorted(names)) if not name.startswith(".")):
            name = entry.relative_to(path).as_posix()
            if entry.is_symlink():
                if name not in named or name == MANIFEST:
                    yield name, "is a symbolic link"
            elif name not in named and not entry.is_dir():
                yield name, "is not in the manifest"
    for e in refused:
        yield os.path.relpath(e.filename, path), f"can't be listed: {e.strerror}"


def check_headers(child: Checkpoint, manifest: Manifest) -> Iterable[Finding]:
    """The child's weight files are the manifest's, and their headers end where it says."""
    shards = {shard.name: shard for shard in child.shards}
    for name in manifest.weights:
        if name not in shards:
            yield Finding(False, name, "is a weight file of the manifest, but none of the child")
    for name, shard in shards.items():
        said = manifest.weights.get(name)
        if said is None:
            yield Finding(False, name, "is a weight file of the child, but none of the manifest")
        elif said.header_nbytes != shard.header_nbytes:
            yield Finding(False, name, claims("header_nbytes", said.header_nbytes, shard.header_nbytes, "the file has"))


def check_names(child: Checkpoint, manifest: Manifest) -> Iterable[Finding]:
    """Child and manifest name the same tensors, each once, and each under its unit."""
    said = Counter(name for unit in manifest.units for name in unit.tensors)
    for name in child.tensors:
        if name not in said:
            yield Finding(False, name, "is in the child but not in the manifest")
    for name, count in said.items():
        if name not in child.tensors:
            yield Finding(False, name, "is in the manifest but not in the child")
        elif count > 1:
            yield Finding(False, name, "is in the manifest twice")
    for name, count in Counter(unit.unit for unit in manifest.units).items():
        if count > 1:
            yield Finding(False, name, "is in the manifest twice, as a unit")
    for unit in manifest.units:
        if unit.unit not in unit.tensors:
            yield Finding(False, unit.unit, "is a unit of the manifest that does not hold the tensor of its name")


def check_padding(child: Checkpoint) -> Iterable[Finding]:
    """What lies between tensors, where a format aligns them, is zeros: no digest is of it, and anything might hide there."""
    for shard in child.shards:
        if (place := used_padding(child, shard)) is not None:
            yield Finding(False, shard.name, f"there is something in the padding {place}")


def claims(what: str, claimed: object, right: object, who: str) -> str:
    """A finding's words: what the manifest says, and what somebody else does."""
    return f"the manifest says {what} {_short(claimed)}, {who} {_short(right)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# -------------------------------------------------------------------------------------------- bytes


def check_digests(child: Checkpoint, manifest: Manifest, workers: Workers, listener: Listener) -> Iterable[Finding]:
    """Every tensor has the digests that the manifest says, and so has every weight file."""
    units = []
    for made in manifest.units:
        tensors = tuple(child.tensors[name] for name in made.tensors)
        units.append(ScanUnit(made.unit, Role("other"), {_CHILD: Input(_CHILD, 1.0, "", tensors)}))
    said = {name: (digest, made.sha256) for made in manifest.units for name, digest in made.tensors.items()}
    has_sha256 = is_with_sha256(manifest)
    ask = partial(_digest_job, child.root, has_sha256)
    for found in scan_jobs("verifying", ask, {_CHILD: child}, units, workers=workers, listener=listener):
        for name, (right, right_sha256) in found.items():
            claimed, claimed_sha256 = said[name][0], (said[name][1] or {}).get(name)
            if right != claimed:
                yield Finding(False, name, "its bytes are not those that were written (digest)")
            elif right_sha256 != claimed_sha256:
                yield Finding(False, name, claims("sha256", claimed_sha256, right_sha256, "its bytes have"))
            else:
                yield Finding(True, name, "tensors as written (digest)")
    for made in manifest.units:
        for name in (made.sha256 or {}).keys() - made.tensors.keys():
            yield Finding(False, made.unit, f"the manifest says a sha256 of {name!r}, which is not in this unit")
    if has_sha256:
        for name, whole in sha256_of_weights(child, workers, listener).items():
            if manifest.weights[name].sha256 != whole:
                yield Finding(False, name, claims("sha256", manifest.weights[name].sha256, whole, "the file has"))
            else:
                yield Finding(True, name, "weight files as written (sha256)")


def _digest_job(
    root: str, has_sha256: bool, job: ScanJob, inputs: Inputs, report: Report
) -> dict[str, tuple[str, str | None]]:
    """xxh3-128 and sha256 of each tensor."""
    tensors = [t for unit in job.units for t in unit.sides[_CHILD].tensors]
    sink = Digests(root, report, sha256=has_sha256)
    for run in read_runs(_CHILD, tensors):
        sink.copy(run, inputs.reader(_CHILD, run.source))
    found = {t.name: sink.digest(t) for t in tensors}
    return {name: (hasher.xxh3, hasher.sha256) for name, hasher in found.items()}


class _WholeFile(Struct, frozen=True):
    root: str
    name: str
    nbytes: int


def sha256_of_weights(child: Checkpoint, workers: Workers, listener: Listener) -> dict[str, str | None]:
    """sha256 of whole weight files: it needs their bytes in order, so each is read once more."""
    files = [_WholeFile(child.root, shard.name, shard.nbytes) for shard in child.shards]
    return dict(run_watched("sha256 of weight files", _sha256, files, workers=workers, listener=listener))


def _sha256(file: _WholeFile, report: Report) -> tuple[str, str | None]:
    with Readers() as readers:
        reader = readers.get(Path(file.root, file.name))
        return file.name, digest_range(reader, 0, file.nbytes, sha256=True, report=report).sha256
