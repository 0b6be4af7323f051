"""Models and tasks -> Evaluation: whatever has no answer yet is asked, and everything is measured.

OUT/NAME/TASK.jsonl     answers of one model to one task, appended as they come
OUT/NAME/model.json     whose they are: what was read of the weights for that need not be read again
OUT/evaluation.json     what all of them show
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.errors import TaskError
from chimerakit.evaluate.answers import Kept, count_missing_in, read_answers
from chimerakit.evaluate.backends import Backend, engine_of, load_backend
from chimerakit.evaluate.backends.server import Server, check_address
from chimerakit.evaluate.identity import identify
from chimerakit.evaluate.reading import Reader, Surprise
from chimerakit.evaluate.records import (
    Answer,
    Ask,
    Difference,
    Evaluation,
    Example,
    Measurement,
    Model,
    Routers,
    Settings,
    Task,
)
from chimerakit.evaluate.routers import check_routers, health_of
from chimerakit.evaluate.score import score
from chimerakit.evaluate.summary import Answers, by_problem, differ, measure, perplexity, pick_examples
from chimerakit.evaluate.tasks import check_name
from chimerakit.evaluate.traces import as_opened, seems_opened
from chimerakit.evaluate.wording import Wording, check_wordings
from chimerakit.events import Advanced, Finished, Listener, Said, Started, ignore
from chimerakit.formats import open_checkpoint
from chimerakit.stores.digest import digest_of
from chimerakit.stores.local import read_file
from chimerakit.stores.part import make_folder, write_file

SAVED = "evaluation.json"
_KNOWN = "model.json"
_MAX_KNOWN = 1 << 20


class Subject(Struct, frozen=True):
    """A model that shall answer: a checkpoint, or one behind a server."""

    name: str
    path: Path | None = None
    """The checkpoint; of a server what it has loaded, if that is here."""
    address: str | None = None
    served: str | None = None
    """What the server calls the model; None if it has one only."""
    gone: Model | None = None
    """Of a model that is not there any more, and is measured by answers that are kept: whose they are."""


class Options(Struct, frozen=True):
    """How to ask; nothing here changes what is answered."""

    at_once: int = 32
    """Answers that are asked for at a time."""
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 600.0
    """Seconds for an answer of a server."""
    retries: int = 6
    examples: int = 6


class Answered(Struct, frozen=True):
    """A model's answers to some tasks, and what they show; by task."""

    model: Model
    answers: dict[str, Answers]
    measurements: dict[str, Measurement]


class _Known(Struct, frozen=True):
    """What was found out about a checkpoint, while its files are the same."""

    signatures: str
    weights: str
    texts: str


def evaluate_models(
    subjects: Sequence[Subject],
    tasks: Sequence[Task],
    output: Path,
    *,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    samples: int = 1,
    against: Sequence[str] | None = None,
    router_texts: int = 0,
    options: Options = Options(),  # noqa: B008 - frozen
    listener: Listener = ignore,
) -> Evaluation:
    """Let models answer every problem of every task, and measure them; answers that `output` holds are not asked for again.

    samples: answers to each problem; more than one need a temperature. against: names of models that the others are compared
    with; the first one unless said. router_texts: so many answers of the first of these are read by all models, worded as that one words them, and their routers
    are asked what they do with them (safetensors only). Raises TaskError, CheckpointError, EndpointError, OutputError; answers that came are kept.
    """
    check_request(subjects, tasks, settings, samples, against)
    reference = (against or [subjects[0].name])[0]
    if router_texts:
        models = {subject.name: _checkpoint_of(subject) for subject in subjects}
        check_routers(models)
        check_wordings(models, reference, asks_of(tasks[0], settings, 1)[:router_texts])
    found = [answer_tasks(s, tasks, output, settings, samples, options=options, listener=listener) for s in subjects]
    answers = {task.name: {each.model.name: each.answers[task.name] for each in found} for task in tasks}
    evaluation = Evaluation(
        measurements=tuple(each.measurements[task.name] for task in tasks for each in found),
        differences=tuple(_differences(answers, dict.fromkeys(against or [subjects[0].name]))),
        examples=tuple(_examples(tasks, answers, options.examples)),
        routers=_ask_routers(subjects, tasks[0], output, settings, router_texts, reference, listener)
        if router_texts
        else None,
    )
    write_file(output / SAVED, msgspec.json.format(msgspec.json.encode(evaluation), indent=1))
    return evaluation


