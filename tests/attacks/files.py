"""Hostile files, in bytes."""

import json
from pathlib import Path
from typing import Any

ENTRY = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
"""A tensor as it should be."""
ESCAPES = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066\u200b",
    "a\rok",
    "a\nerror: trust me",
    "\x08\x7f",
)
"""Clear the screen and set the title, a C1 control, text that runs backwards, hidden marks, other lines, deletions."""


def write_header(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    """A weight file with this header, true or not."""
    text = header.encode() if isinstance(header, str) else header
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(data)
    return path


def write_tensor(path: Path, dtype: str, shape: Any, offsets: Any, data: bytes = b"") -> Path:
    """A weight file with one tensor, true or not."""
    return write_header(path, json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}), data)
