"""Inspecting, against headers and weights read without the code under test, and against published figures."""

import json
import os
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chimerakit import inspect_checkpoint
from chimerakit.errors import CheckpointError, ManifestError, PlanError, RecipeError
from chimerakit.events import Advanced, Event, Started
from chimerakit.formats import open_checkpoint
from chimerakit.inspect.parts import fold_layers, join_parts, summarize
from chimerakit.inspect.records import Census, Inspection, Part
from chimerakit.plan.memory import MAX_MEMORY
from chimerakit.records import Component
from chimerakit.runners.local import Threads
from chimerakit.stores import local
from tests import synthetic
from tests.merging import interrupt, merge, plan_of, stored, values
from tests.test_full_size import chimerakit
from tests.test_full_size import make as make_full_size

STORAGES = ["bf16", "f16", "f32", "fp8", "ue8m0", "e8m0"]
EXPERT = "model.layers.2.mlp.experts.3.down_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
Change = Callable[[dict[str, synthetic.Array], dict[str, Any]], None]


def inspected(tmp_path: Path, change: Change | None = None, storage: str = "fp8", **options: Any) -> Inspection:
    """A synthetic checkpoint, after a change to its tensors and its config."""
    tensors, config = synthetic.tensors_of(1, storage), synthetic.config_of(storage)
    if change is not None:
        change(tensors, config)
    return inspect_checkpoint(synthetic.write_checkpoint(tmp_path / "it", tensors, config), **options)


def said(found: Inspection) -> list[str]:
    return [f"{finding.subject}: {finding.says}" for finding in found.findings]


def of(parts: Iterable[Part], component: Component) -> list[Part]:
    return [part for part in parts if part.component == component]


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("storage", STORAGES)
def test_every_tensor_is_in_one_part(tmp_path: Path, storage: str) -> None:
    """Tensors and bytes of all parts are those of the files; parameters are those of the layout, without scales."""
    found = inspected(tmp_path, storage=storage)
    tensors = stored(tmp_path / "it")
    assert sum(part.tensors for part in found.parts) == found.tensors == len(tensors)
    assert sum(part.nbytes for part in found.parts) == sum(len(data) for _, _, data in tensors.values())
    assert sum(part.units for part in found.parts) == found.units
    assert found.parameters.total == sum(prod(shape) for _, shape, _ in synthetic.layout())
    assert found.ok
    assert (found.unknown, found.notes) == ((), ())


def test_parts_are_components_of_layers(tmp_path: Path) -> None:
    """Routed experts stand in each of their layers with how many there are, and how they are stored."""
    experts = of(inspected(tmp_path).parts, "routed_experts")
    assert [(part.layers, part.mtp, part.experts, part.units) for part in experts] == [
        ((1,), False, 4, 12),
        ((2,), False, 4, 12),
        ((3,), True, 4, 12),
    ]
    assert experts[0].storages == {"FP8_BLOCK": experts[0].nbytes}
    assert experts[0].parameters == 4 * 3 * 72 * 200


def test_storages_say_the_bytes_of_each(tmp_path: Path) -> None:
    """Most first; a router is a matrix in BF16 and a bias in F32."""
    router = of(inspected(tmp_path).parts, "router")[0]
    assert list(router.storages.items()) == [("BF16", 4 * 200 * 2), ("F32", 4 * 4)]


def test_summaries_lose_nothing(tmp_path: Path) -> None:
    """One part for each component, and all numbers add up to those of all parts."""
    found = inspected(tmp_path, values=True)
    summaries = summarize(found.parts)
    assert len({part.component for part in summaries}) == len(summaries) == 9
    assert join_parts(summaries) == join_parts(found.parts)
    assert (join_parts(summaries).nbytes, join_parts(summaries).units) == (
        sum(p.nbytes for p in found.parts),
        found.units,
    )


