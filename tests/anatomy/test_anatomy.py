"""What tensor names say, for DeepSeek-V3 as published and for a family that only a table knows."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit import anatomy
from chimerakit.anatomy import Anatomy, Family, config_meaning, families, family_of, load_family
from chimerakit.dtypes import MIXABLE
from chimerakit.errors import CheckpointError
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint, Role, Tensor
from tests import synthetic

REAL: dict[str, Any] = {
    **synthetic.CONFIG,
    "num_hidden_layers": 61,
    "n_routed_experts": 256,
    "first_k_dense_replace": 3,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
Known = tuple[str, tuple[int, ...]]


def checkpoint_of(tensors: Mapping[str, Known], config: Mapping[str, Any] = REAL) -> Checkpoint:
    """A checkpoint of tensors (dtype, shape), as if it had been opened."""
    records = {name: Tensor(name, dtype, shape, "model.safetensors", 0, 0) for name, (dtype, shape) in tensors.items()}
    return Checkpoint("nowhere", (), records, dict(config), (), (), None)


def anatomy_of(tensors: Mapping[str, Known], config: Mapping[str, Any] = REAL, family: Family | None = None) -> Anatomy:
    """The anatomy of such a checkpoint."""
    return Anatomy(checkpoint_of(tensors, config), family)


def deepseek(config: Mapping[str, Any] = REAL) -> dict[str, Known]:
    """Every tensor of a DeepSeek-V3 in FP8 as published: codes with F32 scales, the rest BF16, the bias F32."""
    found: dict[str, Known] = {}
    for name, shape, kind in synthetic.layout(config):
        found[name] = {"linear": "F8_E4M3", "plain": "BF16", "bias": "F32"}[kind], shape
        if kind == "linear":
            found[name + "_scale_inv"] = "F32", tuple(-(-side // 128) for side in shape)
    return found


@pytest.fixture(scope="module")
def real() -> Anatomy:
    """DeepSeek-V3 with its real number of layers and experts."""
    return anatomy_of(deepseek())


# ----------------------------------------------------------------------------------------- DeepSeek-V3

LAYERS, DENSE, EXPERTS = 61, 3, 256
MOE_LAYERS = LAYERS - DENSE + 1  # with the MTP layer
TENSORS = {
    "embedding": 2,  # the MTP layer has its own
    "head": 2,
    "norm": 2 * (LAYERS + 1) + 1 + 3,  # two in a layer, the last one, and enorm, hnorm, shared_head.norm
    "attention": (2 * 5 + 2) * (LAYERS + 1),  # five projections with scales and two norms
    "dense_mlp": 2 * 3 * DENSE,
    "router": 2 * MOE_LAYERS,
    "routed_experts": 2 * 3 * EXPERTS * MOE_LAYERS,
    "shared_experts": 2 * 3 * MOE_LAYERS,
    "other": 1,  # eh_proj
}


def test_every_tensor_of_deepseek_v3_is_known(real: Anatomy) -> None:
    """All 91,991 tensors of DeepSeek-V3 are in units, none is unknown, and each component has as many as it should."""
    units = real.units().values()
    assert sum(len(u.tensors) for u in units) == sum(TENSORS.values()) == 91_991
    counts = Counter[str]()
    for unit in units:
        counts[unit.role.component] += len(unit.tensors)
    assert counts == TENSORS
    assert all(u.role.known for u in units)
    assert [real.objection(u) for u in units if real.objection(u)] == []


def test_every_tensor_is_in_one_unit(real: Anatomy) -> None:
    """Units share no tensor and leave none out."""
    names = [t.name for unit in real.units().values() for t in unit.tensors]
    assert sorted(names) == sorted(real.checkpoint.tensors)


def test_the_mtp_layer_is_marked(real: Anatomy) -> None:
    """The mark is on exactly the tensors of layer 61, which keep their roles."""
    marked = [u for u in real.units().values() if u.role.mtp]
    assert {u.name for u in marked} == {n for n in real.units() if n.startswith("model.layers.61.")}
    assert {u.role.layer for u in marked} == {61}
    assert Counter(u.role.component for u in marked) == {
        "embedding": 1, "head": 1, "norm": 5, "attention": 7, "router": 2,
        "routed_experts": 768, "shared_experts": 3, "other": 1,
    }  # fmt: skip


def test_what_deepseek_stores_in_fp8_is_what_the_table_says(real: Anatomy) -> None:
    """`fp8` marks exactly the weights that have a scale in the published checkpoint."""
    for unit in real.units().values():
        assert unit.role.fp8 == (len(unit.tensors) == 2), unit.name


LAYER = "model.layers.7."
ROLES = {
    "model.embed_tokens.weight": Role("embedding", convertible=True),
    "lm_head.weight": Role("head", convertible=True),
    "model.norm.weight": Role("norm", convertible=True),
    LAYER + "input_layernorm.weight": Role("norm", 7, convertible=True),
    LAYER + "post_attention_layernorm.weight": Role("norm", 7, convertible=True),
    LAYER + "self_attn.q_proj.weight": Role("attention", 7, projection="q_proj", convertible=True, fp8=True),
    LAYER + "self_attn.q_a_proj.weight": Role("attention", 7, projection="q_a_proj", convertible=True, fp8=True),
    LAYER + "self_attn.q_b_proj.weight": Role("attention", 7, projection="q_b_proj", convertible=True, fp8=True),
    LAYER + "self_attn.kv_a_proj_with_mqa.weight": Role(
        "attention", 7, projection="kv_a_proj_with_mqa", convertible=True, fp8=True
    ),
    LAYER + "self_attn.kv_b_proj.weight": Role("attention", 7, projection="kv_b_proj", convertible=True, fp8=True),
    LAYER + "self_attn.o_proj.weight": Role("attention", 7, projection="o_proj", convertible=True, fp8=True),
    LAYER + "self_attn.q_a_layernorm.weight": Role("attention", 7, convertible=True),
    LAYER + "self_attn.kv_a_layernorm.weight": Role("attention", 7, convertible=True),
    LAYER + "self_attn.o_proj.bias": Role("attention", 7, projection="o_proj", convertible=True),
    LAYER + "mlp.gate.weight": Role("router", 7, convertible=True),
    LAYER + "mlp.gate.e_score_correction_bias": Role("router", 7, convertible=False),
    LAYER + "mlp.gate_proj.weight": Role("dense_mlp", 7, projection="gate_proj", convertible=True, fp8=True),
    LAYER + "mlp.up_proj.weight": Role("dense_mlp", 7, projection="up_proj", convertible=True, fp8=True),
    LAYER + "mlp.experts.0.gate_proj.weight": Role("routed_experts", 7, 0, "gate_proj", convertible=True, fp8=True),
    LAYER + "mlp.experts.255.down_proj.weight": Role("routed_experts", 7, 255, "down_proj", convertible=True, fp8=True),
    LAYER + "mlp.shared_experts.gate_proj.weight": Role(
        "shared_experts", 7, projection="gate_proj", convertible=True, fp8=True
    ),
    "model.layers.0.mlp.down_proj.weight": Role("dense_mlp", 0, projection="down_proj", convertible=True, fp8=True),
    "model.layers.60.mlp.gate.weight": Role("router", 60, convertible=True),
    "model.layers.61.mlp.gate.weight": Role("router", 61, mtp=True, convertible=True),
    "model.layers.61.mlp.experts.9.up_proj.weight": Role(
        "routed_experts", 61, 9, "up_proj", mtp=True, convertible=True, fp8=True
    ),
    "model.layers.61.embed_tokens.weight": Role("embedding", 61, mtp=True, convertible=True),
    "model.layers.61.shared_head.head.weight": Role("head", 61, mtp=True, convertible=True),
    "model.layers.61.shared_head.norm.weight": Role("norm", 61, mtp=True, convertible=True),
    "model.layers.61.enorm.weight": Role("norm", 61, mtp=True, convertible=True),
    "model.layers.61.hnorm.weight": Role("norm", 61, mtp=True, convertible=True),
    "model.layers.61.eh_proj.weight": Role("other", 61, mtp=True, convertible=True),
}


@pytest.mark.parametrize("name", ROLES)
def test_the_role_of_a_name(real: Anatomy, name: str) -> None:
    """Each kind of name has the component, layer, expert, projection and marks that a person would give it."""
    assert real.role(name) == ROLES[name]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.7.mlp.experts.256.up_proj.weight",  # one expert too many
        "model.layers.7.mlp.experts.0.up_proj.weight.extra",
        "prefix.model.layers.7.mlp.gate.weight",
        "model.layers.07.mlp.gate.weight",
        "model.layers.\u0667.mlp.gate.weight",  # a seven of another script
        "model.layers.#.mlp.gate.weight",
        "model.layers.#.mlp.experts.5.up_proj.weight",
        "model.layers.-1.mlp.gate.weight",
        f"model.layers.{'9' * 5000}.mlp.gate.weight",
        "model.layers.7.mlp.gate.weight\n",
        "model.layers.7.mlp.gate.bias",
        "model.layers.7.mlp.{projection}.weight",
        "model.layers.7.mlp.experts.gate_up_proj",
        "model.layers.7.self_attn.rotary_emb.inv_freq",
        "",
        ".",
    ],
)  # fmt: skip
def test_an_unknown_name_is_other(real: Anatomy, name: str) -> None:
    """A name that is no line of the table is `other`, marked unknown, and never convertible."""
    role = real.role(name)
    assert (role.component, role.known, role.mtp, role.convertible, role.fp8) == ("other", False, False, False, False)


@given(st.text(st.sampled_from("model.layersxp0123456789#_tgatwi\n\u0663")) | st.text())
def test_any_name_has_a_role(name: str) -> None:
    """Whatever a name is, asking for its role gives one."""
    assert not anatomy_of({}).role(name).known or name in ROLES


def test_unknown_tensors_are_kept(real: Anatomy) -> None:
    """Tensors with unknown names are units like all others."""
    found = anatomy_of({**deepseek(synthetic.CONFIG), "what.is.this": ("I64", (3,))}, synthetic.CONFIG).units()
    assert (found["what.is.this"].role, found["what.is.this"].storage) == (Role("other", known=False), "I64")


# ------------------------------------------------------------------------------------------------ units

UP = "model.layers.7.mlp.up_proj.weight"
SCALE = UP + "_scale_inv"


def test_a_scale_in_another_shard_is_of_the_same_unit(tmp_path: Path) -> None:
    """A weight and its scale make one unit wherever they lie, in every shuffled layout the same units."""
    plain = open_checkpoint(synthetic.make(tmp_path / "a", 0, "fp8", shards=1))
    apart = open_checkpoint(synthetic.make(tmp_path / "b", 0, "fp8", shards=4, shuffle=1))
    units, others = Anatomy(apart).units(), Anatomy(plain).units()
    assert sum(len({t.file for t in u.tensors}) == 2 for u in units.values()) > 10
    assert {n: [t.name for t in u.tensors] for n, u in units.items()} == {
        n: [t.name for t in u.tensors] for n, u in others.items()
    }


@pytest.mark.parametrize(
    ("weight", "scale", "scale_fmt", "storage"),
    [
        ("F8_E4M3", "F32", None, "FP8_BLOCK"),
        ("F8_E4M3", "F32", "ue8m0", "FP8_BLOCK_UE8M0"),
        ("F8_E4M3", "F8_E8M0", None, "FP8_BLOCK_UE8M0"),
        ("F8_E4M3", "BF16", None, "F8_E4M3 with BF16 scales"),
        ("F8_E5M2", "F32", None, "F8_E5M2 with F32 scales"),
        ("BF16", None, "ue8m0", "BF16"),
        ("I8", None, None, "I8"),
    ],
)
def test_the_storage_of_a_unit(weight: str, scale: str | None, scale_fmt: str | None, storage: str) -> None:
    """Codes with float32 scales, with powers of two, and what can only be copied have names of their own."""
    config = REAL | {"quantization_config": {"scale_fmt": scale_fmt}}
    scales: dict[str, Known] = {} if scale is None else {SCALE: (scale, (1, 1))}
    unit = anatomy_of({UP: (weight, (4, 4)), **scales}, config).units()[UP]
    assert unit.storage == storage
    assert (unit.storage in MIXABLE) == (storage in ("BF16", "FP8_BLOCK", "FP8_BLOCK_UE8M0"))


def test_unknown_names_keep_their_layer_and_the_mtp_mark() -> None:
    """A name that the table lacks is `other`, but in the layer that its prefix says, so that `mtp` and `layers` see it."""
    anatomy = anatomy_of({})
    num_layers = anatomy.num_layers
    assert anatomy.role("model.layers.2.new_thing.weight") == Role("other", 2, known=False)
    assert anatomy.role(f"model.layers.{num_layers}.new_thing.weight") == Role(
        "other", num_layers, mtp=True, known=False
    )
    assert anatomy.role("new.layers.2.thing") == Role("other", known=False)


def test_a_scale_without_its_weight_is_kept() -> None:
    """A scale whose weight is not there is a unit of its own, of an unknown name."""
    unit = anatomy_of({SCALE: ("F32", (1, 1))}).units()[SCALE]
    assert (len(unit.tensors), unit.role) == (1, Role("other", layer=7, known=False))


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_unit_that_is_asked_for_is_the_one_among_all(length: int) -> None:
    """Asked by name, a weight gives its unit; a scale of it gives none, nor does a name that is not there."""
    names = [UP + "_scale_inv" * n for n in range(length)]
    anatomy = anatomy_of(dict.fromkeys([*names, "x"], ("F32", (1, 1))))
    assert {n: anatomy.unit(n) for n in [*names, "x"]} == {**dict.fromkeys(names), **anatomy.units()}
    assert anatomy.unit("y") is None


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_a_chain_of_scales_loses_no_tensor(length: int) -> None:
    """Where a scale's name has a scale itself, every tensor is still in exactly one unit."""
    names = [UP + "_scale_inv" * n for n in range(length)]
    units = anatomy_of(dict.fromkeys(names, ("F32", (1, 1)))).units()
    assert [t.name for u in units.values() for t in u.tensors] == names
    assert list(units) == names[::2]


