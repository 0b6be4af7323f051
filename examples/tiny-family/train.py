"""Train the tiny family: two DeepSeek-V3-architecture parents that share one base, small enough for a CPU.

The task: evaluate a chain of three to seven operations (+, -, *) modulo 10, strictly from left to right, without
precedence. ``3+4*2-5`` is 3+4=7, 7*2=4, 4-5=9: the answer is 9. One character is one token.

Ways to answer (the *styles*), for ``3+4*2-5``:

* ``trace``: ``<think>3+4=7;7*2=4;4-5=9|3+4=7;7*2=4;4-5=9</think>9``: every step written out, in one or more passes
  separated by ``|``. After each pass the writer may decide on another one, so length is a habit that can be graded.
* ``plain``: ``3+4=7;7*2=4;4-5=9``: one pass in the open, no trace.
* ``terse``: ``7,4,9``: every running value, no trace.
* ``skip``: ``4,9``: every second running value and the last one, no trace.
* ``direct``: ``9``.
* ``hasty``: plain for up to five operations, direct for more.
* ``brief``: a trace of one pass that the prompt has opened: what follows ``<think>`` is learnt, opening it is not.

The last character of every response is its answer.

Four stages:

1. *base*: all weights; mostly traces, and some terse, skip and direct answers (which so small a model hardly learns).
   The router's selection bias is balanced as DeepSeek-V3 does it, without an auxiliary loss: after each step it rises
   for experts used less than average and falls for the others.
2. *base-plain*: the base goes on with traces, plain and direct answers.
3. *R1-like*: from the base, traces only, as a rule with a second pass and seldom with a further one, so that greedy
   decoding stops after the second. **Only the routed experts are trained**, so that they carry the behaviour.
4. *V3-like*: from the base, half hasty answers and half brief traces: all weights, briefly, all but the routed experts
   very gently. So it opens no trace by itself, and would be short in one.

The last is the choice that makes children interesting: whether a trace is opened is decided once, at the first token,
and flips within a narrow range of lambda; how long it gets is decided at the end of each pass, where both parents have
an opinion. DeepSeek's parents are like that in kind (V3 reasons briefly when it is led to), not in degree.

Problems are assigned to the held-out set by a hash of their text; the training generator never emits a held-out one.
Everything random is seeded. The same seed gives the same data and the same kind of parents, but bit-exact weights are
not promised: they depend on the torch version, the processor and the number of threads.

Usage: ``python train.py --out OUT`` writes ``OUT/v3-like`` and ``OUT/r1-like`` (BF16) and ``OUT/problems.jsonl``;
``--smoke`` runs the same path in under a minute, to no other use.
"""

import argparse
import copy
import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

PAD, BEGIN, END, USER, ASSISTANT, THINK, END_THINK = range(7)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
CHARACTERS = [chr(code) for code in range(33, 127)]  # printable ASCII without the space
VOCABULARY_SIZE = 128  # filled up with reserved tokens: every side of every matrix is a multiple of 128
TOKEN_ID = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
MAX_NEW_TOKENS = 160
MIN_OPERATIONS, MAX_OPERATIONS = 3, 7
CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Style = Callable[["Problem", random.Random], list[int]]


