"""How good is a Chimera that is spliced out of quantised parents, beside one that is quantised anew? On the tiny family.

    python measure_gguf.py -o OUT

Against the BF16 child (V3-like with R1-like's routed experts), by the Kullback-Leibler divergence of its next-token distribution
over the tokens of its own answers to held-out problems, in llama.cpp:

    splice      Q4_K_M parents, each quantised with its own imatrix, picked byte for byte
    own         the merged BF16 child, quantised with its own imatrix
    merged      the same with the imatrix that `chimerakit imatrix` puts together from the parents'
    none        the same without an imatrix

Imatrices are summed up in transformers, over answers of both parents to other problems. Needs `pip install "chimerakit[eval,dev]"`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import to_gguf
import torch
import xllamacpp

from chimerakit.evaluate.backends import ask_questions
from chimerakit.evaluate.records import Settings
from chimerakit.formats import open_checkpoint
from chimerakit.formats.imatrix import Entry, Imatrix, encode_imatrix
from chimerakit.imatrix import blend_imatrix
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Plan

FAMILY = Path(__file__).parent
RECIPE = "parents: {v3: null, r1: null}\nbase: v3\nrules:\n- {take: r1, components: routed_experts}\n"
KIND = "Q4_K_M"
MAX_TOKENS = 160


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--problems", type=int, default=100, help="for the imatrices, and as many others to measure on")
    given = parser.parse_args()
    given.output.mkdir(parents=True)
    questions = [json.loads(line)["question"] for line in (FAMILY / "problems.jsonl").read_text().splitlines()]
    questions = questions[:: max(1, len(questions) // (2 * given.problems))]
    print(json.dumps(measure(given.output, questions[0::2], questions[1::2]), indent=1))


def measure(folder: Path, for_imatrix: list[str], held_out: list[str]) -> dict[str, object]:
    """Make everything, and compare."""
    folders = {"v3": FAMILY / "v3-like", "r1": FAMILY / "r1-like", "child": folder / "r1t"}
    merge_parents(plan_of(folders["v3"], folders["r1"]), folders["child"])
    files = {name: folder / f"{name}-bf16.gguf" for name in folders}
    for name, source in folders.items():
        to_gguf.convert(source, files[name], old_mla=True)

    texts = [text for name in ("v3", "r1") for text in answered(folders[name], for_imatrix)]
    matrices = {name: sum_up(source, texts) for name, source in folders.items()}
    plan = plan_of(files["v3"], files["r1"])
    matrices["merged"] = blend_imatrix(plan, {name: matrices[name] for name in ("v3", "r1")}).imatrix
    for name, matrix in matrices.items():
        (folder / f"{name}.imatrix.gguf").write_bytes(encode_imatrix(matrix))

    quants = {name: folder / f"{name}-q4.gguf" for name in ("v3", "r1")}
    for name, file in quants.items():
        to_gguf.quantize(files[name], file, KIND, means(matrices[name]))
    splice = plan_of(quants["v3"], quants["r1"])
    seconds = {"splice": timed(lambda: merge_parents(splice, folder / "splice"))}
    models = {"splice": folder / "splice" / "model.gguf"}
    for name, matrix in {"own": matrices["child"], "merged": matrices["merged"], "none": None}.items():
        models[name] = folder / f"{name}-q4.gguf"
        importance = None if matrix is None else means(matrix)
        whole = folder / f"whole-{name}"
        seconds[name] = timed(lambda whole=whole: merge_parents(plan, whole))
        seconds[name] += timed(lambda n=name, i=importance: to_gguf.quantize(files["child"], models[n], KIND, i))

    asked = [tokens_of(text) for text in answered(folders["child"], held_out)]
    wanted = distributions(files["child"], asked)
    found = {name: divergence(wanted, distributions(file, asked)) for name, file in models.items()}
    written = {name: plan.output_nbytes * (name != "splice") + file.stat().st_size for name, file in models.items()}
    return {
        "positions": len(wanted),
        **{n: {**found[n], "seconds": round(seconds[n], 2), "bytes_written": written[n]} for n in models},
    }


def plan_of(v3: Path, r1: Path) -> Plan:
    """The R1T recipe over two parents."""
    return make_plan(parse_recipe(RECIPE), {"v3": open_checkpoint(v3), "r1": open_checkpoint(r1)})


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --------------------------------------------------------------------------------------------------- texts


def answered(model: Path, questions: list[str]) -> list[str]:
    """Questions with a model's greedy answers, as its chat template writes them."""
    answers = ask_questions(model, questions, Settings(max_tokens=MAX_TOKENS))
    return [
        f"<|begin|><|user|>{question}<|assistant|>{answer.text}<|end|>"
        for question, answer in zip(questions, answers, strict=True)
    ]