# ------------------------------------------------------------------------------------------- objections


def objections(tensors: Mapping[str, Known], config: Mapping[str, Any] = REAL) -> list[str | None]:
    """What is wrong with each unit."""
    found = anatomy_of(tensors, config)
    return [found.objection(unit) for unit in found.units().values()]


def test_fp8_without_its_scale_is_named() -> None:
    """Codes without a scale are numbers without a meaning."""
    assert objections({UP: ("F8_E4M3", (256, 300))}) == [f"{UP} is FP8 without its scale: there is no {SCALE}"]


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (6,), (2, 3, 1), ()])
def test_a_scale_of_the_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    """A scale needs one number for each 128x128 block, ragged ones counted."""
    tensors: dict[str, Known] = {UP: ("F8_E4M3", (256, 300)), SCALE: ("F32", shape)}
    assert objections(tensors) == [f"{SCALE} has the wrong shape: expected [2, 3], found {list(shape)}"]


def test_codes_that_are_no_matrix_are_named() -> None:
    """Blocks are of matrices: three dimensions are refused even if the scale's shape follows the rule."""
    tensors: dict[str, Known] = {UP: ("F8_E4M3", (2, 128, 128)), SCALE: ("F32", (1, 1, 1))}
    assert objections(tensors) == [f"{SCALE} has the wrong shape: expected [1, 1, 1], found [1, 1, 1]"]