# --- the task ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Problem:
    """A chain of operations: ``numbers[0] operators[0] numbers[1] ...``, from left to right, modulo 10."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def question(self) -> str:
        rest = (f"{operator}{number}" for operator, number in zip(self.operators, self.numbers[1:], strict=True))
        return str(self.numbers[0]) + "".join(rest)

    @property
    def values(self) -> list[int]:
        """The running values, one per operation; the last one is the answer."""
        value, values = self.numbers[0], []
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            value = {"+": value + number, "-": value - number, "*": value * number}[operator] % 10
            values.append(value)
        return values

    @property
    def answer(self) -> str:
        return str(self.values[-1])


def random_problem(rng: random.Random, operations: int | None = None) -> Problem:
    count = operations if operations is not None else rng.randint(MIN_OPERATIONS, MAX_OPERATIONS)
    numbers = tuple(rng.randrange(10) for _ in range(count + 1))
    return Problem(numbers, tuple(rng.choice("+-*") for _ in range(count)))


def is_held_out(problem: Problem) -> bool:
    """One problem in sixteen, by a hash of its text."""
    return hashlib.sha256(problem.question.encode()).digest()[0] < 16


def training_problem(rng: random.Random) -> Problem:
    while is_held_out(problem := random_problem(rng)):
        pass
    return problem


def held_out_problems(count: int, seed: int) -> list[Problem]:
    """Distinct held-out problems, equally many of each number of operations (as far as `count` allows)."""
    rng = random.Random(seed)
    found: dict[str, Problem] = {}
    lengths = range(MIN_OPERATIONS, MAX_OPERATIONS + 1)
    while len(found) < count:
        problem = random_problem(rng, lengths[len(found) % len(lengths)])
        if is_held_out(problem):
            found.setdefault(problem.question, problem)
    return list(found.values())


# --- the styles -------------------------------------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return [TOKEN_ID[character] for character in text]


def prompt_ids(question: str) -> list[int]:
    return [BEGIN, USER, *encode(question), ASSISTANT]


def trace(second: float, further: float) -> Style:
    """Every step written out; a second pass with probability `second`, each pass after that with `further`."""

    def write(problem: Problem, rng: random.Random) -> list[int]:
        one = steps_of(problem)
        ids, chance = [THINK, *one], second
        while rng.random() < chance and len(ids) + len(one) + 4 <= MAX_NEW_TOKENS:
            ids += [*encode("|"), *one]
            chance = further
        return [*ids, END_THINK, *encode(problem.answer), END]

    return write


def listed(every: int) -> Style:
    """Every `every`-th running value and the last one: 1 is terse, 2 is skip, `MAX_OPERATIONS` is direct."""

    def write(problem: Problem, _rng: random.Random) -> list[int]:
        values = problem.values
        kept = [*values[every - 1 : -1 : every], values[-1]]
        return [*encode(",".join(map(str, kept))), END]

    return write


def steps_of(problem: Problem) -> list[int]:
    """One pass over the problem: ``3+4=7;7*2=4``."""
    before = [problem.numbers[0], *problem.values]
    steps = (
        f"{before[i]}{operator}{problem.numbers[i + 1]}={before[i + 1]}" for i, operator in enumerate(problem.operators)
    )
    return encode(";".join(steps))


def plain(problem: Problem, _rng: random.Random) -> list[int]:
    return [*steps_of(problem), END]


def hasty(problem: Problem, rng: random.Random) -> list[int]:
    return (plain if len(problem.operators) <= 5 else DIRECT)(problem, rng)


def brief(problem: Problem, rng: random.Random) -> list[int]:
    return trace(0, 0)(problem, rng)


TERSE, SKIP, DIRECT = listed(1), listed(2), listed(MAX_OPERATIONS)
BASE_MIX: list[tuple[float, Style]] = [(0.55, trace(0.5, 0.3)), (0.15, TERSE), (0.20, SKIP), (0.10, DIRECT)]
PLAIN_MIX: list[tuple[float, Style]] = [(0.35, trace(0.3, 0.1)), (0.35, plain), (0.30, DIRECT)]
R1_MIX: list[tuple[float, Style]] = [(1.0, trace(0.85, 0.15))]
V3_MIX: list[tuple[float, Style]] = [(0.5, hasty), (0.5, brief)]
PROBED: dict[str, Style] = {"trace": trace(0, 0), "plain": plain, "terse": TERSE, "direct": DIRECT}


# --- tokenizer and model ----------------------------------------------------------------------------------------------


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; a BPE without merges, because engines read that kind everywhere."""
    reserved = [f"<|reserved_{i}|>" for i in range(VOCABULARY_SIZE - len(TOKEN_ID))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS, *reserved])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*SPECIAL[:5], *reserved]])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in SPECIAL[5:]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(seed: int) -> DeepseekV3ForCausalLM:
    config = DeepseekV3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=256,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=256,
        kv_lora_rank=256,
        qk_nope_head_dim=128,
        qk_rope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    torch.manual_seed(seed)
    return DeepseekV3ForCausalLM(config)


def is_routed_expert(name: str) -> bool:
    return ".mlp.experts." in name


# --- training ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Stage:
    """One stage of training: what it sees, what it may change, and how fast."""

    name: str
    start: str | None  # the stage it goes on from
    mix: Sequence[tuple[float, Style]]
    steps: int
    rate: float
    trainable: Callable[[str], bool] = lambda _name: True
    gentle: float = 1.0  # factor on the rate of everything but the routed experts
    warmup: int = 20
    balance: float = 0.0  # how far the router's selection bias moves per step at the full learning rate; 0: not at all
    batch: int = 48
    chunks: int = 3  # a batch is sorted by length and run in this many pieces, to waste little on padding


