"""Engines: the same child in transformers, in llama.cpp and behind a real server says the same; sampling depends on seeds only."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from chimerakit.errors import ChimerakitError
from chimerakit.evaluate import Options, Subject, evaluate_models, load_task
from chimerakit.evaluate.backends import load_backend
from chimerakit.evaluate.backends.llama_cpp import LlamaCpp
from chimerakit.evaluate.backends.server import Server
from chimerakit.evaluate.backends.transformers import Transformers, _Drawn, draw
from chimerakit.evaluate.records import Ask, Generated, Settings
from chimerakit.evaluate.run import asks_of
from chimerakit.merge import merge_parents
from tests.effort import examples
from tests.merging import merge
from tests.plan.test_gguf import plan_of
from tests.test_family_gguf import FAMILY, load_script

# transformers and torch warn of themselves when they load a model.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

LAMBDAS = (0.25, 0.5, 0.75)
GREEDY = Settings(max_tokens=160)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny parents as GGUF, in BF16."""
    root = tmp_path_factory.mktemp("gguf")
    for name in ("v3", "r1"):
        load_script().convert(FAMILY / f"{name}-like", root / f"{name}.gguf")
    return {name: root / f"{name}.gguf" for name in ("v3", "r1")}


@pytest.fixture
def served(parents: dict[str, Path]) -> Iterator[str]:
    """The address of llama.cpp's own HTTP server, with V3-like in it."""
    engine = LlamaCpp(parents["v3"], at_once=2)
    yield f"{engine.serve(512)}/v1"
    engine.close()


def asks(count: int, samples: int = 1) -> list[Ask]:
    """Problems that no parent was trained on."""
    return asks_of(load_task(FAMILY / "task.yaml", count=count), GREEDY, samples)


def answers(backend: Any, wanted: list[Ask], settings: Settings = GREEDY) -> list[Generated]:
    """In the order of the problems."""
    found = {(ask.problem, ask.sample): said for ask, said in backend.answer(wanted, settings)}
    return [found[ask.problem, ask.sample] for ask in wanted]


@pytest.mark.parametrize("share", LAMBDAS)
def test_three_engines_say_the_same(parents: dict[str, Path], share: float, tmp_path: Path) -> None:
    """Greedy answers of a child in BF16: at least 98 % of them are the same, token for token; others are listed."""
    count = examples(quick=50, ci=100, prove=500)
    rules = f"- {{mix: {{r1: {share}}}, components: routed_experts}}"
    merge({name: FAMILY / f"{name}-like" for name in ("v3", "r1")}, rules, tmp_path / "safetensors")
    merge_parents(plan_of(parents, rules), tmp_path / "gguf")
    inside = LlamaCpp(tmp_path / "gguf" / "model.gguf", at_once=4)
    wanted = answers(Transformers(tmp_path / "safetensors", batch=32), asks(count))
    found = {"llama.cpp": answers(inside, asks(count))}
    server = Server(f"{inside.serve(512)}/v1", None, at_once=4)
    found["its server"] = answers(server, asks(count))
    server.close()
    inside.close()
    for name, there in found.items():
        unlike = [(name, a.text, b.text) for a, b in zip(wanted, there, strict=True) if a.text != b.text]
        assert len(unlike) <= 0.02 * count, unlike
        same = [(a, b) for a, b in zip(wanted, there, strict=True) if a.text == b.text]
        assert all((a.output_tokens, a.is_ended) == (b.output_tokens, b.is_ended) for a, b in same)
        assert [(name, a, b) for a, b in same if a.reasoning_tokens != b.reasoning_tokens] == []


def test_a_sample_depends_on_its_seed_and_on_nothing_else() -> None:
    """Neither on the batch that it is in, nor on what was asked before: an interrupted call draws what the whole one would."""
    settings = Settings(temperature=1.0, top_p=0.95, max_tokens=60)
    wanted = asks(6, samples=4)
    model = Transformers(FAMILY / "v3-like", batch=24)
    whole = [said.text for said in answers(model, wanted, settings)]
    model = Transformers(FAMILY / "v3-like", batch=5)
    assert [said.text for said in answers(model, wanted[::-1], settings)] == whole[::-1]
    assert len(set(whole)) > 6