def test_other_blocks_are_named() -> None:
    """Blocks of another size than 128x128 are refused, not decoded wrongly."""
    tensors: dict[str, Known] = {UP: ("F8_E4M3", (64, 64)), SCALE: ("F32", (1, 1))}
    config = REAL | {"quantization_config": {"weight_block_size": [64, 64]}}
    assert objections(tensors, config) == [f"{UP} has blocks of [64, 64]; only [128, 128] is known"]


@pytest.mark.parametrize("shape", [(256, 300), (1, 1), (576, 7168), (128, 129)])
def test_right_scales_raise_no_objection(shape: tuple[int, int]) -> None:
    """One scale for each begun block is right, with and without a word about blocks in the config."""
    scale = tuple(len(range(0, side, 128)) for side in shape)
    tensors: dict[str, Known] = {UP: ("F8_E4M3", shape), SCALE: ("F32", scale)}
    assert objections(tensors) == objections(tensors, synthetic.CONFIG) == [None]


def test_a_model_of_no_family_raises_no_objection() -> None:
    """Where no table says what belongs together, nothing is known to be wrong, and names still make units."""
    found = anatomy_of({UP: ("F8_E4M3", (256, 300)), "x": ("F32", (1,))}, {"model_type": "unheard"})
    assert [(u.role.known, found.objection(u)) for u in found.units().values()] == [(False, None)] * 2
    assert (found.family.name, found.num_layers, found.num_experts) == ("generic", 0, 0)


