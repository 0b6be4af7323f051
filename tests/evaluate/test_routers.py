"""What routers do: against transformers' own routers and losses, and against figures counted by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.compare import compare_checkpoints
from chimerakit.compare.states import open_states
from chimerakit.errors import CheckpointError, TaskError
from chimerakit.evaluate import Subject, evaluate_models, load_task
from chimerakit.evaluate.reading import Surprise
from chimerakit.evaluate.records import Evaluation, Settings
from chimerakit.evaluate.run import asks_of
from chimerakit.evaluate.summary import perplexity
from chimerakit.evaluate.wording import Wording, check_wordings
from chimerakit.formats import open_checkpoint
from chimerakit.numerics.routing import choose_experts, margins
from tests.merging import merge

FAMILY = Path(__file__).parents[2] / "examples" / "tiny-family"
PARENTS = {"v3": FAMILY / "v3-like", "r1": FAMILY / "r1-like"}
TEXTS = 4

# transformers and torch warn of themselves when they load a model.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is kept."""
    return tmp_path_factory.mktemp("routers")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    """The parents, and the child with V3-like's router over R1-like's experts."""
    merge(PARENTS, "- {take: r1, components: routed_experts}", folder / "r1t")
    return PARENTS | {"r1t": folder / "r1t"}


@pytest.fixture(scope="module")
def found(models: dict[str, Path], folder: Path) -> Evaluation:
    """All of them on a few answers of R1-like."""
    return evaluate_models(
        [Subject(name, path) for name, path in models.items()],
        [load_task(FAMILY / "task.yaml", count=TEXTS)],
        folder / "out",
        settings=Settings(max_tokens=160),
        against=["r1"],
        router_texts=TEXTS,
    )


