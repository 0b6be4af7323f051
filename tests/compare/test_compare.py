"""The difference map, against float64 sums by torch over tensors that safetensors reads."""

import json
import math
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chimerakit import compare
from chimerakit.compare import (
    DifferenceMap,
    UnitDifference,
    compare_checkpoints,
    distances,
    load_map,
    measure_units,
    save_map,
    summarize_map,
    thresholds,
)
from chimerakit.compare.saved import MEANINGS, encode_map
from chimerakit.compare.saved_routers import ROUTER_MEANINGS
from chimerakit.errors import CheckpointError, ChimerakitError, MapError, OutputError, PlanError
from chimerakit.events import Advanced, Started
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint, ParentRecord, Role
from chimerakit.runners.local import Threads
from chimerakit.scan import cut_jobs
from chimerakit.stores.journal import Journal
from chimerakit.stores.local import Reader
from tests import naive, synthetic
from tests.effort import examples
from tests.merging import LeftError, leave_after

pytestmark = pytest.mark.usefixtures("one_thread")

EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
PAIRS = [
    ("bf16", "bf16"),
    ("f16", "f32"),
    ("fp8", "fp8"),
    ("e8m0", "e8m0"),
    ("bf16", "fp8"),
    ("fp8", "ue8m0"),
]


Compared = tuple[tuple[Checkpoint, Checkpoint], DifferenceMap]


def make(folder: Path, a: str = "bf16", b: str = "bf16") -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints that share a norm, and nothing else."""
    first, second = synthetic.tensors_of(1, a), synthetic.tensors_of(2, b)
    second[NORM] = first[NORM]
    root_a = synthetic.write_checkpoint(folder / "a", first, synthetic.config_of(a))
    root_b = synthetic.write_checkpoint(folder / "b", second, synthetic.config_of(b), shards=2, shuffle=5)
    return open_checkpoint(root_a), open_checkpoint(root_b)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    return make(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def found(pair: tuple[Checkpoint, Checkpoint]) -> DifferenceMap:
    return compare_checkpoints(*pair)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def stored_otherwise(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Compared:
    """Two sides of some storages, and their map."""
    sides = make(tmp_path_factory.mktemp("sides"), *request.param)
    return sides, compare_checkpoints(*sides)


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of few units, so that there are many of them."""
    monkeypatch.setattr(compare, "cut_jobs", partial(cut_jobs, segment_nbytes=200_000))


def by_unit(found: DifferenceMap) -> dict[str, UnitDifference]:
    return {unit.unit: unit for unit in found.units}


