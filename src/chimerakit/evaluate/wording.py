"""A checkpoint's tokenizer and chat template, without its weights: questions as prompts, texts as tokens.

Models that shall be compared on the same tokens read what one of them makes of the texts. So they must number tokens alike, which
is asked of their tokenizers before anything else; how their templates would put a question plays no part.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from chimerakit.errors import CheckpointError, MissingExtraError
from chimerakit.evaluate.records import Ask


class Text(Struct, frozen=True):
    """A prompt and what follows it, in tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All of them."""
        return self.prompt + self.answer


def prompt_of(tokenizer: Any, ask: Ask, path: Path) -> str:
    """A question as a tokenizer's chat template puts it. Raises CheckpointError."""
    messages = [{"role": "system", "content": ask.system}] if ask.system else []
    messages.append({"role": "user", "content": ask.question})
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as e:  # a template may raise anything
        raise CheckpointError(f"its chat template can't put the question: {e}", where=path) from e


class Wording:
    """How a checkpoint words what it is asked."""

    def __init__(self, path: Path):
        try:
            from transformers import AutoTokenizer
            from transformers.utils import logging
        except ImportError as e:
            raise MissingExtraError(e.name or "transformers", "eval") from e
        logging.set_verbosity_error()
        self._path = path
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
            raise CheckpointError(f"transformers can't load its tokenizer: {e}", where=path) from e

    def prompt(self, ask: Ask) -> str:
        """A question as the chat template puts it."""
        return prompt_of(self._tokenizer, ask, self._path)

    def text(self, ask: Ask, answer: str) -> Text:
        """A question as the chat template puts it, and an answer as it was written."""
        prompt = self.prompt(ask)
        before, whole = self.ids(prompt), self.ids(prompt + answer)
        seam = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return Text(tuple(whole[:seam]), tuple(whole[seam:]))  # tokens across the seam belong to the answer

    def ids(self, text: str) -> list[int]:
        """A text as tokens, nothing added."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens(self) -> dict[int, str]:
        """What each number means."""
        return {number: token for token, number in self._tokenizer.get_vocab().items()}

    def added(self) -> set[int]:
        """The numbers of tokens that text is not cut into by itself: <think>, ends, and places held for others."""
        return set(self._tokenizer.get_added_vocab().values())


def check_wordings(models: Mapping[str, Path], reference: str, asks: Sequence[Ask]) -> None:
    """Refuse models that can't read what the reference makes of questions, token by token. Reads tokenizers only.

    Added tokens may be called otherwise: what is <think> in one is a place held for it in the model that it was trained from.
    """
    wanted = Wording(models[reference])
    for ask in asks:
        wanted.prompt(ask)
    for name, path in models.items():
        if (unlike := _unlike(Wording(path), wanted, asks)) is not None:
            raise CheckpointError(
                f"{name} has another tokenizer than {reference}, whose texts it shall read",
                where=path,
                found=unlike,
                do="leave it out, or do without --router",
            )


def _unlike(mine: Wording, wanted: Wording, asks: Sequence[Ask]) -> str | None:
    """Where two tokenizers differ first, in words."""
    here, there = mine.tokens(), wanted.tokens()
    if here.keys() != there.keys():
        return f"{len(here)} tokens, not {len(there)}" if len(here) != len(there) else "tokens of other numbers"
    renamed, common = mine.added() & wanted.added(), {*here.values()} & {*there.values()}
    unlike = [n for n in here if here[n] != there[n] and (n not in renamed or {here[n], there[n]} & common)]
    if (other := min(unlike, default=None)) is not None:
        return f"token {other} is {here[other]!r}, not {there[other]!r}"
    cut = next((ask.question for ask in asks if mine.ids(ask.question) != wanted.ids(ask.question)), None)
    return None if cut is None else f"it cuts {cut[:60]!r} otherwise"
