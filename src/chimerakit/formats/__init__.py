"""The only code that opens weight files. `open_checkpoint` reads headers and config, never a weight."""

from pathlib import Path

from chimerakit.errors import CheckpointError
from chimerakit.records import Checkpoint


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at a folder or a weight file.

    Raises CheckpointError with everything that a careful reader would object to.
    """
    path = Path(path)
    try:
        return _open(path)
    except OSError as e:  # a folder that may not be listed or entered, a name too long
        raise CheckpointError(f"can't be read: {e.strerror}", where=e.filename or path) from e


def _open(path: Path) -> Checkpoint:
    from chimerakit.formats import gguf, safetensors

    if path.suffix == gguf.SUFFIX or (path.is_dir() and not safetensors.is_folder(path) and gguf.is_folder(path)):
        return gguf.open_gguf(path)
    return safetensors.open_safetensors(path)