def decoded(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Values by unit: code x scale rounded to float32, then as float64."""
    loaded, _ = naive.load(Path(checkpoint.root))
    return {name: naive.term(1.0, *stored).double() for name, stored in loaded.items()}


def raw(checkpoint: Checkpoint) -> dict[str, list[tuple[torch.dtype, bytes]]]:
    loaded, _ = naive.load(Path(checkpoint.root))
    return {name: [naive.bytes_of(tensor) for tensor in stored] for name, stored in loaded.items()}


def check_figures(sums: compare.Sums, x: torch.Tensor, y: torch.Tensor) -> None:
    """Figures of sums are those of all values at once."""
    assert sums.weights == x.numel()
    assert sums.rms == pytest.approx(float((x - y).norm()) / math.sqrt(x.numel()), rel=1e-12)
    assert sums.relative_rms == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-12)
    assert sums.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-12)
    assert sums.largest == float((x - y).abs().max())
    assert sums.changed_values == float((x != y).double().mean())


# --------------------------------------------------------------------------------------------- units


def test_figures_of_units_are_those_of_float64(stored_otherwise: Compared) -> None:
    """For every unit of every storage, alike or not, each figure agrees with torch on the decoded tensors."""
    sides, found = stored_otherwise
    first, second = (decoded(side) for side in sides)
    assert [unit.unit for unit in found.units] == [n for n in sides[0].tensors if not n.endswith("_scale_inv")]
    assert found.is_complete
    for unit in found.units:
        check_figures(unit, first[unit.unit].reshape(-1), second[unit.unit].reshape(-1))


def test_changed_bytes_are_counted_where_both_store_alike(stored_otherwise: Compared) -> None:
    """Scales count, too; where dtypes differ no byte has a meaning in common, and the share is NaN."""
    sides, found = stored_otherwise
    first, second = (raw(side) for side in sides)
    for unit in found.units:
        x, y = first[unit.unit], second[unit.unit]
        assert (unit.nbytes_a, unit.nbytes_b) == tuple(sum(len(data) for _, data in side) for side in (x, y))
        if [dtype for dtype, _ in x] != [dtype for dtype, _ in y]:
            assert math.isnan(unit.changed_bytes)
        else:
            mine, theirs = (b"".join(data for _, data in side) for side in (x, y))
            assert unit.changed_bytes == sum(p != q for p, q in zip(mine, theirs, strict=True)) / len(mine)


def test_every_weight_byte_is_read_once(pair: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the few that say whose map it is, and routers; and what is reported as done adds up to all of them."""
    read: list[int] = []
    done: list[int] = []
    real = Reader.read_into

    def count(self: Reader, buffer: memoryview, start: int) -> None:
        read.append(len(buffer))
        real(self, buffer, start)

    monkeypatch.setattr(Reader, "read_into", count)
    monkeypatch.setattr(compare, "_fingerprint", lambda *_: {})
    monkeypatch.setattr(compare, "compare_routers", lambda *_, **__: [])
    compare_checkpoints(*pair, listener=lambda e: done.append(e.amount) if isinstance(e, Advanced) else None)
    expected = sum(t.nbytes for side in pair for t in side.tensors.values())
    assert (sum(read), sum(done)) == (expected, expected)


def test_what_is_equal_has_norms_all_the_same(pair: tuple[Checkpoint, Checkpoint]) -> None:
    """A unit with the same bytes differs by nothing, and its norms are known, so that roll-ups are exact."""
    found = compare_checkpoints(pair[0], pair[0])
    expected = decoded(pair[0])
    for unit in found.units:
        assert (unit.rms, unit.relative_rms, unit.largest, unit.changed_bytes) == (0, 0, 0, 0)
        assert unit.cosine == pytest.approx(1, rel=1e-15)
        assert unit.squared_norm_a == unit.squared_norm_b
        assert unit.squared_norm_a == pytest.approx(float(expected[unit.unit].square().sum()), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pairs_that_are_not_finite_are_counted_and_named_by_no_figure(tmp_path: Path, bad: float) -> None:
    """Figures are of the other pairs, the map is not complete, and no delta is larger than the unit's distance."""
    first, second = synthetic.tensors_of(1), synthetic.tensors_of(2)
    first[EXPERT][0, 3] = second[EXPERT][5, 5] = bad
    config = synthetic.config_of("bf16")
    roots = [synthetic.write_checkpoint(tmp_path / n, t, config) for n, t in (("a", first), ("b", second))]
    sides = [open_checkpoint(root) for root in roots]
    found = compare_checkpoints(*sides)
    unit = by_unit(found)[EXPERT]
    x, y = (torch.from_numpy(t[EXPERT].astype(np.float64)).reshape(-1) for t in (first, second))
    is_finite = x.isfinite() & y.isfinite()
    assert unit.nonfinite == 2
    assert unit.rms == pytest.approx(float((x - y)[is_finite].square().mean().sqrt()), rel=1e-12)
    assert not found.is_complete
    assert distances(found, *sides)[EXPERT] == math.inf


def test_a_nan_code_is_a_pair_like_any_other(tmp_path: Path) -> None:
    """FP8's NaN, which the fast kernels do not take, leaves the other pairs as they are."""
    first, second = synthetic.tensors_of(1, "fp8"), synthetic.tensors_of(2, "fp8")
    first[EXPERT][7, 70] = np.nan
    config = synthetic.config_of("fp8")
    roots = [synthetic.write_checkpoint(tmp_path / n, t, config) for n, t in (("a", first), ("b", second))]
    sides = open_checkpoint(roots[0]), open_checkpoint(roots[1])
    unit = by_unit(compare_checkpoints(*sides))[EXPERT]
    x, y = (decoded(side)[EXPERT].reshape(-1) for side in sides)
    assert unit.nonfinite == 1
    assert unit.rms == pytest.approx(float((x - y)[x.isfinite()].square().mean().sqrt()), rel=1e-12)


def test_only_the_units_asked_for_are_read(pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap) -> None:
    """Whose distances are those of a whole map; nothing is said of other units."""
    total: list[int] = []
    some = measure_units(
        *pair, {EXPERT, NORM}, listener=lambda e: total.append(e.total) if isinstance(e, Started) else None
    )
    assert some == {name: distances(found, *pair)[name] for name in (NORM, EXPERT)}
    assert total == [sum(side.tensors[name].nbytes for side in pair for name in (NORM, EXPERT))]


def test_what_can_not_be_compared_is_listed_with_the_reason(tmp_path: Path) -> None:
    """Units of one side only, of other shapes, of storages that can't be decoded; all others are compared."""
    first, second = synthetic.tensors_of(1), synthetic.tensors_of(2)
    del first["lm_head.weight"], second["model.norm.weight"]
    second[NORM] = second[NORM][:100].copy()
    second[EXPERT] = (second[EXPERT].astype(np.float32) * 100).astype(np.int32)
    config = synthetic.config_of("bf16")
    roots = [synthetic.write_checkpoint(tmp_path / n, t, config) for n, t in (("a", first), ("b", second))]
    found = compare_checkpoints(open_checkpoint(roots[0]), open_checkpoint(roots[1]))
    assert found.only_in == {"a": ("model.norm.weight",), "b": ("lm_head.weight",)}
    assert found.problems == {
        NORM: "the shapes differ: [200] in a, [100] in b",
        EXPERT: "b: values stored as I32 can't be compared",
    }
    assert set(by_unit(found)) == (set(first) & set(second)) - set(found.problems)
    assert not found.is_complete


def test_units_of_nothing_differ_by_nothing(tmp_path: Path) -> None:
    """Tensors without elements, and a base of zeros, have figures that can be shown."""
    zeros, ones = np.zeros(8, np.float32), np.ones(8, np.float32)
    empty = np.zeros((0, 4), np.float32)
    first, second = {"empty": empty, "zeros": zeros, "both": zeros}, {"empty": empty, "zeros": ones, "both": zeros}
    sides = [synthetic.write_checkpoint(tmp_path / n, t, {}, shards=1) for n, t in (("a", first), ("b", second))]
    units = by_unit(compare_checkpoints(*map(open_checkpoint, sides)))
    assert (units["empty"].rms, units["empty"].relative_rms) == (0, 0)
    assert (units["zeros"].rms, units["zeros"].relative_rms, units["both"].relative_rms) == (1, math.inf, 0)
    assert math.isnan(units["zeros"].cosine)


@pytest.mark.usefixtures("small_jobs")
def test_the_map_is_the_same_for_any_number_of_threads(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap
) -> None:
    """To the last bit, however units are cut into jobs."""
    for threads in (1, 5):
        assert encode_map(compare_checkpoints(*pair, runner=Threads(threads))) == encode_map(found)


def test_too_little_memory_is_refused_before_reading(pair: tuple[Checkpoint, Checkpoint]) -> None:
    """As everywhere, with what is needed."""
    with pytest.raises(PlanError, match="there is too little memory for this"):
        compare_checkpoints(*pair, runner=Threads(max_memory=1 << 20))


# ------------------------------------------------------------------------------------------- roll-ups


@pytest.mark.parametrize("by", ["component", "layer", "expert"])
def test_roll_ups_are_those_of_all_values_at_once(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, by: Any
) -> None:
    """The figures of a component, a layer of it, an expert of that: as if its units were one tensor."""
    first, second = (decoded(side) for side in pair)
    summaries = summarize_map(found, by=by)
    assert sum(s.units for s in summaries) == len(found.units)
    for s in summaries:
        names = [
            u.unit
            for u in found.units
            if u.role.component == s.component
            and (by == "component" or u.role.layer == s.layer)
            and (by != "expert" or u.role.expert == s.expert)
        ]
        assert s.units == len(names)
        assert s.equal_units == (NORM in names)
        check_figures(s, *(torch.cat([side[name].reshape(-1) for name in names]) for side in (first, second)))


def test_a_roll_up_does_not_depend_on_the_order_of_units(found: DifferenceMap) -> None:
    """Not in the last digit."""
    turned = msgspec.structs.replace(found, units=found.units[::-1])
    assert summarize_map(turned) == summarize_map(found)


# -------------------------------------------------------------------------------------------- deltas


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.5]), st.integers(0, 9)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]),
)
def test_a_threshold_is_the_least_delta_that_mixes_no_more(units: list[tuple[float, int]], share: float) -> None:
    """Of units and of bytes, against trying every delta that there is."""
    rows = tuple(unit_of(f"u{n}", rms, nbytes) for n, (rms, nbytes) in enumerate(units))
    everything = msgspec.structs.replace(EMPTY, units=rows)
    for found in thresholds(everything, [share])[:2]:
        assert found.component is None

        def mixed(delta: float) -> list[int]:
            return [nbytes for rms, nbytes in units if rms > delta]

        def part(delta: float, of: str = found.of) -> float:
            return len(mixed(delta)) if of == "units" else sum(mixed(delta))

        whole = len(units) if found.of == "units" else sum(nbytes for _, nbytes in units)
        assert found.delta == min(d for d in [0.0, *(rms for rms, _ in units)] if part(d) <= share * whole + 1e-9)
        assert (found.units, found.nbytes) == (len(mixed(found.delta)), sum(mixed(found.delta)))
        assert (found.all_units, found.all_nbytes) == (len(units), sum(nbytes for _, nbytes in units))


