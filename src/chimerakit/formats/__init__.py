"""The only code that opens weight files. `open_checkpoint` reads headers and config, never a weight."""

from pathlib import Path

from chimerakit.errors import CheckpointError
from chimerakit.records import Checkpoint, Shard
from chimerakit.stores.local import Reader


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at a folder or a weight file.

    Raises CheckpointError with everything that a careful reader would object to.
    """
    path = Path(path)
    try:
        return _open(path)
    except OSError as e:  # a folder that may not be listed or entered, a name too long
        raise CheckpointError(f"can't be read: {e.strerror}", where=e.filename or path) from e


def used_padding(checkpoint: Checkpoint, shard: Shard) -> str | None:
    """Where between the tensors of a file something stands that is no zero; None if nothing does."""
    tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.file == shard.name]
    reader = Reader(Path(checkpoint.root, shard.name))
    try:
        at = shard.header_nbytes
        for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)):
            if any(reader.read(at, tensor.start - at)):
                return f"before {tensor.name}"
            at = tensor.start + tensor.nbytes
        return "at its end" if any(reader.read(at, shard.nbytes - at)) else None
    finally:
        reader.close()


def _open(path: Path) -> Checkpoint:
    from chimerakit.formats import gguf, safetensors

    if path.suffix == gguf.SUFFIX or (path.is_dir() and not safetensors.is_folder(path) and gguf.is_folder(path)):
        return gguf.open_gguf(path)
    return safetensors.open_safetensors(path)
