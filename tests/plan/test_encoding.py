"""What storing weights anew in quants costs, as a plan says it."""

from collections import Counter
from pathlib import Path

import pytest

from chimerakit.cli.show import plan_view
from chimerakit.dtypes import DECODABLE
from chimerakit.errors import MissingExtraError, PlanError
from chimerakit.merge import merge_parents
from chimerakit.numerics import ggml
from chimerakit.plan.encoding import bits_of, encoding_seconds
from chimerakit.runners.local import Threads
from tests import gguf_files
from tests.plan.test_gguf import plan_of

MIX = "- {mix: {r1: 0.75}, components: routed_experts}"
ROUTED = 2 * gguf_files.EXPERTS * 3 * 256 * gguf_files.HIDDEN


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models whose experts are Q2_K."""
    root = tmp_path_factory.mktemp("pair")
    return {
        name: gguf_files.make(root / f"{name}.gguf", seed, types={"exps": "Q2_K"})
        for seed, name in enumerate(("v3", "r1"), 1)
    }


def test_every_type_has_a_rate_and_bits() -> None:
    """Whatever can be stored is told how long it takes."""
    assert all(encoding_seconds(Counter({dtype: 10**9}), 1) > 0 for dtype in DECODABLE)
    assert [bits_of(dtype) for dtype in ("Q8_0", "Q4_K", "Q2_K")] == [8.5, 4.5, 2.625]


def test_a_plan_says_what_is_encoded_and_how_long_it_takes(pair: dict[str, Path]) -> None:
    """What is only copied is not."""
    view = plan_view(plan_of(pair, MIX), None, Threads(2))
    assert view.encoded == {"Q2_K": ROUTED}
    assert view.encoding_seconds == round(ROUTED / 11e6 / 2, 1)
    assert plan_view(plan_of(pair, MIX.replace("mix: {r1: 0.75}", "take: r1")), None, Threads(2)).encoded == {}


def test_below_four_bits_a_plan_warns(pair: dict[str, Path]) -> None:
    """Of mixes; with a larger type it does not."""
    (note,) = plan_of(pair, MIX).notes
    assert note.startswith(f"{ROUTED:,} weights are rounded anew to Q2_K, 2.62 bits each: below 4 bits")
    assert not any("bits" in note for note in plan_of(pair, MIX, output="dtype: q4_k").notes)


def test_what_needs_an_imatrix_is_refused(pair: dict[str, Path]) -> None:
    """llama.cpp does not encode it without, and so nobody does."""
    with pytest.raises(PlanError, match="would be encoded in IQ2_XS, which can't be done without an imatrix"):
        plan_of(pair, MIX, output="dtype: iq2_xs")


def test_a_missing_encoder_is_named_before_any_work(
    pair: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder is made for a child that can't be."""
    monkeypatch.setattr(ggml, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="gguf-quant"):
        merge_parents(plan_of(pair, MIX), tmp_path / "child")
    assert not (tmp_path / "child").exists()
    merge_parents(plan_of(pair, MIX, output="dtype: q8_0"), tmp_path / "child", allow_nonfinite=True)