# ----------------------------------------------------------------------------------------------- config

YARN = {"factor": 40, "mscale": 1.0, "original_max_position_embeddings": 4096}


def test_an_empty_config_means_the_published_one() -> None:
    """Absent values have the family's defaults: those of DeepSeek-V3."""
    found = config_meaning(families()["deepseek_v3"], {})
    assert (found["hidden_size"], found["num_hidden_layers"], found["n_routed_experts"]) == (7168, 61, 256)
    assert (found["rope_theta"], found["rope_scaling"], found["tie_word_embeddings"]) == (10000.0, None, False)
    assert found == config_meaning(families()["deepseek_v3"], {"hidden_size": 7168, "rope_scaling": None})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 50000, "rope_scaling": {"type": "yarn", **YARN}},
            {"rope_parameters": {"rope_theta": 50000.0, "rope_type": "yarn", **YARN}},
        ),
        (
            {"rope_theta": 50000, "rope_scaling": {"type": "yarn", **YARN}},
            {"rope_theta": 50000, "rope_scaling": {"rope_type": "yarn", "type": "yarn", **YARN}},
        ),
        ({"rope_theta": 10000}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ({}, {"rope_parameters": {"rope_type": "default"}}),
    ],
)
def test_two_spellings_of_rope_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """rope_theta at the top and in rope_parameters, `type` and `rope_type`, are one value each."""
    family = families()["deepseek_v3"]
    assert config_meaning(family, old) == config_meaning(family, new)


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": 10001.0}}),
        ("rope_scaling", {"rope_scaling": {"type": "yarn", **YARN, "factor": 41}}),
        ("rope_scaling", {"rope_scaling": {"type": "linear", **YARN}}),
        ("routed_scaling_factor", {"routed_scaling_factor": 1.0}),
        ("scoring_func", {"scoring_func": "softmax"}),
    ],
)
def test_another_value_means_something_else(key: str, config: dict[str, Any]) -> None:
    """A value that changes what the tensors mean is seen under its name, and under no other."""
    family = families()["deepseek_v3"]
    base = config_meaning(family, {"rope_scaling": {"type": "yarn", **YARN}} if key == "rope_scaling" else {})
    found = config_meaning(family, config)
    assert [k for k in found if found[k] != base[k]] == [key]


