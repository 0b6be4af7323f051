"""JSON of checkpoints, read so that no two readers can disagree on what it says: of headers, indexes and configs."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from chimerakit.errors import CheckpointError
from chimerakit.stores.local import read_file

_MAX_NESTED = 100_000
"""Lists and objects in an index or a config: an empty one takes two bytes of text and a hundred of memory."""
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, where: object, parse_int: Callable[[str], float] = int) -> Any:
    """JSON whose objects have no key twice (readers disagree on which one counts) and whose texts are all Unicode."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise CheckpointError(f"has the key {twice!r} twice", where=where)
        return found

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_int=parse_int)
        if _HALF_OF_A_PAIR.search(data):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"is not UTF-8 text (byte {e.start})", where=where) from e
    except UnicodeEncodeError as e:
        raise CheckpointError("is not valid JSON: it holds half of a surrogate pair", where=where) from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"is not valid JSON: {e}", where=where) from e
    return found


def _parse_indented(data: bytes) -> Any:
    """JSON that is byte for byte as every library writes indexes and configs; None for any other, and for null.

    A third of the time of `parse_json`. A text that is what encoding gives back has no key twice, nor anything odd.
    """
    try:
        found = msgspec.json.decode(data)
        written = msgspec.json.format(msgspec.json.encode(found), indent=2)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return found if written == data.rstrip(b"\n") else None


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """The object that a file of at most `limit` bytes holds."""
    data = read_file(path, limit)
    if (count := data.count(b"[") + data.count(b"{")) > _MAX_NESTED:
        raise CheckpointError(
            "is too large", where=path, expected=f"at most {_MAX_NESTED} lists and objects", found=count
        )
    found = _parse_indented(data)
    if found is None:
        found = parse_json(data, path)
    if not isinstance(found, dict):
        raise CheckpointError("must hold a JSON object", where=path, found=type(found).__name__)
    return found