def texts_of(folder: Path) -> list[str]:
    """What was read: prompts with R1-like's answers."""
    text = (folder / "out" / "r1" / "chain.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if '"problem"' in line]
    answers = {line["problem"]: line["said"]["text"] for line in lines}
    problems = load_task(FAMILY / "task.yaml", count=TEXTS).problems
    return [f"<|begin|><|user|>{p.question}<|assistant|>" + answers[p.id] for p in problems]


@pytest.fixture(scope="module")
def naive(found: Evaluation, models: dict[str, Path], folder: Path) -> dict[str, dict[int | str, Any]]:
    """The same texts in transformers, and what its own router modules chose; per layer (tokens, experts)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    del found
    told: dict[str, dict[int | str, Any]] = {}
    for name, path in models.items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        chosen: dict[int, list[Any]] = {1: [], 2: []}
        handles = [
            model.model.layers[layer].mlp.gate.register_forward_hook(
                lambda _m, _i, output, own=chosen[layer]: own.append(output[2].reshape(-1, 2))
            )
            for layer in chosen
        ]
        losses, tokens = 0.0, 0
        for text in texts_of(folder):
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            prompt = len(tokenizer(text[: text.index("<|assistant|>") + 13], add_special_tokens=False)["input_ids"])
            labels = ids.clone()
            labels[:, :prompt] = -100
            with torch.inference_mode():
                losses += float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - prompt)
            tokens += ids.shape[1] - prompt
        for handle in handles:
            handle.remove()
        told[name] = {layer: torch.cat(each).numpy() for layer, each in chosen.items()}
        told[name]["perplexity"] = math.exp(losses / tokens)
    return told


def marked(numbers: Any) -> Any:
    """(tokens, experts): which were chosen."""
    found = np.zeros((len(numbers), 16), bool)
    np.put_along_axis(found, numbers, True, axis=1)
    return found


@pytest.mark.slow
def test_loads_and_choices_are_those_of_transformers_own_routers(
    found: Evaluation, naive: dict[str, dict[int | str, Any]]
) -> None:
    """Expert by expert, and pair by pair."""
    assert found.routers is not None
    for health in found.routers.health:
        for layer in health.layers:
            mine = marked(naive[health.model][layer.layer])
            assert layer.loads == tuple(mine.sum(0).tolist())
            assert (layer.dead, layer.overloaded) == (
                int((mine.sum(0) == 0).sum()),
                int((mine.sum(0) > 2 * mine.sum() / 16).sum()),
            )
            for other, share in layer.overlap.items():
                assert share == pytest.approx((mine & marked(naive[other][layer.layer])).sum() / mine.sum())


@pytest.mark.slow
def test_perplexities_are_those_of_transformers_own_loss(
    found: Evaluation, naive: dict[str, dict[int | str, Any]]
) -> None:
    """Of the answers, given their prompts; R1-like is least surprised by its own."""
    assert found.routers is not None
    for name, said in found.routers.perplexity.items():
        assert said.value == pytest.approx(naive[name]["perplexity"], rel=1e-4)
        assert said.low <= said.value <= said.high
    assert min(found.routers.perplexity, key=lambda n: found.routers.perplexity[n].value) == "r1"  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_first_router_sees_what_the_bases_sees(found: Evaluation) -> None:
    """A child with the base's router and all before it chooses alike there; behind the first exchanged experts it drifts."""
    assert found.routers is not None
    (child,) = [h for h in found.routers.health if h.model == "r1t"]
    first, second = child.layers
    assert (first.overlap["v3"], first.steady["v3"]) == (1, 1)
    assert second.overlap["v3"] < 1
    assert second.overlap["v3"] == second.steady["v3"]  # one router: what differs is due to the states


@pytest.mark.slow
def test_states_are_saved_for_compare(found: Evaluation, folder: Path) -> None:
    """Which asks both parents' routers on them."""
    assert found.routers is not None
    states = open_states(folder / "out" / "r1" / "states.safetensors")
    assert states.said.source == "r1: 4 answers of r1 to chain"
    parents = [open_checkpoint(path) for path in PARENTS.values()]
    compared = compare_checkpoints(*parents, states=states)
    for router in compared.routers:
        assert router.choices is not None
        assert router.choices.tokens == found.routers.tokens
        health = next(h for h in found.routers.health if h.model == "r1").layers[router.layer - 1]
        assert router.choices.loads_b == health.loads


@pytest.mark.slow
def test_models_whose_routers_do_not_fit_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """Before anything is asked."""
    shutil.copytree(models["v3"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 3}))
    task = load_task(FAMILY / "task.yaml", count=1)
    subjects = [Subject("v3", models["v3"]), Subject("other", tmp_path / "other")]
    with pytest.raises(CheckpointError, match="has other routers"):
        evaluate_models(subjects, [task], tmp_path / "out", router_texts=1)
    with pytest.raises(TaskError, match="in transformers only"):
        evaluate_models([Subject("far", address="http://localhost:1/v1")], [task], tmp_path / "out", router_texts=1)