def unit_of(name: str, rms: float, nbytes: int) -> UnitDifference:
    return UnitDifference(
        unit=name,
        role=Role("attention"),
        storages=("BF16", "BF16"),
        weights=4,
        nonfinite=0,
        unlike_values=4,
        squared_difference=4 * rms**2,
        inner_product=1.0,
        squared_norm_a=1.0,
        squared_norm_b=1.0,
        largest=rms,
        nbytes_a=nbytes,
        nbytes_b=nbytes,
        alike_bytes=nbytes,
        unlike_bytes=nbytes,
    )


EMPTY = DifferenceMap(
    a=compare.Identity(ParentRecord({}, ""), {}),
    b=compare.Identity(ParentRecord({}, ""), {}),
    units=(),
    only_in={"a": (), "b": ()},
    problems={},
)


def test_thresholds_are_said_for_each_component(found: DifferenceMap) -> None:
    """All units first, then components in their order, each for units and for bytes."""
    said = [(t.component, t.share, t.of) for t in thresholds(found, [0.1, 0.5])]
    components = [None, *(s.component for s in summarize_map(found))]
    assert said == [(c, share, of) for c in components for share in (0.1, 0.5) for of in ("units", "bytes")]


# ------------------------------------------------------------------------------------- of whom it is


def test_distances_are_given_for_the_two_in_either_order(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap
) -> None:
    """RMS by the unit's name."""
    a, b = pair
    expected = {unit.unit: unit.rms for unit in found.units}
    assert distances(found, a, b) == distances(found, b, a) == expected