def test_sampling_at_a_low_temperature_is_greedy() -> None:
    """The likeliest token wins whatever is drawn."""
    wanted = asks(8)
    model = Transformers(FAMILY / "r1-like", batch=8)
    greedy = [said.text for said in answers(model, wanted)]
    assert [said.text for said in answers(model, wanted, Settings(temperature=1e-4, max_tokens=160))] == greedy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_checkpoints_generation_config_changes_no_answer(temperature: float, tmp_path: Path) -> None:
    """Penalties, lengths, suppressed tokens and settings of sampling stay out; where answers end is kept."""
    shutil.copytree(FAMILY / "v3-like", tmp_path / "m")
    file = tmp_path / "m" / "generation_config.json"
    theirs = {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 30,
        "suppress_tokens": list(range(20, 30)),
        "begin_suppress_tokens": list(range(3, 20)),
        "forced_eos_token_id": 5,
        "max_length": 3,
        "num_beams": 3,
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 5,
        "stop_strings": ["1"],
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
    settings = Settings(temperature=temperature, max_tokens=40)
    plain, changed = (Transformers(path, batch=4) for path in (FAMILY / "v3-like", tmp_path / "m"))
    wanted = answers(plain, asks(4), settings)
    found = answers(changed, asks(4), settings)
    assert [(said.text, said.is_ended) for said in found] == [(said.text, said.is_ended) for said in wanted]
    assert any(said.is_ended for said in found)


def test_a_real_server_is_evaluated(served: str, tmp_path: Path) -> None:
    """Through the whole command's code; a second call needs the server for nothing but its model's name."""
    task = load_task(FAMILY / "task.yaml", count=10)
    subjects = [Subject("far", address=served), Subject("near", path=FAMILY / "v3-like")]
    found = evaluate_models(subjects, [task], tmp_path, settings=GREEDY, options=Options(at_once=2))
    far, near = found.measurements
    assert far.output_tokens == near.output_tokens
    assert far.accuracy == near.accuracy
    (difference,) = found.differences
    assert (difference.accuracy.value, difference.token_ratio.value) == (0, 1)
    assert evaluate_models(subjects, [task], tmp_path, settings=GREEDY, options=Options(at_once=2)) == found


def test_a_checkpoint_without_weights_is_one_error(tmp_path: Path) -> None:
    """Not a stack of calls."""
    shutil.copytree(FAMILY / "v3-like", tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(ChimerakitError, match="transformers can't load it"):
        load_backend(tmp_path / "m", at_once=1)


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_from_are_the_fewest_likeliest_tokens_with_the_share(top_p: float, temperature: float) -> None:
    """The most likely one always, then others until together they have the share; only these keep their logits."""
    import torch

    logits = np.random.default_rng(0).normal(scale=3, size=(5, 13)).astype(np.float32)
    logits[0], logits[1, 4] = 0, 50  # all alike; one that has nearly everything
    drawn = _Drawn([1, 2, 3, 4, 5], 3, Settings(temperature=temperature, top_p=top_p))
    found = drawn(torch.zeros(5, 5, dtype=torch.long), torch.from_numpy(logits)).numpy()
    for row, seed in enumerate([1, 2, 3, 4, 5]):
        scaled = logits[row].astype(np.float64) / temperature
        shares = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
        kept: list[int] = []
        mass = 0.0
        for token in np.argsort(-shares, kind="stable").tolist():
            if not kept or mass < top_p or top_p == 1:
                kept.append(token)
            mass += shares[token]
        if row == 0:  # which of equal ones is nobody's business
            assert np.isfinite(found[row]).sum() == len(kept)
            continue
        assert np.flatnonzero(np.isfinite(found[row])).tolist() == sorted(kept)
        np.testing.assert_allclose(found[row][kept], (scaled + draw(seed, 2, 13))[kept], rtol=1e-5, atol=1e-5)


def test_numbers_that_are_drawn_for_two_places_have_nothing_in_common() -> None:
    """Neither the same place nor a shifted one; a pair of tokens is drawn as their probabilities say."""
    numbers = [draw(7, place, 64) for place in range(20)]
    assert len({number for line in numbers for number in line.tolist()}) == 20 * 64
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), size=4)
    counts = np.zeros((4, 4))
    for seed in range(4000):
        a = int(np.argmax(np.log(first) + draw(seed, 0, 4)))
        counts[a, int(np.argmax(np.log(second[a]) + draw(seed, 1, 4)))] += 1
    assert chisquare(counts.ravel(), (first[:, None] * second).ravel() * 4000).pvalue > 1e-4
