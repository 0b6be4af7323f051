"""Routers of two checkpoints, against torch in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from chimerakit.compare import DifferenceMap, DrawnStates, RouterDifference, compare_checkpoints, open_states
from chimerakit.compare.saved import encode_map
from chimerakit.errors import CheckpointError, PlanError
from chimerakit.events import Advanced, Started
from chimerakit.formats import open_checkpoint
from chimerakit.numerics.routing import draw_states
from chimerakit.plan import panels
from chimerakit.records import Checkpoint
from chimerakit.runners.local import Threads
from chimerakit.stores.local import Reader
from tests import synthetic
from tests.compare.models import (
    CONFIG,
    EXPERTS,
    HIDDEN,
    LAYERS,
    SOURCE,
    bias_of,
    chosen_by,
    gate_of,
    states_of,
    tensors_of,
    write,
    write_states,
)
from tests.merging import LeftError

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, synthetic.Array]


def open_pair(root: Path, a: Tensors, b: Tensors, **changes: Any) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints; changes: of the second one's config."""
    return open_checkpoint(write(root / "a", a)), open_checkpoint(write(root / "b", b, **changes))


@pytest.fixture(scope="module")
def tensors() -> tuple[Tensors, Tensors]:
    return tensors_of(1), tensors_of(2)


@pytest.fixture(scope="module")
def pair(tensors: tuple[Tensors, Tensors], tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    return open_pair(tmp_path_factory.mktemp("pair"), *tensors)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_states(tmp_path_factory.mktemp("states") / "states.safetensors")


@pytest.fixture(scope="module")
def found(pair: tuple[Checkpoint, Checkpoint], file: Path) -> DifferenceMap:
    return compare_checkpoints(*pair, states=open_states(file))


def by_layer(found: DifferenceMap) -> dict[int, RouterDifference]:
    return {router.layer: router for router in found.routers}


# -------------------------------------------------------------------------------------- gates, biases


def check_gates(found: DifferenceMap, a: Tensors, b: Tensors) -> None:
    """Rows and biases of every router, against torch."""
    assert [(router.layer, router.gate) for router in found.routers] == [(n, gate_of(n)) for n in LAYERS]
    for router in found.routers:
        x, y = (torch.from_numpy(side[router.gate].astype(np.float64)) for side in (a, b))
        cosines = torch.nn.functional.cosine_similarity(x, y)
        assert router.cosines == pytest.approx(cosines.tolist(), rel=1e-12)
        assert router.norm_changes == pytest.approx((y.norm(dim=1) / x.norm(dim=1) - 1).tolist(), rel=1e-9)
        changes = b[bias_of(router.layer)].astype(np.float64) - a[bias_of(router.layer)]
        assert router.bias_changes == tuple(changes.tolist())


def test_rows_and_biases_are_those_of_float64(found: DifferenceMap, tensors: tuple[Tensors, Tensors]) -> None:
    """For each expert of each layer with a router, MTP layers too."""
    check_gates(found, *tensors)


def test_gates_in_fp8_are_decoded(tmp_path: Path, tensors: tuple[Tensors, Tensors]) -> None:
    """Code x scale, on one side only."""
    first, second, values = dict(tensors[0]), tensors[1], dict(tensors[0])
    for layer in LAYERS:
        codes, scales = synthetic.quantize(first[gate_of(layer)].astype(np.float32))
        first[gate_of(layer)], first[gate_of(layer) + "_scale_inv"] = codes, scales
        values[gate_of(layer)] = codes.astype(np.float32) * scales[0, 0]
    check_gates(compare_checkpoints(*open_pair(tmp_path, first, second)), values, second)


def test_without_states_nothing_is_asked(pair: tuple[Checkpoint, Checkpoint]) -> None:
    """And nothing is missing."""
    found = compare_checkpoints(*pair)
    assert found.states is None
    assert [(router.choices, router.objection) for router in found.routers] == [(None, "")] * len(LAYERS)
    assert found.is_complete


def test_models_without_routers_have_none(tmp_path: Path) -> None:
    """Their map is as it was."""
    root = synthetic.write_checkpoint(tmp_path / "x", {"w": np.ones((3, 4), np.float32)}, {}, shards=1)
    assert compare_checkpoints(open_checkpoint(root), open_checkpoint(root)).routers == ()


def test_a_row_without_a_direction_has_no_cosine(tmp_path: Path, tensors: tuple[Tensors, Tensors]) -> None:
    """None, for that expert only."""
    first = {name: tensor.copy() for name, tensor in tensors[0].items()}
    first[gate_of(2)][5] = 0
    router = by_layer(compare_checkpoints(*open_pair(tmp_path, first, tensors[1])))[2]
    assert [cosine is None for cosine in router.cosines] == [expert == 5 for expert in range(EXPERTS)]
    assert [change is None for change in router.norm_changes] == [expert == 5 for expert in range(EXPERTS)]


# -------------------------------------------------------------------------------------------- choices


def check_choices(router: RouterDifference, a: Tensors, b: Tensors, states: synthetic.Array) -> None:
    """What is counted, against the sets that torch chooses."""
    sets = list(zip(*(chosen_by(side, router.layer, states) for side in (a, b)), strict=True))
    choices = router.choices
    assert choices is not None
    assert (choices.tokens, choices.top_k) == (len(states), CONFIG["num_experts_per_tok"])
    assert choices.shared == sum(len(x & y) for x, y in sets)
    assert choices.same == sum(x == y for x, y in sets)
    assert choices.loads_a == tuple(sum(expert in x for x, _ in sets) for expert in range(EXPERTS))
    assert choices.loads_b == tuple(sum(expert in y for _, y in sets) for expert in range(EXPERTS))
    assert 0 < choices.same < len(states), "all or nothing in common shows little"


def test_routers_choose_as_their_models_do(found: DifferenceMap, tensors: tuple[Tensors, Tensors]) -> None:
    """On recorded states, layer by layer."""
    for router in found.routers:
        check_choices(router, *tensors, states_of(router.layer))
    assert found.states is not None
    assert (found.states.source, found.states.is_synthetic) == (SOURCE, False)
    assert found.is_complete


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_states_are_taken_as_they_are_stored(
    tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], tensors: tuple[Tensors, Tensors], dtype: Any
) -> None:
    """Narrow ones, too."""
    layers = {f"layers.{layer}": states_of(layer).astype(dtype) for layer in LAYERS}
    states = open_states(write_states(tmp_path / "x.safetensors", layers))
    for router in compare_checkpoints(*pair, states=states).routers:
        check_choices(router, *tensors, layers[f"layers.{router.layer}"])


