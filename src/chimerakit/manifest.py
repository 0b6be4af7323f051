"""chimerakit.json: all receipts with recipe, parents and plan; written last, read first when a child is checked.

It holds no times, hosts or paths, so the same merge gives the same manifest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from chimerakit._version import __version__
from chimerakit.errors import ManifestError
from chimerakit.numerics import VERSION as NUMERICS
from chimerakit.recipe import MAX_TEXT, recipe_to_data
from chimerakit.records import (
    Made,
    MadeRow,
    Manifest,
    OtherFile,
    ParentRecord,
    Plan,
    Receipt,
    Shard,
    WeightFile,
)
from chimerakit.stores.digest import digest_of
from chimerakit.stores.local import read_file

MANIFEST = "chimerakit.json"
_MAX_RECIPE = 4 * MAX_TEXT
"""Bytes; as JSON a recipe is longer than as YAML."""
WORKSPACE = ".chimerakit"
"""The folder in a child that is only there while the child grows."""
FORMAT = 1
_MAX_NBYTES = 256 << 20
"""A model of a million tensors comes near."""


class _Intent(msgspec.Struct):
    """The recipe in a manifest, before it is read."""

    recipe: msgspec.Raw


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished child."""
    file = path / MANIFEST
    if not file.is_file():
        unfinished = (path / WORKSPACE).is_dir()
        raise ManifestError(
            "this child is unfinished: it has no manifest yet" if unfinished else "there is no manifest",
            where=path,
            expected=MANIFEST,
            do="run the same merge again to finish it"
            if unfinished
            else "compare with its parents: verify --table --parent ...",
        )
    if (nbytes := file.stat().st_size) > _MAX_NBYTES:
        raise ManifestError("the manifest is too large", where=file, expected=f"at most {_MAX_NBYTES}", found=nbytes)
    try:
        text = read_file(file, _MAX_NBYTES).decode("utf-8")  # msgspec passes over unknown keys without looking at them
        # The only part of any shape: lists of nothing would fill memory with twenty times their text.
        if len(msgspec.json.decode(text, type=_Intent).recipe) > _MAX_RECIPE:
            raise ManifestError("its recipe is too long", where=file, expected=f"at most {_MAX_RECIPE} bytes")
        found = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ManifestError(f"the manifest can't be read: {e}", where=file) from e
    if found.format != FORMAT or found.numerics != NUMERICS:
        raise ManifestError(
            "the manifest is of another version",
            where=file,
            expected=f"format {FORMAT}, numerics {NUMERICS}",
            found=f"format {found.format}, numerics {found.numerics}, by chimerakit {found.chimerakit}",
            do="use the chimerakit that wrote it",
        )
    return found


def make_manifest(
    plan: Plan,
    receipts: Sequence[Receipt],
    files: Mapping[str, OtherFile],
    sha256: Mapping[str, str | None],
    *,
    allow_nonfinite: bool,
) -> Manifest:
    """The manifest of a child whose jobs have these receipts. sha256: of each weight file, where it was asked for.

    allow_nonfinite stands in it only if it was needed, so the option alone makes no other manifest.
    """
    made = {m.unit: m for receipt in receipts for m in receipt.made}
    headers = {name: digest for receipt in receipts for name, digest in receipt.headers.items()}
    return Manifest(
        format=FORMAT,
        chimerakit=__version__,
        numerics=NUMERICS,
        recipe=recipe_to_data(plan.recipe),
        plan=plan.digest,
        family=plan.family,
        parents={name: parent_record(c.shards, c.config) for name, c in plan.parents.items()},
        allow_nonfinite=allow_nonfinite and any(m.nonfinite for m in made.values()),
        imatrix=UNSET if plan.imatrix is None else plan.imatrix.digest,
        weights={s.name: WeightFile(s.nbytes, s.header.nbytes, headers[s.name], sha256[s.name]) for s in plan.shards},
        files=dict(sorted(files.items())),
        units=tuple(_made_row(plan, number, made[row.unit]) for number, row in enumerate(plan.rows)),
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The text of a manifest; the same for the same manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def is_as_encoded(path: Path, manifest: Manifest) -> bool:
    """Whether the file is this manifest as it is written: no key twice, none that means nothing, none left out."""
    return read_file(path / MANIFEST, _MAX_NBYTES) == encode_manifest(manifest)


def parent_record(shards: Sequence[Shard], config: Mapping[str, Any]) -> ParentRecord:
    """A parent, by what its headers say."""
    return ParentRecord(
        {s.name: (s.nbytes, s.header_digest) for s in shards},
        digest_of(msgspec.json.encode(config, order="deterministic")),
    )


def _made_row(plan: Plan, number: int, made: Made) -> MadeRow:
    row = plan.rows[number]
    return MadeRow(
        unit=row.unit,
        rule=row.rule,
        parents={part.parent: part.share for part in row.inputs},
        outcome=made.outcome,
        tensors=made.digests,
        sha256=made.sha256,
        rms_error=made.rms_error,
        nonfinite=made.nonfinite,
    )