def test_layers_that_are_alike_are_folded(tmp_path: Path) -> None:
    """Neighbours become one part, whatever their numbers are; a layer that differs, or is of MTP, stands alone."""

    def change(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.o_proj.bias"] = np.zeros(200, np.float32)

    folded = fold_layers(inspected(tmp_path / "a").parts)
    assert [(p.layers, p.mtp) for p in of(folded, "attention")] == [((0, 1, 2), False), ((3,), True)]
    assert [p.layers for p in of(folded, "routed_experts")] == [(1, 2), (3,)]
    assert sum(p.nbytes for p in folded) == sum(p.nbytes for p in inspected(tmp_path / "b").parts)
    folded = fold_layers(inspected(tmp_path / "c", change).parts)
    assert [p.layers for p in of(folded, "attention")] == [(0,), (1,), (2,), (3,)]


# ------------------------------------------------------------------------------------------- parameters


def test_parameters_are_those_of_the_layout(tmp_path: Path) -> None:
    """MTP apart; a token is sent to two of four experts, and looks up one row of the embedding."""
    found = inspected(tmp_path).parameters
    sizes = {name: prod(shape) for name, shape, _ in synthetic.layout()}
    main = {name: size for name, size in sizes.items() if ".layers.3." not in name}
    routed = sum(size for name, size in main.items() if ".mlp.experts." in name)
    assert (found.main, found.mtp) == (sum(main.values()), sum(sizes.values()) - sum(main.values()))
    assert found.routed == routed
    assert found.active == found.main - routed + routed * 2 // 4
    assert found.embedding == main["model.embed_tokens.weight"]
    assert found.active_without_embedding == found.active - found.embedding


def test_an_embedding_that_is_the_head_works_for_every_token(tmp_path: Path) -> None:
    """Without a head of its own the embedding is not left out of what is active."""

    def tie(tensors: dict[str, synthetic.Array], config: dict[str, Any]) -> None:
        del tensors["lm_head.weight"]
        config["tie_word_embeddings"] = True

    found = inspected(tmp_path, tie).parameters
    assert found.active is not None
    assert found.active_without_embedding == found.active


@pytest.mark.parametrize("value", [None, 0, True, "2", 5])
def test_active_parameters_are_never_guessed(tmp_path: Path, value: object) -> None:
    """A config that does not say how many of four experts a token is sent to, or nonsense, leaves it unknown."""
    found = inspected(tmp_path, lambda _, config: config.update(num_experts_per_tok=value))
    assert found.parameters.routed
    assert (found.parameters.active, found.parameters.active_without_embedding) == (None, None)
    assert found.notes == (
        "config.json does not say how many experts a token is sent to (num_experts_per_tok, n_routed_experts)",
    )
    assert found.ok


def test_a_model_without_experts_uses_all_of_itself(tmp_path: Path) -> None:
    """Where nothing is routed, everything is active."""
    config = synthetic.CONFIG | {"first_k_dense_replace": 9}
    tensors = synthetic.tensors_of(1, config=config)
    found = inspect_checkpoint(synthetic.write_checkpoint(tmp_path / "it", tensors, config)).parameters
    assert (found.routed, found.active) == (0, found.main)


@pytest.mark.slow
def test_deepseek_v3_has_its_published_parameters(tmp_path: Path) -> None:
    """671B, and 37B active, 256 experts in 58 layers: from headers alone, within 250 MB.

    The 685B that the hub says counts all stored elements, the scales of FP8 blocks too; weights are 684.5B.
    """
    make_full_size(tmp_path)
    code, found, peak = chimerakit("inspect", tmp_path / "v3")
    billions = {name: round(number / 1e9) for name, number in found["parameters"].items()}
    assert (code, billions["main"], billions["active_without_embedding"]) == (0, 671, 37)
    assert found["parameters"]["total"] == 680_571_043_840 + 3_918_786_560 + 59 * 256  # FP8, BF16, router biases
    assert found["parameters"]["active"] - found["parameters"]["active_without_embedding"] == 129280 * 7168
    assert (found["layers"], found["mtp_layers"], found["weight_files"], found["tensors"]) == (61, 1, 163, 91_991)
    experts = [part for part in found["parts"] if part["component"] == "routed_experts"]
    assert [(part["layers"], part["experts"], part["mtp"]) for part in experts] == [
        *(([layer], 256, False) for layer in range(3, 61)),
        ([61], 256, True),
    ]
    assert (found["findings"], found["notes"], found["unknown"]) == ([], [], [])
    assert peak <= 250e6


# --------------------------------------------------------------------------------------------- what is odd


def test_headers_are_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `values` no byte of a weight is read."""
    root = synthetic.make(tmp_path / "it", 1, "fp8")
    ends = {Path(shard.name).name: shard.header_nbytes for shard in open_checkpoint(root).shards}
    read: list[tuple[str, int]] = []
    read_into = local.Reader.read_into

    def watched(self: local.Reader, buffer: memoryview, start: int) -> None:
        read.append((self.path.name, start + len(buffer)))
        read_into(self, buffer, start)

    monkeypatch.setattr(local.Reader, "read_into", watched)
    inspect_checkpoint(root)
    weights = [(name, end) for name, end in read if name in ends]
    assert {name for name, _ in weights} == set(ends)
    assert all(end <= ends[name] for name, end in weights)
    inspect_checkpoint(root, values=True)
    assert any(end > ends.get(name, end) for name, end in read)


def test_unknown_tensors_are_named_and_counted(tmp_path: Path) -> None:
    """A name that the family does not have, and an expert that the config does not have, are 'other', and nothing wrong."""
    names = ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.1.mlp.experts.4.up_proj.weight"]

    def add(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        tensors.update({name: np.zeros((2, 3), np.float32) for name in names})

    found = inspected(tmp_path, add)
    assert set(found.unknown) == set(names)
    assert [(part.layers, part.units) for part in of(found.parts, "other")] == [((1,), 2), ((3,), 1)]
    assert found.ok


def test_an_objection_is_a_finding(tmp_path: Path) -> None:
    """FP8 without its scale, and scales of the wrong shape, are wrong, by name; with `values` they are not decoded."""

    def damage(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        del tensors[EXPERT + "_scale_inv"]
        name = "model.layers.0.mlp.up_proj.weight_scale_inv"
        tensors[name] = tensors[name][:1]

    found = inspected(tmp_path, damage, values=True)
    assert sorted(said(found)) == [
        "model.layers.0.mlp.up_proj.weight: model.layers.0.mlp.up_proj.weight_scale_inv has the wrong shape: "
        "expected [3, 2], found [1, 2]",
        f"{EXPERT}: {EXPERT} is FP8 without its scale: there is no {EXPERT}_scale_inv",
    ]
    assert not found.ok
    assert found.values is not None
    assert set(found.values.unread) == {EXPERT, "model.layers.0.mlp.up_proj.weight"}


def test_incomplete_experts_are_a_finding(tmp_path: Path) -> None:
    """One projection of one expert is missing, and all of another expert."""

    def remove(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith((EXPERT, "model.layers.2.mlp.experts.1."))]:
            del tensors[name]

    found = inspected(tmp_path, remove)
    assert said(found) == ["layer 2: 2 of its 4 routed experts are incomplete, such as expert 1"]


def test_missing_layers_are_a_finding(tmp_path: Path) -> None:
    """The config says three layers, and the second has no tensor."""

    def remove(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        for name in [n for n in tensors if ".layers.1." in n]:
            del tensors[name]

    assert said(inspected(tmp_path, remove)) == ["config.json: 1 of its 3 layers have no tensor, such as layer 1"]


def test_what_config_and_weights_say_differently_is_noted(tmp_path: Path) -> None:
    """Quantisation that only one of them knows, and MTP layers that were dropped."""
    silent = inspected(tmp_path / "a", lambda _, config: config.pop("quantization_config"))
    assert silent.notes == (
        "weights are in FP8 blocks, but config.json has no quantization_config: engines will not scale them",
    )
    other = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    loud = inspected(tmp_path / "b", lambda _, config: config.update(other), "bf16")
    assert loud.quantization == other["quantization_config"]
    assert loud.notes == (
        "config.json has a quantization_config, but no weight is in FP8 blocks: parameters are elements as stored",
    )
    dropped = inspected(tmp_path / "c", lambda _, config: config.update(num_nextn_predict_layers=2))
    assert dropped.notes == ("config.json says 2 MTP layers (num_nextn_predict_layers), and there are 1",)
    assert silent.ok
    assert loud.ok
    assert dropped.ok


def test_a_model_of_no_known_family_is_described_without_guesses(tmp_path: Path) -> None:
    """Everything is 'other'; its tensors, bytes and storages still count, and no tensor is called unknown."""
    found = inspected(tmp_path, lambda _, config: config.update(model_type="mystery"))
    (part,) = found.parts
    assert (part.component, part.layers, part.tensors) == ("other", (), found.tensors)
    assert (found.parameters.routed, found.parameters.active) == (None, None)
    assert found.parameters.total == sum(prod(shape) for _, shape, _ in synthetic.layout())
    assert found.unknown == ()
    assert found.notes == (
        "there is no table of models of type 'mystery': all its tensors are 'other', routed and active parameters are "
        "unknown",
    )


def test_one_weight_file_is_a_checkpoint(tmp_path: Path) -> None:
    """Its neighbours have nothing to do with it, and without a config nothing is known but what its header says."""
    synthetic.write_shard(tmp_path / "one.safetensors", {"a": np.ones((2, 3), np.float32)})
    (tmp_path / "chimerakit.json").write_text("no manifest of this")
    found = inspect_checkpoint(tmp_path / "one.safetensors", values=True)
    assert (found.root, found.tensors, found.parameters.total) == (str(tmp_path / "one.safetensors"), 1, 6)
    assert (found.model_type, found.provenance, found.files) == (None, None, ())
    assert found.notes[0].startswith("there is no table of a model of no type")


def test_other_files_and_what_is_left_out_are_named(tmp_path: Path) -> None:
    """Weights in another format are no part of the checkpoint."""
    root = synthetic.make(tmp_path / "it", 1, "bf16")
    (root / "pytorch_model.bin").write_bytes(b"x")
    found = inspect_checkpoint(root)
    assert found.left_out == ("pytorch_model.bin",)
    assert {"config.json", "tokenizer.json", "LICENSE"} <= {file.name for file in found.files}


def test_a_damaged_checkpoint_is_one_error(tmp_path: Path) -> None:
    """What can't be opened is not described."""
    root = synthetic.make(tmp_path / "it", 1, "bf16")
    next(root.glob("*.safetensors")).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="too short for a safetensors file"):
        inspect_checkpoint(root)


