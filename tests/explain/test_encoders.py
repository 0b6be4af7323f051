"""Children that other programs made: shares are estimated, with an interval that holds the true one, and said to be so."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from chimerakit.explain import Explained, Explanation, explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.recipe import shares_at
from tests import synthetic
from tests.effort import examples

Tensors = dict[str, Tensor]
Average = Callable[[Tensor, Tensor, float], Tensor]
CONFIG = synthetic.CONFIG | {"hidden_size": 256, "moe_intermediate_size": 160}
APART = 0.05
"""How far the parents lie apart, relative to their size."""


@pytest.fixture(scope="module", params=["bf16", "fp8", "e8m0"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two parents of 1.5 M weights in routed experts."""
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


def make_family(storage: str, root: Path) -> dict[str, Path]:
    """Parents that differ by a twentieth."""
    found = {}
    for seed, name in enumerate(("v3", "r1"), 1):
        tensors = synthetic.tensors_of(seed, storage, config=CONFIG, spread=APART / 2**0.5)
        found[name] = synthetic.write_checkpoint(root / name, tensors, synthetic.config_of(storage, CONFIG), shards=1)
    return found


# --------------------------------------------------------------------------------------- other encoders


def in_float32(a: Tensor, b: Tensor, share: float) -> Tensor:
    """As mergekit 0.1.5's linear method: fused multiply-adds, divided by the sum of the weights."""
    found, weights = torch.zeros_like(a, dtype=torch.float32), torch.tensor([1 - share, share])
    for values, weight in zip((a, b), weights, strict=True):
        found.addcmul_(values.float(), weight.reshape((1,) * a.ndim))
    return found.div_(weights.sum())


def interpolated(a: Tensor, b: Tensor, share: float) -> Tensor:
    """As torch does it."""
    return torch.lerp(a.float(), b.float(), share)


def in_bf16(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Everything in BF16, as scripts do that dequantise to it."""
    return a.bfloat16() * (1 - share) + b.bfloat16() * share


def decode(tensors: Tensors, name: str) -> Tensor:
    """Values in float32."""
    weight = tensors[name].float()
    if name + "_scale_inv" not in tensors:
        return weight
    scales = tensors[name + "_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return weight * scales[: weight.shape[0], : weight.shape[1]]


def recast(values: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 codes by torch's own cast, and fresh scales."""
    (rows, cols), values = values.shape, values.float()
    padded = torch.nn.functional.pad(values, (0, -cols % 128, 0, -rows % 128))
    scales = padded.abs().unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).amax((1, 3)) / 448
    if like.dtype != torch.float32:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]
    return (values / spread).to(torch.float8_e4m3fn), scales.to(like.dtype)


def mix_values(average: Average, a: Tensors, b: Tensors, name: str, share: float) -> Tensors:
    """Decode, average, store again."""
    values = average(decode(a, name), decode(b, name), share)
    if (scale := name + "_scale_inv") not in a:
        return {name: values.to(a[name].dtype)}
    return dict(zip((name, scale), recast(values, a[scale]), strict=True))


def truncate(a: Tensors, b: Tensors, name: str, share: float) -> Tensors:
    """Towards zero: the low half of the float32 is cut off."""
    bits = interpolated(decode(a, name), decode(b, name), share).view(torch.int32)
    return {name: (bits >> 16 << 16).view(torch.float32).bfloat16()}


def average_apart(a: Tensors, b: Tensors, name: str, share: float) -> Tensors:
    """FP8 codes, and scales, as if they were weights."""
    names = name, name + "_scale_inv"
    return {n: in_float32(a[n].float(), b[n].float(), share).to(a[n].dtype) for n in names}


def average_into_bf16(a: Tensors, b: Tensors, name: str, share: float) -> Tensors:
    """The same, stored in BF16, as mergekit leaves them."""
    names = name, name + "_scale_inv"
    return {n: in_float32(a[n].bfloat16(), b[n].bfloat16(), share).bfloat16() for n in names}


def make_child(
    family: Mapping[str, Path], root: Path, share: float, make: Callable[[Tensors, Tensors, str, float], Tensors]
) -> Path:
    """V3 with routed experts by another encoder."""
    shutil.copytree(family["v3"], root)
    a, b = (load_file(family[name] / "model.safetensors") for name in ("v3", "r1"))
    child = dict(a)
    for name in a:
        if ".experts." in name and name.endswith(".weight"):
            child |= make(a, b, name, share)
    save_file(child, root / "model.safetensors", metadata={"format": "pt"})
    return root


def explain(child: Path, family: Mapping[str, Path]) -> Explanation:
    return explain_child(child, {name: open_checkpoint(path) for name, path in family.items()})


