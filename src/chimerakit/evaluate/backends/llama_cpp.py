"""A GGUF file in llama.cpp, in this process (xllamacpp): several slots, each question through the file's chat template."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chimerakit.errors import CheckpointError, MissingExtraError
from chimerakit.evaluate.backends.chat import GarbageError, body_of, generated_of, several_at_a_time
from chimerakit.evaluate.backends.server import Http, count_of
from chimerakit.evaluate.records import Ask, Generated, Settings

_PROMPT = 1024
"""Tokens of a question at most, beside those of its answer."""
_LIKE_OTHERS = {"reasoning_format": "none", "top_k": 0, "min_p": 0.0, "cache_prompt": False}
"""Traces stay in the text; nothing is cut off that other engines would not; no answer depends on an earlier one."""


class LlamaCpp:
    """A model that is loaded for so many answers at a time, with a context that is long enough for the settings."""

    def __init__(self, file: Path, *, at_once: int):
        try:
            import xllamacpp
        except ImportError as e:
            raise MissingExtraError("xllamacpp", "eval") from e
        self._xllamacpp = xllamacpp
        self._file = file
        self._at_once = at_once
        self._server: Any = None
        self._room = 0

    def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
        """Several at a time, as they come."""
        http = Http(self.serve(settings.max_tokens), timeout=60.0, retries=0)
        is_opened = _is_opened(http, asks[:1], settings)

        def count(text: str) -> int | None:
            return count_of(http.try_post("/tokenize", {"content": text, "add_special": False}))

        def work(ask: Ask) -> Generated:
            begun = time.monotonic()
            data = self._server.handle_chat_completions(body_of(ask, settings, _LIKE_OTHERS))
            try:
                return generated_of(data, settings, time.monotonic() - begun, count, opened=is_opened)
            except GarbageError as e:
                raise CheckpointError(
                    "llama.cpp does not answer", where=f"{self._file}: {ask.question[:80]!r}", found=str(e)
                ) from e

        try:
            yield from several_at_a_time(asks, work, self._at_once)
        finally:
            http.close()

    def serve(self, max_tokens: int) -> str:
        """Load the model, or load it again with a longer context; the address at which llama.cpp's own server has it."""
        room = max_tokens + _PROMPT
        if room <= self._room:
            return str(self._server.listening_address)
        params = self._xllamacpp.CommonParams()
        params.model.path = str(self._file)
        params.use_jinja, params.warmup, params.verbosity = True, False, 0
        params.n_parallel, params.n_ctx = self._at_once, room * self._at_once
        self._server = None
        try:
            self._server = self._xllamacpp.Server(params)
        except RuntimeError as e:
            raise CheckpointError(f"llama.cpp can't load it: {e}", where=self._file) from e
        self._room = room
        return str(self._server.listening_address)

    def close(self) -> None:
        """Let go of the model."""
        self._server = None


def _is_opened(http: Http, asks: Sequence[Ask], settings: Settings) -> bool | None:
    """Whether the template opens the trace, seen in one prompt."""
    for ask in asks:
        found = http.try_post("/apply-template", {"messages": body_of(ask, settings, {})["messages"]})
        if isinstance(found, dict) and isinstance(found.get("prompt"), str):
            return bool(found["prompt"].rstrip().endswith(settings.opens))
    return None
