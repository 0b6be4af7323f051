"""What one checkpoint holds: components, layers, bytes, parameters, what is odd, and who made it.

    records.py    what is found
    parts.py      units of a kind together; parameters
    findings.py   what is wrong, what is odd, who made it
    values.py     one reading pass: a census of each unit

Headers and config say all of that; no weight is read. With `values` every weight is read once, for what only numbers
show: NaN and infinity, FP8 codes at their largest, scales that can't be right. docs/inspect.md says how each figure is
counted. A figure that neither headers nor config say is None: unknown, never guessed.
"""

from contextlib import suppress
from pathlib import Path

from chimerakit.anatomy import GENERIC, Anatomy
from chimerakit.errors import CheckpointError
from chimerakit.events import Listener, ignore
from chimerakit.formats import open_checkpoint
from chimerakit.inspect.findings import find_objections, find_provenance, note_oddities, say_quantization
from chimerakit.inspect.parts import count_parameters, make_parts
from chimerakit.inspect.records import Inspection
from chimerakit.inspect.values import take_censuses
from chimerakit.manifest import MANIFEST, WORKSPACE, read_manifest
from chimerakit.output import is_finished
from chimerakit.records import Checkpoint
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL


def inspect_checkpoint(
    path: Path | str,
    *,
    values: bool = False,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> Inspection:
    """Look at a folder or a weight file: at headers and config only, unless `values` are asked for.

    runner: where jobs are done. Raises CheckpointError for a damaged checkpoint, ManifestError or RecipeError for a damaged manifest, ManifestError for a child too unfinished to be opened,
    PlanError if one job needs more memory.
    """
    path = Path(path)
    checkpoint = _open(path)
    root = Path(checkpoint.root) if checkpoint.is_folder else Path(checkpoint.root, checkpoint.shards[0].name)
    manifest = read_manifest(root) if (root / MANIFEST).is_file() else None
    anatomy = Anatomy(checkpoint)
    units = anatomy.units()
    provenance = None if manifest is None else find_provenance(manifest, units)
    censuses = take_censuses(anatomy, units, runner, listener) if values else None
    parts = tuple(make_parts(units.values(), censuses))
    has_table = anatomy.family.name != GENERIC
    return Inspection(
        root=str(root),
        model_type=checkpoint.model_type,
        family=anatomy.family.name,
        weight_files=len(checkpoint.shards),
        nbytes=checkpoint.nbytes,
        tensors=len(checkpoint.tensors),
        units=len(units),
        layers=len({layer for part in parts if not part.mtp for layer in part.layers}),
        mtp_layers=len({layer for part in parts if part.mtp for layer in part.layers}),
        experts_per_token=anatomy.number(anatomy.family.experts_per_token),
        quantization=say_quantization(checkpoint.config),
        parameters=count_parameters(anatomy, parts),
        parts=parts,
        unknown=tuple(name for name, u in units.items() if not u.role.known) if has_table else (),
        findings=tuple(find_objections(anatomy, units, parts, manifest, censuses)),
        notes=tuple(note_oddities(anatomy, parts, censuses)),
        files=checkpoint.files,
        left_out=checkpoint.left_out,
        is_unfinished=(root / WORKSPACE).is_dir() and not is_finished(root),
        provenance=provenance,
        values=censuses,
    )


def _open(path: Path) -> Checkpoint:
    """The checkpoint; a child that has no index yet is said to be unfinished, not damaged."""
    try:
        return open_checkpoint(path)
    except CheckpointError:
        with suppress(OSError):  # a folder that may not be entered
            if (path / WORKSPACE).is_dir() and not (path / MANIFEST).is_file():
                read_manifest(path)
        raise