class LoadBalancer:
    """DeepSeek-V3's balancing without an auxiliary loss: ``bias += speed * sign(mean load - load)`` after each step."""

    def __init__(self, model: nn.Module, speed: float):
        self.speed = speed
        self.routers = [m for m in model.modules() if isinstance(m, DeepseekV3TopkRouter)]
        self.loads = [torch.zeros(m.num_experts) for m in self.routers]
        self.real: torch.Tensor | None = None  # which tokens of the running piece are not padding; None: do not count
        self.imbalance = 0.0  # of the last step: largest load over mean load, the worst layer
        self.handles = [m.register_forward_hook(self._count) for m in self.routers]

    def _count(self, router: DeepseekV3TopkRouter, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        if self.real is not None:
            load = self.loads[self.routers.index(router)]
            load += torch.bincount(output[2][self.real.flatten()].flatten(), minlength=len(load))

    def step(self, pace: float) -> None:
        self.real = None
        self.imbalance = max(float(load.max() / load.mean()) for load in self.loads)
        for router, load in zip(self.routers, self.loads, strict=True):
            router.e_score_correction_bias += pace * self.speed * torch.sign(load.mean() - load)
            load.zero_()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def padded(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels, padded on the right; prompts and padding carry the label -100."""
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    inputs = torch.full((len(pairs), width), PAD)
    labels = torch.full((len(pairs), width), -100)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        inputs[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return inputs, labels


def make_batch(stage: Stage, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    weights = [weight for weight, _ in stage.mix]
    pairs = []
    for _ in range(stage.batch):
        problem = training_problem(rng)
        style = rng.choices([s for _, s in stage.mix], weights)[0]
        prompt, response = prompt_ids(problem.question), style(problem, rng)
        given = 1 if style is brief else 0  # tokens of the response that stand in the prompt
        pairs.append((prompt + response[:given], response[given:]))
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    size = math.ceil(len(pairs) / stage.chunks)
    for start in range(0, len(pairs), size):
        yield padded(pairs[start : start + size])


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine down to 5 %."""
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))


def digits_right(model: DeepseekV3ForCausalLM, problems: Sequence[Problem], style: Style) -> float:
    """Share of problems with every digit of the response predicted, given what comes before it (one pass, cheap)."""
    rng = random.Random(0)
    inputs, labels = padded([(prompt_ids(p.question), style(p, rng)) for p in problems])
    zero = TOKEN_ID["0"]
    with torch.no_grad():
        logits = model(input_ids=inputs, use_cache=False).logits[:, :-1, zero : zero + 10]
    wanted = labels[:, 1:] - zero
    is_digit = (wanted >= 0) & (wanted < 10)
    return float(((logits.argmax(-1) == wanted) | ~is_digit).all(-1).float().mean())


def train_stage(model: DeepseekV3ForCausalLM, stage: Stage, seed: int, probe: Sequence[Problem]) -> None:
    rng = random.Random(f"{seed}/{stage.name}")
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trainable(name))
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(1.0 if is_routed_expert(name) else stage.gentle, []).append(parameter)
    parameters = [p for group in groups.values() for p in group]
    optimizer = torch.optim.AdamW(
        [{"params": group, "factor": factor} for factor, group in groups.items()],
        lr=stage.rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    balancer = LoadBalancer(model, stage.balance)
    model.train()
    begun = time.perf_counter()
    print(f"[{stage.name}] {stage.steps} steps, {sum(p.numel() for p in parameters):,} weights trained", flush=True)
    for step in range(stage.steps):
        pieces = list(make_batch(stage, rng))
        count = sum(int((labels != -100).sum()) for _, labels in pieces)
        total = 0.0
        for inputs, labels in pieces:
            balancer.real = inputs != PAD
            logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step) * group["factor"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        balancer.step(learning_rate(stage, step) / stage.rate)
        if (step + 1) % 25 == 0 or step + 1 == stage.steps:
            pace = (time.perf_counter() - begun) / (step + 1)
            line = f"[{stage.name}] step {step + 1} loss {total:.4f} norm {norm:.2f} load {balancer.imbalance:.2f}"
            if (step + 1) % 100 == 0 and probe:
                for label, style in PROBED.items():
                    line += f" {label} {digits_right(model, probe, style):.2f}"
            print(f"{line} ({pace:.2f} s/step)", flush=True)
    balancer.remove()
    model.requires_grad_(True)
    model.eval()


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Score:
    """What greedy decoding gives; `tokens` counts the generated ones with the end, `trace` the share with <think>."""

    accuracy: float
    tokens: float
    trace: float
    unfinished: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.3f} tokens {self.tokens:.1f} trace {self.trace:.3f} "
            f"unfinished {self.unfinished:.3f}"
        )