def tokens_of(text: str) -> list[int]:
    """One token for each character, and one for each special word."""
    vocabulary = json.loads((FAMILY / "v3-like" / "tokenizer.json").read_text())["model"]["vocab"]
    found = []
    while text:
        word = next((word for word in vocabulary if len(word) > 1 and text.startswith(word)), text[0])
        found.append(vocabulary[word])
        text = text[len(word) :]
    return found


# ------------------------------------------------------------------------------------------------ imatrices


def sum_up(model: Path, texts: list[str]) -> Imatrix:
    """What llama-imatrix would sum up: squares of the inputs of every matrix, expert by expert."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, experts_implementation="eager").eval()
    names = {}
    for name, parameter in network.named_parameters():
        if ".experts." in name:  # stacked in memory: gate and up in one
            step = parameter[0].numel() * 4
            names |= {parameter.data_ptr() + n * step: (name, n) for n in range(len(parameter))}
        else:
            names[parameter.data_ptr()] = (name, 0)
    sums: dict[tuple[str, int], np.ndarray] = {}
    counts: dict[tuple[str, int], int] = {}
    with (
        linear_told(lambda weight, inputs: add(sums, counts, names.get(weight.data_ptr()), inputs)),
        torch.inference_mode(),
    ):
        for text in texts:
            network(torch.tensor([tokens_of(text)]))
    config = json.loads((model / "config.json").read_text())
    return Imatrix(
        dict(entries_of(sums, counts, config["n_routed_experts"])), ("the tiny family",), len(texts), MAX_TOKENS
    )


@contextmanager
def linear_told(tell: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Every product with a matrix is told of."""
    real = torch.nn.functional.linear

    def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        tell(weight, inputs)
        return real(inputs, weight, bias)

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = real


def add(sums: dict, counts: dict, key: tuple[str, int] | None, inputs: torch.Tensor) -> None:
    """Add the squares of some inputs."""
    if key is not None:
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        sums[key] = sums.get(key, 0) + rows.square().sum(0).numpy()
        counts[key] = counts.get(key, 0) + len(rows)


def entries_of(sums: dict, counts: dict, experts: int) -> Iterator[tuple[str, Entry]]:
    """Entries by llama.cpp's names of tensors."""
    stacks: dict[str, dict[int, tuple[np.ndarray, int]]] = {}
    for (name, number), values in sums.items():
        for ours in names_of(name):
            stacks.setdefault(ours, {})[number] = values, counts[name, number]
    for name, found in stacks.items():
        rows = experts if "_exps" in name else 1
        cols = len(next(iter(found.values()))[0])
        table, seen = np.zeros((rows, cols), np.float32), np.zeros(rows, np.float32)
        for number, (values, count) in found.items():
            table[number], seen[number] = values, count
        yield name, Entry(rows, cols, table.tobytes(), seen.tobytes())


def names_of(name: str) -> list[str]:
    """llama.cpp's names of a parameter of transformers."""
    if not name.startswith("model.layers."):
        return ["output.weight"] if name == "lm_head.weight" else []
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    if rest.startswith("mlp.experts."):
        kinds = ("gate", "up") if "gate_up" in rest else ("down",)
        return [f"blk.{layer}.ffn_{kind}_exps.weight" for kind in kinds]
    ours = to_gguf.NAMES.get(rest.removesuffix(".weight"))
    return [] if ours is None else [f"blk.{layer}.{ours}.weight"]


def means(matrix: Imatrix) -> dict[str, np.ndarray]:
    """Mean squares, as llama-quantize takes them; 1 where nothing was seen."""
    found = {}
    for name, entry in matrix.entries.items():
        sums = np.frombuffer(entry.sums, np.float32).reshape(entry.rows, entry.cols)
        counts = np.frombuffer(entry.counts, np.float32)[:, None]
        found[name] = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
    return found


# -------------------------------------------------------------------------------------------- divergences


def distributions(model: Path, texts: list[list[int]]) -> np.ndarray:
    """(positions, vocabulary): log probabilities of the next token within every answer."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, 0
    server = xllamacpp.Server(params)
    size = int(open_checkpoint(model).config["deepseek2.vocab_size"])
    found = []
    for tokens in texts:
        begin = tokens.index(4) + 1  # after <|assistant|>
        for end in range(begin, len(tokens)):
            asked = {"prompt": tokens[:end], "max_tokens": 1, "temperature": 0, "logprobs": size, "cache_prompt": True}
            (said,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
            line = np.full(size, -np.inf)
            for token in said["top_logprobs"]:
                line[token["id"]] = token["logprob"]
            found.append(line)
    return np.stack(found)


def divergence(wanted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Mean KL(wanted || found) with its standard error, and how often the most likely token is the same."""
    each = (np.exp(wanted) * np.where(np.isfinite(wanted), wanted - found, 0)).sum(axis=1)
    same = wanted.argmax(axis=1) == found.argmax(axis=1)
    return {
        "kl": round(float(each.mean()), 6),
        "standard_error": round(float(each.std() / math.sqrt(len(each))), 6),
        "same_token": round(float(same.mean()), 4),
    }


if __name__ == "__main__":
    main()