@pytest.mark.parametrize("value", ["61", 61.0, -1, True, 1 << 20, [61], {}])
@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts"])
def test_a_count_that_is_no_count_is_refused(key: str, value: object) -> None:
    """Numbers of layers and experts must be whole, at least 0 and of a size that a model can have."""
    with pytest.raises(CheckpointError) as refused:
        anatomy_of({}, REAL | {key: value})
    assert str(refused.value) == f"nowhere: config.json: {key} must be a whole number\n  found:    {value!r}"


# ------------------------------------------------------------------------------------------ a new family

QWEN = """
name = "qwen3_moe"
model_types = ["qwen3_moe", "qwen3_moe_too"]
layers = "num_hidden_layers"
experts = "num_experts"
companion = "_scale_inv"

[[tensors]]
component = "embedding"
names = ["model.embed_tokens.weight"]

[[tensors]]
component = "norm"
names = ["model.norm.weight", "model.layers.{layer}.input_layernorm.weight"]

[[tensors]]
component = "attention"
names = ["model.layers.{layer}.self_attn.{projection}.weight"]
projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
fp8 = true

[[tensors]]
component = "attention"
names = ["model.layers.{layer}.self_attn.q_norm.weight", "model.layers.{layer}.self_attn.k_norm.weight"]

[[tensors]]
component = "router"
names = ["model.layers.{layer}.mlp.gate.weight"]
convertible = false

[[tensors]]
component = "routed_experts"
names = ["model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"]
projections = ["gate_proj", "up_proj", "down_proj"]
fp8 = true

[config]
num_hidden_layers = { default = 24 }
num_experts = { default = 128 }
"""
QWEN_ROLES = {
    "model.embed_tokens.weight": Role("embedding", convertible=True),
    "model.layers.3.self_attn.k_proj.weight": Role("attention", 3, projection="k_proj", convertible=True, fp8=True),
    "model.layers.3.self_attn.k_norm.weight": Role("attention", 3, convertible=True),
    "model.layers.23.mlp.gate.weight": Role("router", 23),
    "model.layers.23.mlp.experts.127.up_proj.weight": Role(
        "routed_experts", 23, 127, "up_proj", convertible=True, fp8=True
    ),
    "model.layers.3.mlp.experts.128.up_proj.weight": Role("other", 3, known=False),
    "model.layers.3.mlp.gate.e_score_correction_bias": Role("other", 3, known=False),
}