def test_states_are_read_in_pieces(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 128 tokens here; what is found does not depend on that, and what is reported as done adds up."""
    read: list[int] = []
    events: list[Any] = []
    states, real = open_states(file), Reader.read_into

    def count(self: Reader, buffer: memoryview, start: int) -> None:
        read.extend([len(buffer)] if self.path == file else [])
        real(self, buffer, start)

    monkeypatch.setattr(Reader, "read_into", count)
    monkeypatch.setattr(panels, "BLOCKED_WEIGHTS", 1)
    again = compare_checkpoints(*pair, states=states, listener=events.append)
    assert again.routers == found.routers
    assert sorted(read) == sorted([128 * HIDDEN * 4, 128 * HIDDEN * 4, 44 * HIDDEN * 4] * len(LAYERS))
    totals = [event.total for event in events if isinstance(event, Started)]
    assert sum(event.amount for event in events if isinstance(event, Advanced)) == sum(totals)


def test_routers_are_the_same_for_any_number_of_threads(
    pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, file: Path
) -> None:
    """To the last bit of the file."""
    for threads in (1, 4):
        again = compare_checkpoints(*pair, states=open_states(file), runner=Threads(threads))
        assert encode_map(again) == encode_map(found)


def test_a_comparison_that_goes_on_ends_in_the_same_bytes(
    tmp_path: Path, pair: tuple[Checkpoint, Checkpoint], found: DifferenceMap, file: Path
) -> None:
    """Routers are small: they are compared again."""

    def leave(event: object) -> None:
        if isinstance(event, Started) and event.work == "comparing":
            raise LeftError

    with pytest.raises(LeftError):
        compare_checkpoints(*pair, states=open_states(file), partial=tmp_path / "partial", listener=leave)
    for _ in range(2):
        again = compare_checkpoints(*pair, states=open_states(file), partial=tmp_path / "partial")
        assert encode_map(again) == encode_map(found)


def test_drawn_states_are_called_so(pair: tuple[Checkpoint, Checkpoint], tensors: tuple[Tensors, Tensors]) -> None:
    """They are drawn for each layer, the same each time, and named as what they are."""
    found = compare_checkpoints(*pair, states=DrawnStates(200))
    assert found.states is not None
    assert found.states.source == "synthetic isotropic states (200 tokens, seed 0)"
    assert found.states.is_synthetic
    for router in found.routers:
        seeds = [(0, router.layer, 0), (0, router.layer, 128)]
        drawn = [draw_states((tokens, HIDDEN), seed) for tokens, seed in zip((128, 72), seeds, strict=True)]
        check_choices(router, *tensors, np.concatenate(drawn))


# ------------------------------------------------------------------------------------ what is not asked

Change = Callable[[Tensors], object]
ASKED_NOTHING: dict[str, tuple[Change, dict[str, Any], str]] = {
    "another method": (
        lambda _: None,
        {"topk_method": "greedy"},
        "b: config.json says scoring_func 'sigmoid', topk_method 'greedy': no way of choosing experts that is known",
    ),
    "another family": (
        lambda _: None,
        {"model_type": "odd"},
        "b: how routers of the family 'generic' choose is not known",
    ),
    "more experts chosen": (
        lambda _: None,
        {"num_experts_per_tok": 3},
        "they choose different numbers of experts: 2 and 3",
    ),
    "groups that do not fit": (
        lambda _: None,
        {"n_group": 3},
        "b: config.json says num_experts_per_tok 2, n_group 3, topk_group 2: this does not fit 8 experts",
    ),
    "other experts": (lambda _: None, {"n_routed_experts": 16}, "b: 8 rows in the gate, 16 experts in config.json"),
    "no bias": (
        lambda t: t.pop(bias_of(2)),
        {},
        "a: a correction bias is added, and there is none that can be compared; "
        "b: a correction bias is added, and there is none that can be compared",
    ),
    "NaN in the gate": (
        lambda t: t[gate_of(2)].__setitem__((3, 5), np.nan),
        {},
        "b: NaN or infinity in the gate",
    ),
    "infinity in the bias": (
        lambda t: t[bias_of(2)].__setitem__(3, np.inf),
        {},
        "b: NaN or infinity in the bias",
    ),
}


@pytest.mark.parametrize("name", ASKED_NOTHING)
def test_a_router_that_can_not_be_asked_is_compared_all_the_same(
    tmp_path: Path, tensors: tuple[Tensors, Tensors], file: Path, name: str
) -> None:
    """Its gate has figures, its choices a reason, and the map is not complete."""
    change, config, says = ASKED_NOTHING[name]
    second = {name: tensor.copy() for name, tensor in tensors[1].items()}
    change(second)
    found = compare_checkpoints(*open_pair(tmp_path, tensors[0], second, **config), states=open_states(file))
    router = by_layer(found)[2]
    assert (router.objection, router.choices) == (says, None)
    assert router.cosines[0] is not None
    assert not found.is_complete


def test_a_layer_without_states_is_not_asked(tmp_path: Path, pair: tuple[Checkpoint, Checkpoint]) -> None:
    """Others are; that is nothing wrong, as few have recorded states of MTP layers."""
    states = open_states(write_states(tmp_path / "x.safetensors", {"layers.1": states_of(1)}))
    compared = compare_checkpoints(*pair, states=states)
    found = by_layer(compared)
    assert found[1].choices is not None
    assert (found[3].choices, found[3].objection) == (None, "")
    assert compared.is_complete


def test_states_for_models_without_routers_are_refused(tmp_path: Path, file: Path) -> None:
    """Before anything is read."""
    root = synthetic.write_checkpoint(tmp_path / "x", {"w": np.ones((3, 4), np.float32)}, {}, shards=1)
    side = open_checkpoint(root)
    with pytest.raises(CheckpointError, match="states are given, and there is no router that both checkpoints have"):
        compare_checkpoints(side, side, states=open_states(file))


def test_too_little_memory_is_refused(pair: tuple[Checkpoint, Checkpoint]) -> None:
    """With what is needed."""
    with pytest.raises(PlanError, match="there is too little memory for this"):
        compare_checkpoints(*pair, states=DrawnStates(10), runner=Threads(max_memory=1 << 20))
