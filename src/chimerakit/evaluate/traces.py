"""What a model wrote -> its reasoning trace, what follows it, and what is odd. Pure functions of text."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from chimerakit.evaluate.records import Generated, Settings

_LOOPS = 3
"""Times that something must be repeated at the end of a text to be a loop ..."""
_LOOP = 60
"""... and characters that the repetitions take together."""
_TAIL = 1 << 14
"""Characters at the end that are looked at."""


class Trace(NamedTuple):
    """A text cut at its trace."""

    reasoning: str
    text: str
    """What follows."""
    has_trace: bool
    is_closed: bool
    is_closed_only: bool
    is_opened_twice: bool


def cut_trace(said: Generated, settings: Settings) -> Trace:
    """The trace by the server's reasoning field, else by the tags: from the first that opens to the last that closes.

    A trace that the prompt's template opened has no opening tag in the text. One that is only closed, and was opened by nobody,
    is a trace too, as everything before the tag is meant as one.
    """
    opens, closes = settings.opens, settings.closes
    num_opened, num_closed = said.text.count(opens), said.text.count(closes)
    cut = said.reasoning if said.reasoning is not None and said.reasoning.strip() else ""
    if cut and not num_closed:  # the server found a trace, and where it ends
        is_closed = (said.is_ended or bool(said.text.strip())) and num_opened == 0
        return Trace(cut, said.text, True, is_closed, False, num_opened > 0)
    num_openings = num_opened + bool(cut or said.opened)
    is_opened = num_openings > 0
    if not is_opened and not num_closed:
        return Trace("", said.text, False, True, False, False)
    before, _, after = said.text.rpartition(closes) if num_closed else (said.text, "", "")
    is_reopened = num_closed > 0 and opens in after
    reasoning = cut + (before if said.opened else before.partition(opens)[2] or before)
    return Trace(
        reasoning=reasoning.removeprefix(opens),
        text=after,
        has_trace=True,
        is_closed=num_closed > 0 and not is_reopened,
        is_closed_only=not is_opened,
        is_opened_twice=num_openings > 1,
    )


def seems_opened(answers: Iterable[Generated], settings: Settings) -> bool:
    """Whether the prompt's template seems to open traces, where a server neither says so nor cuts them out.

    So it does if more than half of the answers that ended by themselves close a trace that they did not open.
    """
    ended = [said for said in answers if said.is_ended]
    return 2 * sum(_closes_only(said, settings) for said in ended) > len(ended)


def as_opened(said: Generated, settings: Settings) -> Generated:
    """An answer to a prompt that seems to open the trace: one that was cut off before any tag is all trace."""
    has_tag = settings.opens in said.text or settings.closes in said.text
    if said.is_ended or has_tag or said.opened is not None or (said.reasoning or "").strip():
        return said
    return msgspec.structs.replace(said, opened=True, reasoning_tokens=said.output_tokens)


def _closes_only(said: Generated, settings: Settings) -> bool:
    before, closes, _ = said.text.partition(settings.closes)
    return bool(closes) and settings.opens not in before and said.opened is None and not (said.reasoning or "").strip()


def is_looping(text: str) -> bool:
    """Whether a text ends in something that is written at least three times in a row.

    The smallest period of every beginning of the reversed text comes from its prefix function (Knuth, Morris and Pratt).
    """
    tail = text[-_TAIL:][::-1]
    fail = [0] * len(tail)
    for end in range(1, len(tail)):
        length = fail[end - 1]
        while length and tail[end] != tail[length]:
            length = fail[length - 1]
        fail[end] = length + (tail[end] == tail[length])
        period = end + 1 - fail[end]
        if end + 1 >= max(_LOOP, _LOOPS * period):
            return True
    return False