def test_a_moved_checkpoint_is_the_same(tmp_path: Path) -> None:
    """No path is in a map, nor any time."""
    a, b = make(tmp_path)
    found = compare_checkpoints(a, b)
    moved = Path(a.root).rename(tmp_path / "elsewhere")
    assert len(distances(found, open_checkpoint(moved), b)) == len(found.units)
    assert str(tmp_path).encode() not in encode_map(found)


def test_others_with_the_same_headers_are_refused(
    tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap
) -> None:
    """Two fine-tunes of one base have the same names and shapes; a few of their weights tell them apart."""
    sister = synthetic.make(tmp_path / "sister", 3, "bf16")
    with pytest.raises(MapError, match="is of other checkpoints") as caught:
        distances(found, open_checkpoint(sister), pair[1])
    assert f"other weights than those of {sister}, under the same headers" in str(caught.value)
    assert "chimerakit compare A B -o MAP.npz" in str(caught.value)


@pytest.mark.parametrize("change", ["config", "headers"])
def test_others_are_refused_by_their_headers_and_config(
    tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, change: str
) -> None:
    """Without reading any weight."""
    config = synthetic.config_of("bf16") | ({"rope_theta": 1} if change == "config" else {})
    shards = 3 if change == "config" else 4
    other = synthetic.write_checkpoint(tmp_path / "other", synthetic.tensors_of(1), config, shards=shards)
    with pytest.raises(MapError, match=f"other weight files, headers or config than those of {other}"):
        distances(found, open_checkpoint(other), pair[1])


