"""What the fuzzers share: a folder in memory, since a million files are written."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a memory file system where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("fuzzing")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="chimerakit-fuzzing-") as folder:
        yield Path(folder)
