"""The difference map as a file that numpy reads: an .npz of one array for each sum, and a description in JSON.

    m = np.load("map.npz")
    names = [unit["unit"] for unit in json.loads(m["description.json"])["units"]]
    rms = np.sqrt(m["squared_difference"] / (m["weights"] - m["nonfinite"]))

Nothing in it depends on when, where or with how many threads it was made, so the same comparison gives the same bytes. It is
stored, not compressed: what is read is never larger than the file, whoever wrote it.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from chimerakit._version import __version__
from chimerakit.compare.arrays import DamageError, DType, decode_array, encode_array
from chimerakit.compare.difference import DifferenceMap, Identity, Sums, UnitDifference
from chimerakit.compare.saved_routers import (
    ROUTER_MEANINGS,
    DescribedRouter,
    decode_routers,
    describe_routers,
    encode_routers,
)
from chimerakit.compare.states import States
from chimerakit.errors import MapError
from chimerakit.records import Role
from chimerakit.stores.local import read_file
from chimerakit.stores.part import write_file

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 2
"""The first had no routers."""
DESCRIPTION = "description.json"
MEANINGS = {
    "weights": "pairs of values of a (the base) and b; values are code x scale in float32",
    "nonfinite": "pairs in which a value is NaN or infinite; they are left out of everything below but bytes",
    "unlike_values": "pairs of unlike numbers",
    "squared_difference": "sum of (a - b)^2; the RMS is sqrt(squared_difference / (weights - nonfinite))",
    "inner_product": "sum of a * b; the cosine is inner_product / sqrt(squared_norm_a * squared_norm_b)",
    "squared_norm_a": "sum of a^2",
    "squared_norm_b": "sum of b^2",
    "largest": "largest |a - b|",
    "nbytes_a": "bytes as a stores it, scales included",
    "nbytes_b": "bytes as b stores it",
    "alike_bytes": "those bytes where a and b store with the same dtypes, else 0",
    "unlike_bytes": "of these, bytes that differ",
}
"""What each array holds, unit by unit in the order of `units`."""
_FIELDS = {1: {*MEANINGS}, FORMAT: {*MEANINGS, *ROUTER_MEANINGS}}
"""The arrays of each format that can be read."""

_MAX_NBYTES = 256 << 20
"""A model of a million units comes near."""
_END = struct.Struct("<4s4H2LH")
"""The end of a zip file: mark, four numbers of disks and entries, size and place of the directory, length of a remark."""
_LOCATOR = 20
"""Bytes before that, where a larger zip file says where another end is; this one has none."""
_MAX_DIRECTORY = 4096
"""Bytes of the directory of so few members."""
_YEAR = (1980, 1, 1, 0, 0, 0)
"""The time that every member says: the first that a zip file can."""


class _Described(Struct, frozen=True, gc=False):
    unit: str
    role: Role
    storages: tuple[str, str]


class _Version(Struct, frozen=True):
    """What can be read of a description of any format."""

    format: int
    chimerakit: str


class _Description(Struct, frozen=True):
    """Everything that is no number; the first lines tell a reader what this is."""

    what: str
    format: int
    chimerakit: str
    fields: dict[str, str]
    a: Identity
    b: Identity
    only_in: dict[Literal["a", "b"], tuple[str, ...]]
    problems: dict[str, str]
    units: tuple[_Described, ...]
    routers: tuple[DescribedRouter, ...] = ()
    states: States | None = None


# ------------------------------------------------------------------------------------------- writing


def save_map(found: DifferenceMap, path: Path | str) -> None:
    """Write the map, whole or not at all. Raises OutputError."""
    write_file(Path(path), encode_map(found))


def encode_map(found: DifferenceMap) -> bytes:
    """The bytes of a map's file; the same for the same map."""
    description = _Description(
        what="difference map of two checkpoints, by chimerakit compare",
        format=FORMAT,
        chimerakit=__version__,
        fields=MEANINGS | ROUTER_MEANINGS,
        a=found.a,
        b=found.b,
        only_in=found.only_in,
        problems=found.problems,
        units=tuple(_Described(unit.unit, unit.role, unit.storages) for unit in found.units),
        routers=describe_routers(found.routers),
        states=found.states,
    )
    arrays = {field: _encode_column(field, found.units) for field in MEANINGS} | encode_routers(found.routers)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(DESCRIPTION, _YEAR), msgspec.json.encode(description))
        for field, data in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{field}.npy", _YEAR), data)
    return memory.getvalue()