def test_every_component_of_every_layer_is_looked_at(found: DifferenceMap) -> None:
    """Others may have changed all but one component of one layer; two units of each are enough to tell."""
    looked_at = {(u.role.component, u.role.layer) for u in found.units if u.unit in found.a.fingerprint}
    assert looked_at == {(u.role.component, u.role.layer) for u in found.units}
    assert len(found.a.fingerprint) <= 4 * len(looked_at)


# -------------------------------------------------------------------------------------------- going on


def started(pair: tuple[Checkpoint, Checkpoint], partial: Path) -> tuple[DifferenceMap, int]:
    """A comparison that goes on, and how many bytes it had left to read, but for routers."""
    total: dict[str, int] = {}
    found = compare_checkpoints(
        *pair, partial=partial, listener=lambda e: total.update({e.work: e.total}) if isinstance(e, Started) else None
    )
    return found, total["comparing"]


@pytest.fixture
def interrupted(tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], small_jobs: None) -> Path:
    """What is left of a comparison that was interrupted half-way."""
    path = tmp_path / "map.npz.partial"
    with pytest.raises(LeftError):
        compare_checkpoints(
            *pair, partial=path, runner=Threads(1), listener=leave_after(sum(s.nbytes for s in pair) // 2)
        )
    return path


def test_an_interrupted_comparison_goes_on(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, interrupted: Path
) -> None:
    """About half is left to read, the map is the same, and then nothing is left."""
    whole = sum(t.nbytes for side in pair for t in side.tensors.values())
    again, left = started(pair, interrupted)
    assert again == found
    assert 0.3 * whole < left < 0.7 * whole
    assert started(pair, interrupted) == (found, 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-200],
        lambda data: data.replace(b'"nonfinite":0', b'"nonfinite":1', 1),
        lambda data: b"\xff\x00" + data[2:],
        lambda data: data.replace(b'"job":1', b'"job":2', 1),
    ],
    ids=["torn", "changed", "no text", "of another job"],
)
def test_a_line_that_does_not_fit_is_done_again(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, interrupted: Path, damage: Callable[[bytes], bytes]
) -> None:
    """A torn line, a changed one, one that is somebody else's: never a wrong map, and all others still count."""
    whole = sum(t.nbytes for side in pair for t in side.tensors.values())
    data = interrupted.read_bytes()
    damaged = damage(data)
    assert damaged != data
    interrupted.write_bytes(damaged)
    again, left = started(pair, interrupted)
    assert again == found
    assert left < 0.7 * whole
    assert started(pair, interrupted)[1] == 0


def test_lines_of_other_files_do_not_count(
    tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], interrupted: Path
) -> None:
    """A checkpoint that was written anew since is read from the beginning, though its headers are the same."""
    sister = open_checkpoint(synthetic.make(tmp_path / "sister", 3, "bf16"))
    found, left = started((sister, pair[1]), interrupted)
    assert left == sum(t.nbytes for side in (sister, pair[1]) for t in side.tensors.values())
    assert found == compare_checkpoints(sister, pair[1])


