"""Special files: a pipe, a socket or a folder in place of a weight file, a config, a manifest or a recipe.

Tries to make a reader wait for ever, or to read without end. Stopped by opening without waiting and by taking regular
files only.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _make_socket])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_what_is_no_file_is_no_part_of_a_parent(
    tmp_path: Path, attempt: Attacker, name: str, make: Callable[[Path], None]
) -> None:
    """Something else in place of a parent's file is refused, not waited for."""
    if name != "model.safetensors":
        write_header(tmp_path / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    make(tmp_path / name)
    done = attempt("plan", "--parent", f"v3={tmp_path}")
    if name == "model.safetensors.index.json":  # without an index that is a file, the one weight file is the model
        done.check_cheap()
    else:
        done.check_refused(str(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _make_socket])
def test_what_is_no_file_is_no_manifest_and_no_recipe(
    tmp_path: Path, attempt: Attacker, make: Callable[[Path], None]
) -> None:
    """Something else in place of a manifest or a recipe is as good as nothing."""
    make(tmp_path / "chimerakit.json")
    attempt("verify", tmp_path).check_refused("there is no manifest")
    attempt("plan", tmp_path / "chimerakit.json").check_refused("there is no such recipe")