def answer_tasks(
    subject: Subject,
    tasks: Sequence[Task],
    output: Path,
    settings: Settings,
    samples: int,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    listener: Listener = ignore,
) -> Answered:
    """One model's answers to every problem of every task, those that `output` holds and those that are missing."""
    folder = output / subject.name
    make_folder(folder)
    engine = _Engine(subject, options)
    answers: dict[str, Answers] = {}
    measurements: dict[str, Measurement] = {}
    try:
        model = engine.identify(folder, listener)
        for task in tasks:
            found, num_asked = _answer(engine, model, task, folder, settings, samples, listener)
            answers[task.name] = by_problem(found)
            measurements[task.name] = measure(model, task, settings, answers[task.name])
            if num_asked:
                listener(Said(say_measured(measurements[task.name])))
    finally:
        engine.close()
    return Answered(model, answers, measurements)


def count_missing(model: Model, tasks: Sequence[Task], output: Path, settings: Settings, samples: int) -> int:
    """How many answers of a model are not there yet; nothing is written to find that out."""
    return sum(
        count_missing_in(
            output / model.name / f"{task.name}.jsonl", model, task, settings, asks_of(task, settings, samples)
        )
        for task in tasks
    )


def say_measured(found: Measurement) -> str:
    """A measurement in one line."""
    return (
        f"{found.model.name}: {found.accuracy.value:.0%} right, {found.output_tokens.value:.1f} tokens, "
        f"{found.trace_rate.value:.0%} with a trace"
    )


def asks_of(task: Task, settings: Settings, samples: int) -> list[Ask]:
    """Every answer that a task wants, problem by problem. A seed depends on nothing but what it is for."""

    def seed(problem: str, sample: int) -> int:
        return int(digest_of(f"{settings.seed}/{task.name}/{problem}/{sample}".encode())[:16], 16)

    return [
        Ask(problem.id, sample, seed(problem.id, sample), task.system, problem.question)
        for problem in task.problems
        for sample in range(samples)
    ]


class _Engine:
    """A model's engine, loaded when the first answer is missing."""

    def __init__(self, subject: Subject, options: Options):
        self._subject = subject
        self._options = options
        self._backend: Backend | None = None

    def identify(self, folder: Path, listener: Listener) -> Model:
        """Whose answers they are."""
        subject = self._subject
        if subject.gone is not None:
            return subject.gone
        weights = texts = ""
        if subject.path is not None:
            known = _known(folder / _KNOWN)
            signatures = _signatures(subject.path)
            if known is None or known.signatures != signatures:
                known = _Known(signatures, *identify(subject.path, listener))
                write_file(folder / _KNOWN, msgspec.json.encode(known))
            weights, texts = known.weights, known.texts
        if subject.address is None:
            assert subject.path is not None
            return Model(subject.name, weights, texts, engine_of(subject.path))
        return Model(subject.name, weights or self._server().model, texts, subject.address)

    def _server(self) -> Server:
        if not isinstance(self._backend, Server):
            self._backend = Server(
                self._subject.address or "",
                self._subject.served,
                at_once=self._options.at_once,
                key_variable=self._options.key_variable,
                timeout=self._options.timeout,
                retries=self._options.retries,
            )
        return self._backend

    def load(self) -> Backend:
        """The engine, ready to answer."""
        if self._backend is None:
            if self._subject.address is not None:
                return self._server()
            if self._subject.path is None:
                raise TaskError("is not there any more, and answers are missing", where=self._subject.name)
            self._backend = load_backend(self._subject.path, at_once=self._options.at_once)
        return self._backend

    def close(self) -> None:
        """Let go of the model."""
        if self._backend is not None:
            self._backend.close()


def _answer(
    engine: _Engine,
    model: Model,
    task: Task,
    folder: Path,
    settings: Settings,
    samples: int,
    listener: Listener,
) -> tuple[list[Answer], int]:
    """All answers of a model to a task, and how many of them were missing and asked for."""
    asks = asks_of(task, settings, samples)
    problems = {problem.id: problem for problem in task.problems}
    kept = Kept(folder / f"{task.name}.jsonl", model, task, settings)
    try:
        missing = kept.missing(asks)
        if missing:
            work = f"{model.name} answers {task.name}"
            listener(Started(work, len(asks), "answers"))
            listener(Advanced(len(asks) - len(missing)))
            for ask, said in engine.load().answer(missing, settings):
                kept.keep(ask, said)
                listener(Advanced(1, said.output_tokens))
            listener(Finished(work))
        found = [kept.found[ask.problem, ask.sample] for ask in asks]
        if seems_opened(found, settings):
            found = [as_opened(said, settings) for said in found]
        scored = [
            score(ask, problems[ask.problem], said, task.scorer, settings)
            for ask, said in zip(asks, found, strict=True)
        ]
        return scored, len(missing)
    finally:
        kept.close()