@pytest.mark.parametrize("name", QWEN_ROLES)
def test_a_family_is_a_table(name: str) -> None:
    """Names of another family get their roles from its TOML text alone."""
    found = anatomy_of({}, {"model_type": "qwen3_moe"}, load_family(QWEN))
    assert found.role(name) == QWEN_ROLES[name]


def test_a_family_is_added_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table laid beside the others is found by each of its model types; other models stay generic."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "qwen3_moe.toml").write_text(QWEN)
    monkeypatch.setattr(anatomy, "files", lambda package: tmp_path)
    monkeypatch.setattr(anatomy, "families", anatomy.families.__wrapped__)  # not what was read before
    found = [family_of({"model_type": kind}).name for kind in ("qwen3_moe", "qwen3_moe_too", "llama", 7)]
    assert found == ["qwen3_moe", "qwen3_moe", "generic", "generic"]
    assert family_of({}).name == "generic"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("component = ", "compnent = "), "unknown field `compnent`"),
        (('"router"', '"gate"'), "Invalid enum value 'gate'"),
        (("convertible = false", 'convertible = "no"'), "Expected `bool`, got `str`"),
        (('companion = "_scale_inv"', ""), "missing required field `companion`"),
        (("{ default = 24 }", "{ defualt = 24 }"), "unknown field `defualt`"),
    ],
)
def test_a_slip_in_a_table_is_refused(wrong: tuple[str, str], says: str) -> None:
    """A misspelt word in a table is an error with its place, not a tensor that is silently unknown."""
    with pytest.raises(msgspec.ValidationError) as refused:
        load_family(QWEN.replace(*wrong))
    assert says in str(refused.value)


def test_no_table_says_two_things_of_one_name() -> None:
    """In each family's table every name stands once, and its numbers are keys of its config."""
    for family in cast("list[Family]", list(families().values())):
        names = [
            name.replace("{projection}", projection)
            for line in family.tensors
            for name in line.names
            for projection in line.projections or [""]
        ]
        assert len(names) == len(set(names)) == len(family.patterns())
        assert {family.layers, family.experts} <= set(family.config)