def _encode_column(field: str, units: tuple[UnitDifference, ...]) -> bytes:
    return encode_array([getattr(unit, field) for unit in units], _dtype(field), (len(units),))


def _dtype(field: str) -> DType:
    return "<i8" if Sums.__annotations__[field] is int else "<f8"


# ------------------------------------------------------------------------------------------- reading


def load_map(path: Path | str) -> DifferenceMap:
    """Read a map. Raises MapError for a file that is none, or a damaged one; CheckpointError if it can't be read."""
    path = Path(path)
    data = read_file(path, _MAX_NBYTES)
    try:
        members = _members(data)
        description = _describe(members.pop(DESCRIPTION))
        arrays = {name.removesuffix(".npy"): content for name, content in members.items()}
        if set(arrays) != _FIELDS[description.format]:
            raise DamageError("its members are others")
        columns = {field: _decode_column(field, arrays[field], len(description.units)) for field in MEANINGS}
        routers = decode_routers(description.routers, arrays) if description.format > 1 else ()
        if description.states is None and any(router.choices or router.objection for router in routers):
            raise DamageError("it does not say on what states its routers were asked")
        return DifferenceMap(
            a=description.a,
            b=description.b,
            units=_units(description, columns),
            only_in=description.only_in,
            problems=description.problems,
            routers=routers,
            states=description.states,
        )
    except _DAMAGES as e:
        raise MapError(
            f"this is no difference map, or a damaged one: {e}",
            where=path,
            do="make it again: chimerakit compare A B -o MAP.npz",
        ) from e


# Whatever zipfile raises for a directory that says odd things, besides what is looked for here.
_DAMAGES = (
    DamageError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
    msgspec.DecodeError,
)


def _members(data: bytes) -> dict[str, bytes]:
    """The members of a zip file, nothing of which is packed."""
    start = len(data) - _END.size
    if start < 0 or data[start : start + 4] != b"PK\5\6":
        raise DamageError("it does not end as one")
    if _END.unpack_from(data, start)[5] > _MAX_DIRECTORY or data[max(0, start - _LOCATOR) :].startswith(b"PK\6\7"):
        raise DamageError("its directory is too large")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = sorted(entry.filename for entry in entries)
        if names not in [sorted([DESCRIPTION, *(f"{name}.npy" for name in fields)]) for fields in _FIELDS.values()]:
            raise DamageError("its members are others")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise DamageError("a member is compressed")
        if sum(entry.file_size for entry in entries) > len(data):
            raise DamageError("its members are larger than the file")
        return {entry.filename: archive.read(entry) for entry in entries}


def _describe(text: bytes) -> _Description:
    version = msgspec.json.decode(text.decode("utf-8"), type=_Version)
    if version.format not in _FIELDS:
        raise DamageError(f"it is of format {version.format}, by chimerakit {version.chimerakit}")
    found = msgspec.json.decode(text, type=_Description)
    if len({unit.unit for unit in found.units}) != len(found.units):
        raise DamageError("a unit is in it twice")
    return found


def _decode_column(field: str, data: bytes, count: int) -> "npt.NDArray[Any]":
    """One number for each unit, as it can be among sums."""
    import numpy as np

    values = decode_array(field, data, _dtype(field), (count,))
    if not np.isfinite(values).all() or (field != "inner_product" and (values < 0).any()):
        raise DamageError(f"{field} holds what is no sum")
    return values


def _units(description: _Description, columns: "dict[str, npt.NDArray[Any]]") -> tuple[UnitDifference, ...]:
    pairs = columns["weights"] - columns["nonfinite"]
    if (columns["unlike_values"] > pairs).any() or (columns["unlike_bytes"] > columns["alike_bytes"]).any():
        raise DamageError("more is counted than there is")
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return tuple(
        UnitDifference(unit=said.unit, role=said.role, storages=said.storages, **dict(zip(columns, row, strict=True)))
        for said, row in zip(description.units, rows, strict=True)
    )
