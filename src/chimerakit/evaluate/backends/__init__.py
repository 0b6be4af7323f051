"""Engines that answer: asks in, what was generated out, as it comes.

transformers.py   safetensors, in this process, in batches
llama_cpp.py      GGUF, in this process, several at a time
chat.py           what both a server and llama.cpp understand: OpenAI's chat completions
server.py         any OpenAI-compatible server over HTTP: retries, time-outs, several at a time
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from chimerakit.evaluate.records import Ask, Generated, Settings
from chimerakit.formats import open_checkpoint


class Backend(Protocol):
    """An engine with a model in it."""

    def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
        """Answers in the order in which they are ready. What was given back need not be asked again after an error."""

    def close(self) -> None:
        """Let go of the model."""


def engine_of(path: Path) -> str:
    """What runs a checkpoint here, and in which numbers: answers of one engine are not mixed with another's."""
    if open_checkpoint(path).format == "gguf":
        return "llama.cpp"
    from chimerakit.evaluate.backends.transformers import is_on_gpu

    return "transformers, as stored, on a GPU" if is_on_gpu() else "transformers"  # the bare name is float32, on a CPU


def load_backend(path: Path, *, at_once: int) -> Backend:
    """The engine for a checkpoint: llama.cpp for GGUF, transformers for safetensors. at_once: answers at a time."""
    checkpoint = open_checkpoint(path)
    if checkpoint.format == "gguf":
        from chimerakit.evaluate.backends.llama_cpp import LlamaCpp

        return LlamaCpp(Path(checkpoint.root, checkpoint.shards[0].name), at_once=at_once)
    from chimerakit.evaluate.backends.transformers import Transformers

    return Transformers(path, batch=at_once)


def ask_questions(path: Path, questions: Sequence[str], settings: Settings, *, at_once: int = 32) -> list[Generated]:
    """A checkpoint's answers to some questions, in their order; nothing is kept."""
    backend = load_backend(path, at_once=at_once)
    asks = [Ask(str(number), 0, settings.seed + number, "", question) for number, question in enumerate(questions)]
    try:
        found = {ask.problem: said for ask, said in backend.answer(asks, settings)}
    finally:
        backend.close()
    return [found[ask.problem] for ask in asks]
