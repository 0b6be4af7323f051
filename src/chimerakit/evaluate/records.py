"""The records of measuring, in the order in which they come about: frozen, to and from JSON.

Task (Problems) + Settings -> Asks -> Generated -> Answers -> Measurement -> Difference
"""

from typing import Literal

from msgspec import Struct

from chimerakit.defaults import MAX_TOKENS

# -------------------------------------------------------------------------------------------- what is asked


class Problem(Struct, frozen=True):
    """One problem with one right answer."""

    id: str
    question: str
    answer: str
    choices: str = ""
    """The letters of a multiple choice: ABCD."""


class Scorer(Struct, frozen=True):
    """How an answer is read out of what a model wrote, and compared; see `scorers`."""

    kind: Literal["exact", "numeric", "choice", "boxed", "regex"]
    pattern: str = ""
    """Of a regex: its last match is the answer, the first group of it if it has one."""


class Task(Struct, frozen=True):
    """Problems, and how their answers are scored."""

    name: str
    problems: tuple[Problem, ...]
    scorer: Scorer
    system: str = ""
    """A system prompt before each question."""


class Settings(Struct, frozen=True):
    """How answers are decoded."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = MAX_TOKENS
    seed: int = 0
    """Of sampled answers: each has one of its own, made of this, the problem and the number of the sample."""
    opens: str = "<think>"
    closes: str = "</think>"


class Ask(Struct, frozen=True):
    """One answer that is wanted."""

    problem: str
    sample: int
    seed: int
    system: str
    question: str


class Generated(Struct, frozen=True, omit_defaults=True):
    """What an engine gave back; nothing is judged yet."""

    text: str
    """Special tokens written out, the end token left off; without what stands in `reasoning`."""
    output_tokens: int
    """All that were generated, the end token counted."""
    is_ended: bool
    """Whether the model ended by itself."""
    seconds: float = 0.0
    """From asking to the whole answer; in a batch all wait for the longest."""
    reasoning: str | None = None
    """The reasoning trace, where a server cuts it out of the text."""
    reasoning_tokens: int | None = None
    """Output tokens up to the end of the trace, its tags counted; None where nobody can tell."""
    opened: bool | None = None
    """Whether the prompt's template opened the trace already; None where that can't be seen."""


class Model(Struct, frozen=True):
    """Whose answers they are."""

    name: str
    weights: str
    """xxh3-128 over names, types, shapes and bytes of all tensors; of a server the name that it gives the model."""
    texts: str
    """xxh3-128 over config, tokenizer and templates; empty for a server whose checkpoint was not named."""
    engine: str
    """transformers (in float32, on a CPU), transformers as stored on a GPU, llama.cpp, or the server's address."""


# -------------------------------------------------------------------------------------- what an answer shows


class Answer(Struct, frozen=True):
    """One answer and what it shows."""

    problem: str
    sample: int
    said: str | None
    """The answer that was read out of the text; None if there is none."""
    is_correct: bool
    output_tokens: int
    reasoning_tokens: int | None
    has_trace: bool
    is_closed: bool
    """True without a trace."""
    is_closed_only: bool
    """Closed without having been opened, by the text or by the prompt."""
    is_opened_twice: bool
    is_empty: bool
    """A trace with nothing in it."""
    is_opened_by_prompt: bool | None
    """None where that is neither seen nor to be concluded from other answers."""
    is_truncated: bool
    """It did not end by itself."""
    is_looping: bool
    """It did not end, and what it wrote last repeats itself."""
    seconds: float
    reasoning: str
    text: str
    """What follows the trace."""

    @property
    def is_workable(self) -> bool:
        """Whether it ended by itself, without a loop, and an answer can be read out of it."""
        return not self.is_truncated and not self.is_looping and self.is_closed and self.said is not None


# ------------------------------------------------------------------------------------------- what all show


class Estimate(Struct, frozen=True):
    """A mean, or a ratio of means, with its 95 % interval."""

    value: float
    low: float
    high: float


WORKABLE = 0.95
"""Share of problems that a workable model has workable answers to."""


class Measurement(Struct, frozen=True):
    """How a model did on a task. Intervals are over problems."""

    model: Model
    task: str
    settings: Settings
    problems: int
    samples: int
    """Answers to each problem."""
    accuracy: Estimate
    majority: Estimate | None
    """Accuracy of the answer that most samples have; None for one sample."""
    spread: float | None
    """How much accuracy differs between samples of one problem: the root mean variance; None for one sample."""
    output_tokens: Estimate
    trace_rate: Estimate
    reasoning_tokens: Estimate | None
    """Of answers with a trace; None where there are none, or nobody can tell."""
    tokens_per_correct: Estimate | None
    """Output tokens for each right answer; None where none is right."""
    workable: Estimate
    closed: float
    """Share of traces that are closed; 1 without any."""
    closed_only: float
    opened_twice: float
    empty: float
    opened_by_prompt: float
    truncated: float
    looping: float
    """Shares of all answers."""
    seconds: float
    """Median of an answer."""
    tokens_per_second: float
    """Median of an answer; with several at a time each of them is slower."""

    @property
    def is_workable(self) -> bool:
        """Whether it ends by itself, without loops, with answers that can be read, on nearly all problems."""
        return self.workable.value >= WORKABLE


class Difference(Struct, frozen=True):
    """Two models on the same problems, paired."""

    model: str
    against: str
    task: str
    problems: int
    """That both have answered."""
    accuracy: Estimate
    """The model's less the other's."""
    output_tokens: Estimate
    """The same in tokens."""
    token_ratio: Estimate
    """The model's mean over the other's."""
    kept: Estimate | None
    """The model's accuracy over the other's; None where that has none."""


class Example(Struct, frozen=True):
    """One problem as every model answered it."""

    task: str
    problem: str
    question: str
    answer: str
    answers: dict[str, Answer]
    """By model; the first sample."""


class LayerHealth(Struct, frozen=True):
    """What a model's router does in one layer, on texts that all models read."""

    layer: int
    loads: tuple[int, ...]
    """How often each expert is chosen, on the model's own states."""
    evenness: float
    """Entropy of the loads over that of equal ones: 1 if all experts are chosen equally often, 0 if always the same."""
    dead: int
    """Experts that are never chosen."""
    overloaded: int
    """Experts that are chosen more than twice as often as the mean."""
    margin: float | None
    """By how much the last expert that is chosen is ahead of the first that is not, in scores; the median over tokens. None where
    all are chosen."""
    overlap: dict[str, float]
    """The share of chosen experts that another model chooses, too, for the same token, each on its own states."""
    steady: dict[str, float]
    """The share that this same router would choose, too, on the other model's states: what is missing to 1 is due to the
    states that the child makes itself."""


class RouterHealth(Struct, frozen=True):
    """A model's routers."""

    model: str
    layers: tuple[LayerHealth, ...]


class Routers(Struct, frozen=True):
    """What routers do, and how likely texts are, on texts that all models read."""

    source: str
    """Whose answers to what the texts are."""
    texts: int
    tokens: int
    health: tuple[RouterHealth, ...]
    perplexity: dict[str, Estimate]
    """Of the answers in the texts, given their prompts; by model."""


class Evaluation(Struct, frozen=True, tag_field="what", tag="evaluation"):
    """Everything that a call of `evaluate` found."""

    measurements: tuple[Measurement, ...]
    differences: tuple[Difference, ...]
    examples: tuple[Example, ...]
    routers: Routers | None = None
    """What was asked of routers, if anything was."""
    format: int = 1
