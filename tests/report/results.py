"""Results made by hand, and pages taken apart without the code under test."""

import base64
import json
import struct
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

from chimerakit.compare import DifferenceMap, Identity, RouterDifference, UnitDifference
from chimerakit.explain import Explained
from chimerakit.records import Component, ParentRecord, Role
from chimerakit.report.saved import SavedExplanation

EVIL = "</script><img src=x onerror=alert(1)>\u202e\x1b[2J"
IDENTITY = Identity(ParentRecord({"model.safetensors": (1000, "aa")}, "cc"), {"model.norm.weight": "dd"})


class Page(HTMLParser):
    """What a browser would see: elements with attributes, texts, data of charts."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.charts: list[Any] = []
        self.texts: list[str] = []
        self._in_data = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_data = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.charts.append(json.loads(data))
            self._in_data = False
        else:
            self.texts.append(data)

    def count(self, tag: str) -> int:
        """How many elements of a kind there are."""
        return sum(found == tag for found, _ in self.elements)

    @property
    def text(self) -> str:
        """All that can be read, runs of white space as one space."""
        return " ".join(" ".join(self.texts).split())


def unpack(cells: str) -> list[float | str | None]:
    """Cells of a figure as page.js reads them: numbers, marks by number, None where nothing is."""
    data = base64.b64decode(cells)
    return [_cell(code) for (code,) in struct.iter_unpack("<H", data)]


def _cell(code: int) -> float | str | None:
    if code < 16:
        return f"mark {code}" if code else None
    exponent, digits = divmod(code - 16, 900)
    return float(f"{digits + 100}e{exponent - 52}")


def difference(unit: str, role: Role, rms: float, **sums: Any) -> UnitDifference:
    """A unit of ten numbers of the base 1 each, that differ by this RMS."""
    said = {
        "weights": 10,
        "nonfinite": 0,
        "unlike_values": 10 if rms else 0,
        "squared_difference": 10 * rms**2,
        "inner_product": 10.0,
        "squared_norm_a": 10.0,
        "squared_norm_b": 10.0,
        "largest": rms,
        "nbytes_a": 20,
        "nbytes_b": 20,
        "alike_bytes": 20,
        "unlike_bytes": 10 if rms else 0,
    }
    return UnitDifference(unit=unit, role=role, storages=("BF16", "BF16"), **(said | sums))


def map_of(units: Iterable[UnitDifference], **fields: Any) -> DifferenceMap:
    """A map of these units."""
    said: dict[str, Any] = {"only_in": {"a": (), "b": ()}, "problems": {}}
    return DifferenceMap(a=IDENTITY, b=IDENTITY, units=tuple(units), **(said | fields))


def router(layer: int, cosines: tuple[float | None, ...], **fields: Any) -> RouterDifference:
    """A layer's router whose rows keep their norms."""
    return RouterDifference(
        layer=layer, gate=f"layers.{layer}.gate", cosines=cosines, norm_changes=(0.0,) * len(cosines), **fields
    )


def explained(unit: str, component: Component, layer: int | None, shares: dict[str, float], **fields: Any) -> Explained:
    """A unit of 100 bytes: equal to a parent, or to several, or mixed."""
    verdict = "equal" if set(shares.values()) == {1.0} else "mixed"
    said: dict[str, Any] = {"role": Role(component, layer), "nbytes": 100, "verdict": verdict}
    return Explained(unit=unit, shares=shares, **(said | fields))


def explanation_of(units: Iterable[Explained], **fields: Any) -> SavedExplanation:
    """An explanation with nothing else to tell."""
    said: dict[str, Any] = {
        "child": "/models/child",
        "parents": ("v3", "r1"),
        "is_explained": True,
        "recipe": {"parents": {"v3": None, "r1": None}, "base": "v3"},
        "missing": {},
        "unlike": (),
        "undetermined": (),
        "differences": {},
    }
    return SavedExplanation(units=tuple(units), **(said | fields))
