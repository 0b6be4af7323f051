"""OpenAI's chat completions, as servers and llama.cpp speak them: a request's body, a response -> Generated, several at a time."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chimerakit.evaluate.records import Ask, Generated, Settings

Post = Callable[[str, Mapping[str, Any]], Any]
"""(path, body) -> what is answered, as data."""


class GarbageError(Exception):
    """An answer that is none; it may be asked for again."""


def body_of(ask: Ask, settings: Settings, more: Mapping[str, Any]) -> dict[str, Any]:
    """The request for one answer."""
    messages = [{"role": "system", "content": ask.system}] if ask.system else []
    return {
        "messages": [*messages, {"role": "user", "content": ask.question}],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": ask.seed % (1 << 31),  # servers keep it in 32 bits, some with a sign
        **more,
    }


def generated_of(
    data: Any, settings: Settings, seconds: float, count: Callable[[str], int | None], *, opened: bool | None = None
) -> Generated:
    """What a response holds. count: tokens of a text, if anybody can tell. Raises GarbageError if it is no response."""
    try:
        choice, usage = data["choices"][0], data["usage"]
        message = choice["message"]
        text, total = message.get("content") or "", usage["completion_tokens"]
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        details = usage.get("completion_tokens_details") or {}
        told = details.get("reasoning_tokens")
        reason = choice["finish_reason"]
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise GarbageError(f"no chat completion: {str(data)[:200]}") from e
    is_counted = isinstance(total, int) and not isinstance(total, bool) and total > 0
    if not isinstance(text, str) or not is_counted or not isinstance(reasoning, str | None):
        raise GarbageError(f"no chat completion: {str(data)[:200]}")
    if not isinstance(told, int) or not told:
        told = _count(text, reasoning, total - (reason == "stop"), settings, count, is_opened=bool(opened))
    return Generated(
        text=text,
        output_tokens=total,
        is_ended=reason == "stop",
        seconds=seconds,
        reasoning=reasoning,
        reasoning_tokens=min(told, total),
        opened=opened,
    )


def _count(
    text: str,
    reasoning: str | None,
    total: int,
    settings: Settings,
    count: Callable[[str], int | None],
    *,
    is_opened: bool,
) -> int:
    """Tokens up to the end of the trace: as the tokenizer counts them, else by the share of characters. total: without the end."""
    before, closes, _ = text.rpartition(settings.closes)
    if reasoning is not None:
        trace = settings.opens + reasoning + settings.closes
        whole = trace + text
    elif closes:
        trace, whole = before + closes, text
    else:
        return total if is_opened or settings.opens in text else 0
    found = count(trace)
    return round(total * len(trace) / max(1, len(whole))) if found is None else found


def several_at_a_time(
    asks: Sequence[Ask], work: Callable[[Ask], Generated], at_once: int
) -> Iterator[tuple[Ask, Generated]]:
    """Answers as they come, so many asked for at a time. After a failure nothing new is asked; what comes yet is given back
    before it is raised. Threads are daemons: a server that never answers keeps nobody from leaving."""
    waiting: queue.SimpleQueue[Ask] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Ask, Generated] | Exception | None] = queue.SimpleQueue()
    for ask in asks:
        waiting.put(ask)
    stop = threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                ask = waiting.get_nowait()
                done.put((ask, work(ask)))
        except queue.Empty:
            pass
        except Exception as e:  # noqa: BLE001 - raised again by whoever waits
            stop.set()
            done.put(e)
        finally:
            done.put(None)

    running = min(at_once, len(asks))
    failure: Exception | None = None
    try:
        for _ in range(running):
            threading.Thread(target=run, daemon=True).start()
        while running:
            found = done.get()
            if found is None:
                running -= 1
            elif isinstance(found, Exception):
                failure = failure or found
            else:
                yield found
        if failure is not None:
            raise failure
    finally:
        stop.set()