def _ask_routers(
    subjects: Sequence[Subject],
    task: Task,
    output: Path,
    settings: Settings,
    count: int,
    reference: str,
    listener: Listener,
) -> Routers:
    """Let all models read one model's answers, keep what their routers received, and ask them."""
    models = {subject.name: _checkpoint_of(subject) for subject in subjects}
    said = read_answers(output / reference / f"{task.name}.jsonl", task)
    asks = [ask for ask in asks_of(task, settings, 1) if said[ask.problem, 0].text][:count]
    if not asks:
        raise TaskError("has said nothing that others could read", where=reference)
    wording = Wording(models[reference])
    texts = [wording.text(ask, said[ask.problem, ask.sample].text) for ask in asks]
    states: dict[str, Path] = {}
    surprises: dict[str, list[Surprise]] = {}
    source = f"{len(asks)} answers of {reference} to {task.name}"
    for name, path in models.items():
        reader = Reader(path)
        try:
            states[name] = output / name / "states.safetensors"
            work = f"{name} reads {source}"
            listener(Started(work, len(asks), "answers"))
            surprises[name] = []
            for surprise in reader.read(texts, states[name], f"{name}: {source}"):
                surprises[name].append(surprise)
                listener(Advanced(1, surprise.tokens))
            listener(Finished(work))
        finally:
            reader.close()
    return Routers(
        source=source,
        texts=len(asks),
        tokens=sum(len(text.tokens) for text in texts),
        health=tuple(health_of(models, states)),
        perplexity={name: perplexity(each) for name, each in surprises.items()},
    )


def _checkpoint_of(subject: Subject) -> Path:
    if subject.path is None or subject.address is not None or open_checkpoint(subject.path).format != "safetensors":
        raise TaskError(
            "routers can be asked in transformers only", where=subject.name, expected="a safetensors checkpoint here"
        )
    return subject.path


def check_request(
    subjects: Sequence[Subject],
    tasks: Sequence[Task],
    settings: Settings,
    samples: int,
    against: Sequence[str] | None,
) -> None:
    """Refuse before anything is loaded."""
    names = [subject.name for subject in subjects]
    for what, found in (("model", names), ("task", [task.name for task in tasks])):
        if not found:
            raise TaskError(f"no {what} to evaluate", where="evaluate")
        for name in found:
            check_name(name, what)
        if twice := {name for name in found if found.count(name) > 1}:
            raise TaskError(f"two {what}s have one name", where=", ".join(sorted(twice)), do="name them: NAME=...")
    if samples > 1 and settings.temperature <= 0:
        raise TaskError("greedy samples are all the same", where=f"{samples} samples", do="give a temperature")
    if unknown := [name for name in against or () if name not in names]:
        raise TaskError("is none of the models", where=unknown[0], expected=", ".join(names))
    for address in dict.fromkeys(subject.address for subject in subjects):
        if address is not None:
            check_address(address)
    for path in dict.fromkeys(subject.path for subject in subjects):
        if path is not None:
            open_checkpoint(path)


def _differences(answers: Mapping[str, Mapping[str, Answers]], against: Iterable[str]) -> Iterator[Difference]:
    for task, by_model in answers.items():
        for other in against:
            for name, found in by_model.items():
                if name != other and (difference := differ(name, other, task, found, by_model[other])) is not None:
                    yield difference


def _examples(tasks: Sequence[Task], answers: Mapping[str, Mapping[str, Answers]], count: int) -> Iterator[Example]:
    for task in tasks:
        yield from pick_examples(task, answers[task.name], count)


def _known(file: Path) -> _Known | None:
    try:
        return msgspec.json.decode(read_file(file, _MAX_KNOWN), type=_Known) if file.is_file() else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _signatures(path: Path) -> str:
    """Size and time of every file of a checkpoint."""
    return digest_of(msgspec.json.encode(sorted(open_checkpoint(path).signatures.items())))
