"""Whose answers: a checkpoint by its weights, and by the texts that shape what it says.

Equal tensors give equal identities, however they are cut into files. A child is what its manifest says, so its weights need not
be read for that; whether the manifest is true is what `verify` shows.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from chimerakit.anatomy import Anatomy
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import read_manifest
from chimerakit.output import is_finished
from chimerakit.plan.memory import needs_of_scan
from chimerakit.records import Checkpoint
from chimerakit.runners.local import LOCAL
from chimerakit.scan import ScanJob, scan_jobs, scan_units
from chimerakit.stores.digest import digest_file, digest_of, digest_range

_SHAPING = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files that decide what a model is asked, and what its tokens mean."""
_SIDE = "model"


def identify(path: Path, listener: Listener) -> tuple[str, str]:
    """(weights, texts) of a checkpoint, xxh3-128 each. Reads all weights of one that has no manifest."""
    checkpoint = open_checkpoint(path)
    if checkpoint.is_folder and is_finished(path):
        digests = {name: digest for made in read_manifest(path).units for name, digest in made.tensors.items()}
        if digests.keys() != checkpoint.tensors.keys():
            digests = _read(checkpoint, listener)
    else:
        digests = _read(checkpoint, listener)
    return _of_weights(checkpoint, digests), _of_texts(checkpoint)


def _read(checkpoint: Checkpoint, listener: Listener) -> dict[str, str]:
    """The digest of every tensor."""
    units = scan_units({_SIDE: Anatomy(checkpoint).units()})
    found: dict[str, str] = {}
    sides = {_SIDE: checkpoint}
    workers = LOCAL.workers(needs_of_scan(len(units), 0, 1))
    work = "reading weights, to know whose answers"
    for digests in scan_jobs(work, _digest_job, sides, units, workers=workers, listener=listener):
        found |= digests
    return found


def _digest_job(job: ScanJob, inputs: Inputs, report: Report) -> dict[str, str]:
    tensors = [tensor for unit in job.units for tensor in unit.sides[_SIDE].tensors]
    return {t.name: digest_range(inputs.reader(_SIDE, t.file), t.start, t.nbytes, report=report).xxh3 for t in tensors}


def _of_weights(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    tensors = checkpoint.tensors
    return _over((name, tensors[name].dtype, tensors[name].shape, digests[name]) for name in sorted(tensors))


def _of_texts(checkpoint: Checkpoint) -> str:
    if checkpoint.format == "gguf":
        told = {key: value for key, value in checkpoint.config.items() if not key.startswith(("general.", "split."))}
        return _over(sorted(told.items()))
    files = {file.name for file in checkpoint.files}
    # What a config says besides (its dtype, who made it) is its bytes, too: nobody can say what a loader makes of them.
    return _over((name, digest_file(Path(checkpoint.root, name)).xxh3) for name in _SHAPING if name in files)


def _over(parts: Iterable[object]) -> str:
    return digest_of(msgspec.json.encode(list(parts)))