def test_only_one_process_works_on_a_map(tmp_path: Path, pair: tuple[Checkpoint, Checkpoint]) -> None:
    """The second is refused before it reads a weight."""
    journal = Journal(tmp_path / "map.npz.partial")
    with pytest.raises(OutputError, match="another process is working on this"):
        compare_checkpoints(*pair, partial=tmp_path / "map.npz.partial")
    journal.close()


# ---------------------------------------------------------------------------------------------- files


def test_a_map_comes_back_as_it_was(tmp_path: Path, found: DifferenceMap) -> None:
    """Every record of it, to the last digit; also one of nothing."""
    for number, each in enumerate((found, EMPTY)):
        save_map(each, tmp_path / f"{number}.npz")
        assert load_map(tmp_path / f"{number}.npz") == each


def test_numpy_reads_a_map(tmp_path: Path, found: DifferenceMap) -> None:
    """By the three lines that its description promises."""
    save_map(found, tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz", allow_pickle=False) as m:
        description = json.loads(m["description.json"])
        rms = np.sqrt(m["squared_difference"] / (m["weights"] - m["nonfinite"]))
        assert set(m.files) == {"description.json", *MEANINGS, *ROUTER_MEANINGS}
    assert [unit["unit"] for unit in description["units"]] == [unit.unit for unit in found.units]
    assert rms.tolist() == [unit.rms for unit in found.units]
    assert description["fields"] == MEANINGS | ROUTER_MEANINGS
    assert description["format"] == 2


def test_a_map_tells_no_time(saved: Path) -> None:
    """Made tomorrow it has the same bytes."""
    with zipfile.ZipFile(saved) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_every_sum_is_described() -> None:
    """No number is in the file without its meaning, and none is left out."""
    assert sorted(MEANINGS) == sorted(compare.Sums.__struct_fields__)


@pytest.fixture
def saved(tmp_path: Path, found: DifferenceMap) -> Path:
    """The file of a small map."""
    save_map(msgspec.structs.replace(found, units=found.units[:3], problems={}), tmp_path / "small.npz")
    return tmp_path / "small.npz"


def test_a_flipped_or_missing_byte_is_one_clear_error(saved: Path) -> None:
    """Anywhere: either nothing is meant by it, as by a date, or the file is refused."""
    data, expected = saved.read_bytes(), load_map(saved)
    refused, said = 0, set()
    places = range(0, len(data), examples(quick=83, ci=17, prove=1))
    for at in places:
        for damaged in (data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :], data[:at]):
            saved.write_bytes(damaged)
            try:
                assert load_map(saved) == expected
            except MapError as e:
                said.add(str(e).partition(": ")[2].partition(":")[0])
                refused += 1
    assert said == {"this is no difference map, or a damaged one"}
    assert refused > 2 * len(places) * 0.8


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(file: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def described(file: Path, **changes: Any) -> dict[str, bytes]:
    """The members with another description."""
    content = members(file)
    said = json.loads(content["description.json"]) | changes
    return content | {"description.json": json.dumps(said).encode()}


def column(values: Any, dtype: str = "<f8", count: int | None = None) -> bytes:
    """An .npy file, saying that it has `count` numbers."""
    array = np.array(values, dtype)
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count or len(array)},), }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n" + array.tobytes()


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "more numbers than bytes": (
        lambda m: m | {"largest.npy": column([0, 0, 0], count=10**12)},
        "largest is not 3 numbers",
    ),
    "more numbers than units": (lambda m: m | {"largest.npy": column([0] * 4)}, "largest is not 3 numbers"),
    "objects": (lambda m: m | {"largest.npy": column([0, 0, 0]).replace(b"<f8", b"|O ")}, "largest is not 3 numbers"),
    "a number more": (lambda m: m | {"largest.npy": column([0] * 4, count=3)}, "largest is not 3 numbers"),
    "a number less": (lambda m: m | {"largest.npy": column([0] * 2, count=3)}, "largest is not 3 numbers"),
    "NaN": (lambda m: m | {"inner_product.npy": column([0, np.nan, 0])}, "inner_product holds what is no sum"),
    "a negative sum": (lambda m: m | {"squared_norm_a.npy": column([1, -1, 1])}, "squared_norm_a holds what is no sum"),
    "more pairs than weights": (lambda m: m | {"nonfinite.npy": column([1 << 60] * 3, "<i8")}, "more is counted than"),
    "a member more": (lambda m: m | {"x.npy": b""}, "its members are others"),
    "a member less": (lambda m: {k: v for k, v in m.items() if k != "largest.npy"}, "its members are others"),
    "an array alone": (lambda m: {"arr_0.npy": m["largest.npy"]}, "its members are others"),
    "no JSON": (lambda m: m | {"description.json": b"\xff"}, "codec can't decode"),
    "a description of nothing": (lambda m: m | {"description.json": b"{}"}, "missing required field"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_says_untrue_things_is_refused(saved: Path, name: str) -> None:
    """By what is wrong with it, in one error, and nothing is allocated for what it claims."""
    change, says = HOSTILE[name]
    rewrite(saved, change(members(saved)))
    with pytest.raises(MapError, match=says):
        load_map(saved)


def test_a_unit_twice_is_refused(saved: Path) -> None:
    """It could have two distances."""
    units = json.loads(members(saved)["description.json"])["units"]
    rewrite(saved, described(saved, units=[units[0], units[1], units[0]]))
    with pytest.raises(MapError, match="a unit is in it twice"):
        load_map(saved)


def test_a_map_of_another_format_says_who_wrote_it(saved: Path) -> None:
    """Also where nothing else in it has the same form."""
    content = members(saved) | {"description.json": b'{"format": 7, "chimerakit": "9.1"}'}
    rewrite(saved, content)
    with pytest.raises(MapError, match=r"it is of format 7, by chimerakit 9\.1"):
        load_map(saved)


def test_compressed_members_are_refused(saved: Path) -> None:
    """So no few bytes become many."""
    content = members(saved) | {"largest.npy": column([0, 0, 0]) + bytes(50 << 20)}
    rewrite(saved, content, zipfile.ZIP_DEFLATED)
    assert saved.stat().st_size < 1 << 20
    with pytest.raises(MapError, match="a member is compressed"):
        load_map(saved)


def test_members_that_lie_over_each_other_are_refused(saved: Path) -> None:
    """Together they would be many times the file."""
    data = bytearray(saved.read_bytes())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"weights.npy"))
    data[at + 20 : at + 28] = struct.pack("<LL", len(data) - 100, len(data) - 100)
    saved.write_bytes(data)
    with pytest.raises(MapError, match="its members are larger than the file"):
        load_map(saved)


def test_a_second_end_is_refused(saved: Path) -> None:
    """A zip file of more than 4 GiB says elsewhere how large its directory is; a map has no such place."""
    data = saved.read_bytes()
    saved.write_bytes(data[:-22] + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + data[-22:])
    with pytest.raises(MapError, match="its directory is too large"):
        load_map(saved)


def test_a_directory_of_a_million_members_is_not_read(saved: Path) -> None:
    """Each entry would take twenty times its bytes of memory."""
    data = bytearray(saved.read_bytes())
    data[-10:-6] = struct.pack("<L", 1 << 24)
    saved.write_bytes(bytes(1 << 25) + data)
    with pytest.raises(MapError, match="its directory is too large"):
        load_map(saved)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"{}", bytes(1000)])
def test_another_file_is_no_map(tmp_path: Path, content: bytes) -> None:
    """Whatever it is."""
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(MapError, match="it does not end as one"):
        load_map(tmp_path / "x.npz")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Nor is one that is not there."""
    with (tmp_path / "x.npz").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="is too large"):
        load_map(tmp_path / "x.npz")
    with pytest.raises(ChimerakitError, match="can't be opened"):
        load_map(tmp_path / "y.npz")