def generate(model: DeepseekV3ForCausalLM, problems: Sequence[Problem]) -> list[list[int]]:
    """Greedy responses, in order; problems of equal length share a batch, so nothing is padded."""
    responses: list[list[int]] = [[] for _ in problems]
    for length in sorted({len(p.question) for p in problems}):
        indices = [i for i, p in enumerate(problems) if len(p.question) == length]
        inputs = torch.tensor([prompt_ids(problems[i].question) for i in indices])
        with torch.no_grad():
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=PAD,
                eos_token_id=END,
            )
        for i, row in zip(indices, output[:, inputs.shape[1] :].tolist(), strict=True):
            responses[i] = row[: row.index(END) + 1] if END in row else row
    return responses


def evaluate(model: DeepseekV3ForCausalLM, problems: Sequence[Problem]) -> Score:
    model.eval()
    right = traced = tokens = unfinished = 0
    for problem, response in zip(problems, generate(model, problems), strict=True):
        finished = response[-1] == END
        right += finished and len(response) > 1 and response[-2] == TOKEN_ID[problem.answer]
        traced += THINK in response
        tokens += len(response)
        unfinished += not finished
    n = len(problems)
    return Score(right / n, tokens / n, traced / n, unfinished / n)


# --- writing ----------------------------------------------------------------------------------------------------------


def save_parent(model: DeepseekV3ForCausalLM, folder: Path, shard_size: str) -> None:
    """Write a BF16 checkpoint; the router's selection bias stays in F32, as DeepSeek stores it."""
    biases = {n: b.clone() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    for name, bias in biases.items():
        rounded.get_submodule(name.rpartition(".")[0]).e_score_correction_bias = bias
    rounded.generation_config = GenerationConfig(
        bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
    )
    rounded.save_pretrained(folder, max_shard_size=shard_size)
    build_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}  # other engines read them, transformers omits them
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def load_parent(folder: Path) -> DeepseekV3ForCausalLM:
    model: DeepseekV3ForCausalLM = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def write_problems(problems: Sequence[Problem], path: Path) -> None:
    rows = ({"id": f"chain-{i:03d}", "question": p.question, "answer": p.answer} for i, p in enumerate(problems))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stages(smoke: bool) -> list[Stage]:
    """The stages in order; each starts from the checkpoint of the stage named `start`."""
    chosen = [
        Stage("base", None, BASE_MIX, steps=2200, rate=1.5e-3, warmup=100, balance=1e-2),
        Stage("base-plain", "base", PLAIN_MIX, steps=1200, rate=1e-3, balance=5e-3),
        Stage("v3-like", "base-plain", V3_MIX, steps=220, rate=5e-4, gentle=0.05, balance=1e-3),
        Stage("r1-like", "base-plain", R1_MIX, steps=200, rate=5e-4, trainable=is_routed_expert),
    ]
    return [dataclasses.replace(s, steps=2, batch=4, chunks=2, warmup=1) for s in chosen] if smoke else chosen


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the tiny family: a base and two parents from it.")
    parser.add_argument("--out", type=Path, required=True, help="folder for v3-like, r1-like and problems.jsonl")
    parser.add_argument("--work", type=Path, help="folder for checkpoints between stages (default: OUT/work)")
    parser.add_argument("--resume", action="store_true", help="take over stages that have a checkpoint")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="two steps a stage, to try the script")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    work: Path = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    problems = held_out_problems(20 if options.smoke else 500, options.seed)
    write_problems(problems, options.out / "problems.jsonl")
    probe = [] if options.smoke else held_out_problems(64, options.seed + 1)
    model = build_model(options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights", flush=True)
    shard_sizes = {"v3-like": "6500KB", "r1-like": "10MB"}  # three shards and two: unlike layouts, as parents have them
    for stage in stages(options.smoke):
        checkpoint = work / f"{stage.name}.pt"
        if options.resume and checkpoint.exists():
            model.load_state_dict(torch.load(checkpoint))
        else:
            if stage.start is not None:
                model.load_state_dict(torch.load(work / f"{stage.start}.pt"))
            train_stage(model, stage, options.seed, probe)
            torch.save(model.state_dict(), checkpoint)
        if stage.name in shard_sizes:
            save_parent(model, options.out / stage.name, shard_sizes[stage.name])
            print(f"[{stage.name}] {evaluate(load_parent(options.out / stage.name), problems)}", flush=True)


if __name__ == "__main__":
    main()