def worded(name: str, path: Path, **vocabulary: str) -> Path:
    """A parent whose tokens have other names in its tokenizer; its weights are links."""
    path.mkdir()
    for file in PARENTS[name].iterdir():
        (path / file.name).symlink_to(file)
    text = (path / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {vocabulary.get(token, token): number for token, number in vocab.items()}
    for added in tokenizer["added_tokens"]:
        added["content"] = vocabulary.get(added["content"], added["content"])
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


OPENED = "{% if add_generation_prompt %}<think>{% endif %}"


@pytest.mark.slow
@pytest.mark.parametrize("opens", ["reference", "other"])
def test_a_template_that_opens_a_trace_does_not_part_models(opens: str, tmp_path: Path) -> None:
    """As R1's does, and V3-0324's does not: all read the tokens of the one whose answers they are."""
    paths = {"reference": worded("r1", tmp_path / "reference"), "other": worded("v3", tmp_path / "other")}
    template = paths[opens] / "chat_template.jinja"
    text = template.read_text() + OPENED
    template.unlink()
    template.write_text(text)
    task = load_task(FAMILY / "task.yaml", count=1)
    out = tmp_path / "out"
    settings = Settings(max_tokens=8)
    subjects = [Subject(name, path) for name, path in paths.items()]
    found = evaluate_models(subjects, [task], out, settings=settings, router_texts=1)
    said = json.loads((out / "reference" / "chain.jsonl").read_text().splitlines()[-1])["said"]["text"]
    (ask,) = asks_of(task, settings, 1)
    prompt = Wording(paths["reference"]).prompt(ask)
    assert prompt.endswith("<think>") == (opens == "reference")
    assert found.routers is not None
    assert found.routers.tokens == len(Wording(PARENTS["v3"]).ids(prompt + said))
    assert set(found.routers.perplexity) == {"reference", "other"}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"7": "8", "8": "7"}, "token 29 is '8', not '7'"),
        ({"<think>": "</think>", "</think>": "<think>"}, "token 5 is '</think>', not '<think>'"),
        ({"~": "§"}, "token 100 is '§', not '~'"),
    ],
)
def test_models_with_other_tokens_are_refused_before_anything_is_answered(
    names: dict[str, str], says: str, tmp_path: Path
) -> None:
    """What one's numbers mean would be something else to the other."""
    other = worded("v3", tmp_path / "other", **names)
    subjects = [Subject("r1", PARENTS["r1"]), Subject("other", other)]
    task = load_task(FAMILY / "task.yaml", count=1)
    with pytest.raises(CheckpointError, match="other has another tokenizer than r1, whose texts it shall read") as e:
        evaluate_models(subjects, [task], tmp_path / "out", router_texts=1)
    assert says in str(e.value)
    assert not (tmp_path / "out").exists()


def test_models_that_cut_questions_otherwise_or_know_fewer_tokens_are_refused(tmp_path: Path) -> None:
    """Though every token that both have is the same."""
    asks = asks_of(load_task(FAMILY / "task.yaml", count=1), Settings(), 1)
    for change, says in (("cut", "it cuts '.*' otherwise"), ("fewer", "127 tokens, not 128")):
        other = worded("v3", tmp_path / change)
        tokenizer = json.loads((other / "tokenizer.json").read_text())
        if change == "fewer":
            del tokenizer["model"]["vocab"]["<|reserved_26|>"]
            del tokenizer["added_tokens"][-1]
        else:
            tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "-"}, "content": "+"}
        (other / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(CheckpointError, match=says):
            check_wordings({"r1": PARENTS["r1"], "other": other}, "r1", asks)


def test_an_added_token_may_be_called_otherwise(tmp_path: Path) -> None:
    """A model that another was trained from keeps places for tokens that only the other one names."""
    other = worded("v3", tmp_path / "other", **{"<think>": "<|place 0|>", "</think>": "<|place 1|>"})
    asks = asks_of(load_task(FAMILY / "task.yaml", count=2), Settings(), 1)
    check_wordings({"r1": PARENTS["r1"], "other": other}, "r1", asks)
    check_wordings({"other": other, "r1": PARENTS["r1"]}, "other", asks)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=20))
def test_perplexity_is_over_tokens(texts: list[tuple[float, int]]) -> None:
    """Long texts count more."""
    found = perplexity([Surprise(*text) for text in texts])
    assert found.value == pytest.approx(math.exp(sum(n for n, _ in texts) / sum(t for _, t in texts)))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (2, 1), (2, 2)]), st.booleans())
def test_margins_by_hand(seed: int, groups: tuple[int, int], has_bias: bool) -> None:
    """The last chosen less the best that was not, in the groups that were used."""
    rng = np.random.default_rng(seed)
    scores = rng.random((5, 8), np.float32)
    bias = rng.random(8, np.float32) if has_bias else None
    count, used = groups
    chosen = choose_experts(scores, bias, top_k=2, num_groups=count, chosen_groups=used, group_score="best")
    for token, margin in enumerate(margins(scores, bias, chosen, count)):
        ranked = scores[token] + (bias if bias is not None else 0)
        size = 8 // count
        open_groups = {expert // size for expert in np.flatnonzero(chosen[token])}
        others = [ranked[e] for e in range(8) if not chosen[token, e] and e // size in open_groups]
        assert margin == pytest.approx(float(min(ranked[chosen[token]])) - float(max(others)), abs=1e-6)
