"""Small file systems of a test's own; skipped by name where nobody may mount."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

Size = str
"""As the tools take it: 24m, 400m."""


def _run(*command: object) -> None:
    subprocess.run([*map(str, command)], capture_output=True, check=True)


@cache
def may_mount() -> bool:
    """Whether this process may mount at all."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
        except (OSError, subprocess.CalledProcessError):
            return False
        _run("umount", folder)
        return True


@contextmanager
def mounted(folder: Path, *arguments: object) -> Iterator[Path]:
    """A file system for the time of a test: `mount *arguments folder`."""
    if not may_mount():
        pytest.skip("needs the right to mount")
    folder.mkdir()
    _run("mount", *arguments, folder)
    try:
        yield folder
    finally:
        try:
            _run("umount", folder)
        except subprocess.CalledProcessError:  # a failed test still holds files of it
            _run("umount", "--lazy", folder)


def make_image(file: Path, kind: str, size: Size, *options: str) -> Path:
    """An empty file system in a sparse file, for `mount -o loop`."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    _run("truncate", f"--size={size}", file)
    _run(f"mkfs.{kind}", "-q", *options, file)
    return file


@contextmanager
def disk(folder: Path, kind: str, size: Size, *options: str) -> Iterator[Path]:
    """A disk of this size: tmpfs, or a file system in a file beside the folder. options: for mkfs."""
    if kind == "tmpfs":
        with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as root:
            yield root
    else:
        image = make_image(folder.with_suffix(f".{kind}"), kind, size, *options)
        with mounted(folder, "-o", "loop", image) as root:
            yield root


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system: `size=40m`, `ro`."""
    _run("mount", "-o", f"remount,{options}", folder)