# ------------------------------------------------------------------------------------------- provenance


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {name: synthetic.make(root / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"))}


RULES = """- {take: r1, components: routed_experts}
- {mix: {r1: {from: 0.25, to: 0.75}}, components: attention}"""


def test_provenance_says_who_made_it_of_what(tmp_path: Path, parents: dict[str, Path], impatient: None) -> None:
    """Recipe, parents, and for each component how many units were made in which way, with the span of the shares."""
    merged = merge(parents, RULES, tmp_path / "child")
    found = inspect_checkpoint(tmp_path / "child")
    assert (found.ok, found.is_unfinished) == (True, False)
    made = found.provenance
    assert made is not None
    assert (made.plan, made.recipe["base"], list(made.parents)) == (merged.manifest.plan, "v3", ["v3", "r1"])
    summaries = {(m.component, m.outcome): (m.shares, m.units) for m in made.made}
    assert summaries["routed_experts", "copied"] == ({"r1": (1.0, 1.0)}, 36)
    assert summaries["attention", "mixed"] == ({"v3": (0.25, 0.75), "r1": (0.25, 0.75)}, 4 * 7)
    assert sum(units for _, units in summaries.values()) == found.units
    assert made.largest_rms_error is not None
    assert 0.01 < made.largest_rms_error < 0.05


def test_a_manifest_of_other_weights_is_a_finding(tmp_path: Path, parents: dict[str, Path], impatient: None) -> None:
    """Headers are enough to see that a manifest was copied to another checkpoint."""
    merge(parents, RULES, tmp_path / "child")
    other = synthetic.make(tmp_path / "other", 5, "bf16")
    (other / "chimerakit.json").write_bytes((tmp_path / "child" / "chimerakit.json").read_bytes())
    assert said(inspect_checkpoint(other)) == ["chimerakit.json: tells of other weight files than lie here"]


def test_a_damaged_manifest_is_one_error(tmp_path: Path, parents: dict[str, Path], impatient: None) -> None:
    """Cut short, or with a recipe that is none."""
    merge(parents, RULES, tmp_path / "child")
    file = tmp_path / "child" / "chimerakit.json"
    text = file.read_text()
    file.write_text(text[:1000])
    with pytest.raises(ManifestError, match="the manifest can't be read"):
        inspect_checkpoint(tmp_path / "child")
    file.write_text(json.dumps(json.loads(text) | {"recipe": {"bass": "v3"}}))
    with pytest.raises(RecipeError, match="bass"):
        inspect_checkpoint(tmp_path / "child")


def test_an_unfinished_child_is_said_to_be_one(tmp_path: Path, parents: dict[str, Path], impatient: None) -> None:
    """Too early to be opened, it is an error with what to do; later, when a finished one is begun again, it is shown."""
    interrupt(plan_of(parents, RULES, segment_nbytes=50_000), tmp_path / "child", after=200_000)
    with pytest.raises(ManifestError, match="this child is unfinished: it has no manifest yet"):
        inspect_checkpoint(tmp_path / "child")
    merge(parents, RULES, tmp_path / "whole")
    assert not inspect_checkpoint(tmp_path / "whole").is_unfinished
    (tmp_path / "whole" / ".chimerakit").mkdir()
    (tmp_path / "whole" / ".chimerakit" / "plan.json").write_text("{}")
    assert inspect_checkpoint(tmp_path / "whole").is_unfinished


# ----------------------------------------------------------------------------------------------- values


def naive(root: Path) -> dict[str, Census]:
    """The census by numpy in float64, a whole unit at a time."""
    tensors, found = stored(root), {}
    for name, (dtype, shape, data) in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        with np.errstate(all="ignore"):
            numbers = values(tensors, name).astype(np.float32)
        finite = np.abs(numbers[np.isfinite(numbers)])
        blocks = {}
        if dtype == "F8_E4M3":
            sizes = np.frombuffer(data, np.uint8) & 0x7F
            scales = values(tensors, name + "_scale_inv")
            blocks = {
                "codes": prod(shape),
                "nan_codes": int((sizes == 127).sum()),
                "saturated": int((sizes == 126).sum()),
            }
            blocks |= {"scales": scales.size, "nonfinite_scales": int((~np.isfinite(scales)).sum())}
            blocks |= {"zero_scales": int((scales == 0).sum()), "negative_scales": int((scales < 0).sum())}
        found[name] = Census(
            values=prod(shape),
            nan=int(np.isnan(numbers).sum()),
            infinite=int(np.isinf(numbers).sum()),
            zeros=int((numbers == 0).sum()),
            largest=float(finite.max(initial=0)),
            **blocks,
        )
    return found


def spoil(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
    """Numbers of every kind that is odd."""
    tensors["lm_head.weight"][0, :5] = [np.nan, np.inf, -np.inf, 0, -0.0]
    tensors["empty"] = np.zeros((0, 4), np.float32)
    scale = EXPERT + "_scale_inv"
    if scale in tensors and tensors[scale].dtype == np.float32:
        tensors[EXPERT].view(np.uint8)[3, 7:10] = [0x7F, 0x7E, 0xFE]
        tensors[scale][0, 0] *= -1
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name + "_scale_inv"][0, 0] = 0
        tensors["model.layers.0.mlp.up_proj.weight_scale_inv"][1, 1] = np.inf


@pytest.mark.parametrize("change", [None, spoil])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_census_is_that_of_numpy(tmp_path: Path, storage: str, change: Change | None) -> None:
    """Every figure of every unit, with ordinary numbers and with odd ones."""
    found = inspected(tmp_path, change, storage, values=True)
    assert found.values is not None
    assert {u.unit: u.census for u in found.values.units} == naive(tmp_path / "it")
    assert found.values.unread == {}
    assert found.ok == (change is None)


def test_nan_and_infinity_are_findings_by_name(tmp_path: Path) -> None:
    """Also those that a scale makes; and odd scales are noted."""
    found = inspected(tmp_path, spoil, values=True)
    assert "lm_head.weight: 1 NaN and 2 infinite values of 19200" in said(found)
    assert f"{EXPERT}: 1 NaN and 0 infinite values of 14400" in said(found)
    assert {finding.subject for finding in found.findings} == {
        "lm_head.weight",
        EXPERT,
        "model.layers.0.mlp.up_proj.weight",
    }
    (note,) = found.notes
    assert note.startswith(
        "3 units have odd scales, such as model.layers.0.self_attn.o_proj.weight: of 2 scales 1 are 0"
    )


def test_parts_hold_the_sum_of_their_units(tmp_path: Path) -> None:
    """Counts are added, and the largest is the largest."""
    found = inspected(tmp_path, spoil, values=True)
    assert found.values is not None
    experts = [u.census for u in found.values.units if u.role.component == "routed_experts"]
    (part,) = of(summarize(found.parts), "routed_experts")
    assert part.census is not None
    assert part.census.values == part.parameters == sum(c.values for c in experts)
    assert part.census.saturated == sum(c.saturated for c in experts) > 0
    assert part.census.largest == max(c.largest for c in experts)
    assert inspected(tmp_path).parts[0].census is None


def test_the_worst_units_are_named(tmp_path: Path) -> None:
    """Of each component the one with the largest number, and the one with the largest share of saturated codes."""

    def plant(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        tensors[ROUTER][1, 1] = 77
        tensors[EXPERT].view(np.uint8)[:50] = 0xFE

    found = inspected(tmp_path, plant, values=True)
    assert found.values is not None
    worst = {each.component: each for each in found.values.worst()}
    assert (worst["router"].largest.unit, worst["router"].largest.census.largest) == (ROUTER, 77)
    assert worst["routed_experts"].most_saturated.unit == EXPERT
    assert worst["routed_experts"].most_saturated.census.saturation >= 50 / 200


def test_what_can_not_be_decoded_is_named(tmp_path: Path) -> None:
    """Whole numbers, say; they still count as bytes."""

    def add(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        tensors["model.steps"] = np.arange(3, dtype=np.int64)

    found = inspected(tmp_path, add, values=True)
    assert found.values is not None
    assert list(found.values.unread) == ["model.steps"]
    assert "stored as I64" in found.values.unread["model.steps"]


def test_holes_are_zeros_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse copy of a checkpoint has the same census, scales of zero and exponents of zero included."""
    read: list[int] = []
    read_into = local.Reader.read_into

    def counted(self: local.Reader, buffer: memoryview, start: int) -> None:
        read.append(len(buffer))
        read_into(self, buffer, start)

    monkeypatch.setattr(local.Reader, "read_into", counted)

    def clear(tensors: dict[str, synthetic.Array], _: dict[str, Any]) -> None:
        for name in [n for n in tensors if ".layers.1." in n or ".layers.2." in n]:
            tensors[name].view(np.uint8).fill(0)

    for storage in ("fp8", "e8m0"):
        dense = inspected(tmp_path / storage, clear, storage, values=True)
        usual = sum(read)
        files = list((tmp_path / storage / "it").glob("*.safetensors"))
        for file in files:
            make_sparse(file)
        assert any(file.stat().st_blocks * 512 < file.stat().st_size for file in files), "this disk knows no holes"
        sparse = inspect_checkpoint(tmp_path / storage / "it", values=True)
        assert sum(read) - usual < 0.8 * usual
        read.clear()
        assert sparse.values == dense.values
        assert sparse.notes == dense.notes


def make_sparse(file: Path) -> None:
    """The same bytes, with holes where whole pages are zeros."""
    data = file.read_bytes()
    file.unlink()
    with file.open("wb") as out:
        out.truncate(len(data))
        for start in range(0, len(data), 4096):
            if any(data[start : start + 4096]):
                os.pwrite(out.fileno(), data[start : start + 4096], start)


def test_progress_tells_of_all_bytes(tmp_path: Path) -> None:
    """What is announced is what is reported, and what the readable units hold."""
    heard: list[Event] = []
    found = inspected(tmp_path, values=True, listener=heard.append)
    (total,) = [event.total for event in heard if isinstance(event, Started)]
    assert total == sum(event.amount for event in heard if isinstance(event, Advanced))
    assert total == sum(part.nbytes for part in found.parts)


def test_a_listener_that_raises_stops_it(tmp_path: Path) -> None:
    """Who has seen enough is let go."""

    def leave(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspected(tmp_path, values=True, listener=leave)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_memory_change_no_figure(tmp_path: Path, threads: int) -> None:
    """The census is the same however it is taken; too little memory is refused before a weight is read."""
    found = inspected(tmp_path, spoil, values=True, runner=Threads(threads, MAX_MEMORY // 4))
    usual = inspected(tmp_path, spoil, values=True)
    assert (found.values, found.parts, found.findings) == (usual.values, usual.parts, usual.findings)
    with pytest.raises(PlanError, match="one job at a time takes up to"):
        inspected(tmp_path, values=True, runner=Threads(max_memory=1 << 20))
