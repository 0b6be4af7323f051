"""Results read back: what the verbs wrote, and nothing that only looks like it."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.cli.explained import explanation_view
from chimerakit.cli.inspected import inspection_view
from chimerakit.compare import save_map
from chimerakit.errors import ChimerakitError, ResultError
from chimerakit.explain import Explanation
from chimerakit.inspect import inspect_checkpoint
from chimerakit.inspect.records import Inspection
from chimerakit.numerics.cells import Interval
from chimerakit.recipe import parse_recipe
from chimerakit.records import Role
from chimerakit.report import load_result, make_report, saved
from chimerakit.report.saved import SavedExplanation
from tests import synthetic
from tests.report.results import difference, explained, map_of

UNITS = (
    explained("norm", "norm", 0, {"v3": 1.0, "r1": 1.0}),
    explained("q", "attention", 1, {"v3": 0.25, "r1": 0.75}, rule=0, ranges={"r1": Interval(0.749, 0.751)}),
    explained("o", "attention", 1, {}, verdict="unexplained", why="no parent has it"),
)
EXPLANATION = Explanation(
    parents=("v3", "r1"),
    recipe=parse_recipe("parents: {v3: , r1: }\nbase: v3\nrules: [{mix: {r1: 0.75}, components: attention}]"),
    units=UNITS,
    missing={"v3": ("lost",), "r1": ()},
    unlike=("config.json: another",),
    undetermined=("1 unit",),
    differences={"v3": (), "r1": ("tokenizer.json: another",)},
)
CHILD = Path("/models/child")


@pytest.fixture(scope="module")
def explanation_json() -> bytes:
    return msgspec.json.encode(explanation_view(EXPLANATION, CHILD, detail=True))


@pytest.fixture(scope="module")
def inspection(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspect_checkpoint(synthetic.make(tmp_path_factory.mktemp("made") / "it", 1, "fp8"), values=True)


@pytest.fixture(scope="module")
def inspection_json(inspection: Inspection) -> bytes:
    return msgspec.json.encode(inspection_view(inspection, detail=True))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "result.json"
    path.write_bytes(data)
    return path


def test_an_explanation_comes_back(tmp_path: Path, explanation_json: bytes) -> None:
    """Everything that was found out, unit by unit; and the recipe in its own language."""
    result = load_result(written(tmp_path, explanation_json))
    back = result.found
    assert isinstance(back, SavedExplanation)
    assert (result.name, back.child) == ("result.json", str(CHILD))
    assert back.parsed_recipe == EXPLANATION.recipe
    for name in ("parents", "units", "missing", "unlike", "undetermined", "differences", "is_explained"):
        assert getattr(back, name) == getattr(EXPLANATION, name), name


def test_an_inspection_comes_back(tmp_path: Path, inspection: Inspection, inspection_json: bytes) -> None:
    """The very record, with the census of every unit."""
    assert load_result(written(tmp_path, inspection_json)).found == inspection


def test_a_map_comes_back(tmp_path: Path) -> None:
    """From its .npz, by the way that compare --map takes."""
    found = map_of([difference("norm", Role("norm", 0), 0.5)])
    save_map(found, tmp_path / "m.npz")
    assert load_result(tmp_path / "m.npz").found == found


# --------------------------------------------------------------------------------------------- refused


def changed(data: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(data) | fields).encode()


def refusal(path: Path) -> str:
    with pytest.raises(ResultError) as refused:
        load_result(path)
    return str(refused.value)


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-100], "Input data was truncated"),
    "empty": (lambda _: b"", "Input data was truncated"),
    "a recipe": (lambda _: b"base: v3", "JSON is malformed"),
    "compare's JSON": (lambda _: b'{"is_complete": true, "units": []}', "missing required field `what`"),
    "another result": (lambda data: changed(data, what="measurement"), "Invalid enum value 'measurement'"),
    "a later format": (lambda data: changed(data, format=2), "it is of format 2, by chimerakit "),
    "without units": (lambda data: changed(data, detail=False), "it was saved without --detail"),
    "another type": (lambda data: changed(data, units="none"), "Expected `array`, got `str` - at `$.units`"),
    "a unit twice": (lambda data: changed(data, units=2 * json.loads(data)["units"]), "a unit is in it twice"),
    "no recipe": (lambda data: changed(data, recipe={"base": 3}), "recipe"),
    "a zip file": (lambda _: b"PK\3\4", "this is no difference map, or a damaged one"),
    "nested": (lambda data: changed(data)[:-1] + b', "x": ' + b"[" * 10**6, "this is no saved result"),
    "no text": (lambda data: data.replace(b"v3", b"\xff\xfe", 1), "can't decode byte 0xff"),
    "half a character": (
        lambda data: data.replace(b'"child":"', b'"child":"\\ud800', 1),
        "this is no saved result",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_result_is_refused_with_the_reason(tmp_path: Path, explanation_json: bytes, case: str) -> None:
    """One error that names the file, says what is wrong, and how to save a result."""
    damage, says = REFUSED[case]
    path = written(tmp_path, damage(explanation_json))
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert says in text
    assert "chimerakit compare A B -o " in text


def test_numbers_that_nobody_counted_are_refused(tmp_path: Path, inspection_json: bytes) -> None:
    """Counts of hundreds of digits, which would take the page's arithmetic apart."""
    assert "this is no saved result" in refusal(written(tmp_path, changed(inspection_json, nbytes=10**400)))


def test_a_large_file_is_not_read(tmp_path: Path, explanation_json: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in it."""
    monkeypatch.setattr(saved, "_MAX_NBYTES", 1000)
    with pytest.raises(ChimerakitError, match="expected: at most 1000 bytes"):
        load_result(written(tmp_path, explanation_json))


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    """The three commands."""
    text = refusal(tmp_path / "none.json")
    assert "there is no such result" in text
    assert "chimerakit explain CHILD --parent NAME=PATH --json --detail > explanation.json" in text
    assert "chimerakit inspect CHECKPOINT --json --detail > inspection.json" in text


ODD: list[Any] = [
    None,
    True,
    -1,
    2**63,
    10**30,
    -0.5,
    1e300,
    "",
    "layer",
    "\U0001f40d",
    [],
    {},
    [[]],
    [-1, 2**40],
    {"": 1e300},
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what holds it, and the key there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


@given(st.data())
def test_changed_results_are_shown_or_refused(
    tmp_path: Path, explanation_json: bytes, inspection_json: bytes, data: st.DataObject
) -> None:
    """Some values replaced by odd ones: there is a page, or one of our errors; nothing else is raised."""
    document = json.loads(data.draw(st.sampled_from([explanation_json, inspection_json])))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(list(places(document))))
        holder[key] = data.draw(st.sampled_from(ODD))
    path = written(tmp_path, json.dumps(document).encode())
    with suppress(ChimerakitError):
        make_report([load_result(path)])
