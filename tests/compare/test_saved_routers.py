"""Routers in the file of a map: they come back, numpy reads them, and untrue ones are refused."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from chimerakit.compare import Choices, DifferenceMap, Identity, RouterDifference, States, load_map, save_map
from chimerakit.compare.saved_routers import ROUTER_MEANINGS
from chimerakit.errors import MapError
from chimerakit.records import ParentRecord

Members = dict[str, bytes]

ASKED = RouterDifference(
    layer=3,
    gate="g3",
    cosines=(1.0, 0.25, None, -1.0),
    norm_changes=(0.0, 0.5, None, -1.0),
    bias_changes=(0.125, -0.5, None, 0.0),
    choices=Choices(tokens=10, top_k=2, shared=15, same=6, loads_a=(9, 8, 2, 1), loads_b=(9, 4, 5, 2)),
)
SMALLER = RouterDifference(layer=4, gate="g4", cosines=(0.5, 0.75), norm_changes=(0.0, 0.0), objection="nobody knows")
NOTHING = Identity(ParentRecord({}, ""), {})
FOUND = DifferenceMap(
    a=NOTHING,
    b=NOTHING,
    units=(),
    only_in={"a": (), "b": ()},
    problems={},
    routers=(ASKED, SMALLER),
    states=States("synthetic", is_synthetic=True),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_map(FOUND, tmp_path / "map.npz")
    return tmp_path / "map.npz"


def test_routers_come_back_as_they_were(saved: Path) -> None:
    """Also one with fewer experts, without a bias, without choices, and figures that there are none of."""
    assert load_map(saved) == FOUND


def test_numpy_reads_routers(saved: Path) -> None:
    """By the lines that the module promises; each array has its meaning in the file."""
    with np.load(saved, allow_pickle=False) as m:
        description = json.loads(m["description.json"])
        assert [router["layer"] for router in description["routers"]] == [3, 4]
        assert np.nanmin(m["router_cosine"], axis=1).tolist() == [-1.0, 0.5]
        assert m["router_load_b"].tolist() == [[9, 4, 5, 2], [0, 0, 0, 0]]
        assert {name for name in m.files if name.startswith("router")} == set(ROUTER_MEANINGS)
    assert ROUTER_MEANINGS.items() <= description["fields"].items()
    assert description["states"] == {"source": "synthetic", "is_synthetic": True}


# ------------------------------------------------------------------------------------------ formats


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(file: Path, content: Members) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def described(content: Members, **changes: Any) -> Members:
    """The members with another description; a change to None takes a part away."""
    said = json.loads(content["description.json"]) | changes
    return content | {"description.json": json.dumps({k: v for k, v in said.items() if v is not None}).encode()}


def without_arrays(content: Members) -> Members:
    return {name: data for name, data in content.items() if not name.startswith("router")}


def test_a_map_of_the_first_format_has_no_routers(saved: Path) -> None:
    """It is read as ever: neither arrays nor description said anything of them."""
    rewrite(saved, without_arrays(described(members(saved), format=1, routers=None, states=None)))
    assert load_map(saved) == msgspec.structs.replace(FOUND, routers=(), states=None)


@pytest.mark.parametrize(("format_", "change"), [(1, lambda m: m), (2, without_arrays)])
def test_arrays_are_those_of_the_format(saved: Path, format_: int, change: Callable[[Members], Members]) -> None:
    """No more, and no fewer."""
    rewrite(saved, change(described(members(saved), format=format_)))
    with pytest.raises(MapError, match="its members are others"):
        load_map(saved)


# -------------------------------------------------------------------------------------- untrue things


def array(values: Any, dtype: str = "<f8", shape: tuple[int, ...] = (2, 4)) -> bytes:
    """An .npy file of an array that says to be of a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"
    return head + np.array(values, dtype).tobytes()


def routers_with(content: Members, number: int, **changes: Any) -> Members:
    """The members with another description of a router."""
    routers = json.loads(content["description.json"])["routers"]
    routers[number] |= changes
    return described(content, routers=routers)


def choices(**changes: int) -> dict[str, int]:
    return {"tokens": 10, "top_k": 2, "shared": 15, "same": 6} | changes


NAN = np.nan
COSINES = [[1, 0.25, NAN, -1], [0.5, 0.75, NAN, NAN]]
HUGE = 1 << 40
HOSTILE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "another shape": (
        lambda m: m | {"router_cosine.npy": array(COSINES, shape=(4, 2))},
        "router_cosine is not 2 x 4 numbers",
    ),
    "more numbers than bytes": (
        lambda m: routers_with(m, 0, experts=HUGE),
        f"router_cosine is not 2 x {HUGE} numbers",
    ),
    "fewer than no experts": (lambda m: routers_with(m, 0, experts=-1), "or has no number of experts"),
    "a router twice": (lambda m: routers_with(m, 1, gate="g3"), "a router is in it twice"),
    "more than its experts": (
        lambda m: m | {"router_cosine.npy": array([COSINES[0], [0.5, 0.75, 0.5, NAN]])},
        "the router g4 has more than its 2 experts",
    ),
    "a layer below 0": (lambda m: routers_with(m, 0, layer=-3), "or a layer below 0"),
    "a cosine above 1": (
        lambda m: m | {"router_cosine.npy": array([[1.5, 0.25, NAN, -1], COSINES[1]])},
        "router_cosine holds what is none",
    ),
    "a norm below 0": (
        lambda m: m | {"router_norm_change.npy": array([[0, 0, 0, -1.5], COSINES[1]])},
        "router_norm_change holds what is none",
    ),
    "an infinite change": (
        lambda m: m | {"router_bias_change.npy": array([[0, 0, 0, np.inf], [NAN] * 4])},
        "router_bias_change holds what is none",
    ),
    "changes of no bias": (
        lambda m: routers_with(m, 0, has_bias=False),
        "router_bias_change holds changes of g3, which has no bias",
    ),
    "loads of nobody": (lambda m: routers_with(m, 0, choices=None), "g3 chooses experts without having been asked"),
    "loads below 0": (
        lambda m: m | {"router_load_a.npy": array([[-1, 10, 10, 1], [0] * 4], "<i8")},
        "the choices of the router g3 do not add up",
    ),
    "another sum of loads": (
        lambda m: m | {"router_load_b.npy": array([[9, 4, 5, 1], [0] * 4], "<i8")},
        "the choices of the router g3 do not add up",
    ),
    "no states": (lambda m: described(m, states=None), "it does not say on what states its routers were asked"),
}
for said in (choices(tokens=0), choices(top_k=5), choices(shared=21), choices(shared=11), choices(same=11, shared=20)):
    HOSTILE[f"choices that are {said}"] = (
        lambda m, said=said: routers_with(m, 0, choices=said),  # type: ignore[misc]
        "the choices of the router g3 do not add up",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_says_untrue_things_of_routers_is_refused(saved: Path, name: str) -> None:
    """By what is wrong with it, in one error, and nothing is allocated for what it claims."""
    change, says = HOSTILE[name]
    rewrite(saved, change(members(saved)))
    with pytest.raises(MapError, match=says):
        load_map(saved)