def experts_of(found: Explanation) -> list[Explained]:
    return [unit for unit in found.units if unit.role.component == "routed_experts"]


def check_share(found: Explanation, share: float) -> None:
    """The recipe's shares of the routed experts are those that were used, or near them; and so says every unit."""
    assert found.recipe is not None
    units = [unit for unit in experts_of(found) if unit.verdict != "unexplained"]
    assert len(units) >= 0.8 * len(experts_of(found))  # a few odd numbers in one unit might be anybody's doing
    if all(
        unit.verdict == "estimated" for unit in units
    ):  # where bytes are given, shares with more decimals may be, too
        assert [rule.components for rule in found.recipe.rules] == [("routed_experts",)]
        assert shares_at(found.recipe.rules[0], found.recipe, 1, 3).get("r1", 0) == pytest.approx(share, abs=0.02)
    for unit in units:
        assert unit.shares.get("r1", 0) == pytest.approx(share, abs=0.02)
        if unit.verdict != "equal":  # so small a share may be lost in rounding
            low, high = unit.ranges["r1"]
            assert low <= share <= high
            assert high - low < 0.04
    assert all(unit.verdict == "equal" for unit in found.units if unit.role.component != "routed_experts")


# -------------------------------------------------------------------------------------------- estimated


@pytest.mark.parametrize("average", [in_float32, pytest.param(interpolated, marks=pytest.mark.slow), in_bf16])
@pytest.mark.parametrize("share", [0.75, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.3, 0.6137))])
def test_a_share_is_estimated(family: dict[str, Path], average: Average, share: float, tmp_path: Path) -> None:
    """For averages by torch, stored by torch: within 0.02, and in the interval."""
    found = explain(make_child(family, tmp_path / "child", share, lambda *given: mix_values(average, *given)), family)
    check_share(found, share)
    encoders = {unit.encoder for unit in experts_of(found)}
    assert encoders <= ({"", "other float32 arithmetic"} if average is not in_bf16 else {"sums rounded to BF16"})
    assert found.is_explained == (encoders == {""})


@pytest.mark.parametrize("share", [0.3, pytest.param(0.75, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [average_apart, average_into_bf16])
def test_codes_and_scales_that_were_averaged_apart_are_recognised(
    make: Callable[[Tensors, Tensors, str, float], Tensors], share: float, tmp_path: Path
) -> None:
    """As programs do that know nothing of block scales; even where the codes are stored in BF16, and are no FP8 any more."""
    family = make_family("fp8", tmp_path)
    found = explain(make_child(family, tmp_path / "child", share, make), family)
    check_share(found, share)
    assert {unit.encoder for unit in experts_of(found)} == {"codes and scales averaged apart"}
    assert not found.is_explained


def test_a_child_that_is_not_rounded_to_nearest_is_estimated(tmp_path: Path) -> None:
    """Cut off, it looks like a sum in BF16, and the interval still holds the share."""
    family = make_family("bf16", tmp_path)
    found = explain(make_child(family, tmp_path / "child", 0.7, truncate), family)
    check_share(found, 0.7)
    assert {unit.verdict for unit in experts_of(found)} == {"estimated"}


def test_what_no_encoder_makes_of_the_parents_is_unexplained(tmp_path: Path) -> None:
    """One expert replaced by noise, among others that are estimated, is named."""
    family = make_family("bf16", tmp_path)
    child = make_child(family, tmp_path / "child", 0.75, lambda *given: mix_values(in_bf16, *given))
    tensors = load_file(child / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name] = torch.randn(tensors[name].shape).mul(0.02).bfloat16()
    save_file(tensors, child / "model.safetensors", metadata={"format": "pt"})
    found = explain(child, family)
    assert {unit.unit for unit in found.units if unit.verdict == "unexplained"} == {name}
    assert Counter(unit.verdict for unit in experts_of(found)) == {"estimated": 35, "unexplained": 1}


@pytest.mark.slow
@settings(max_examples=examples(quick=1, ci=3, prove=40))
@given(share=st.integers(500, 9500).map(lambda n: n / 10000), kind=st.sampled_from([in_float32, interpolated, in_bf16]))
def test_any_share_is_estimated(share: float, kind: Average, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of at most four decimals, in every storage: within 0.02."""
    root = tmp_path_factory.mktemp("any")
    for storage in ("bf16", "fp8", "e8m0"):
        family = make_family(storage, root / storage)
        make_child(family, root / storage / "child", share, lambda *given: mix_values(kind, *given))
        check_share(explain(root / storage / "child", family), share)
    shutil.rmtree(root)
