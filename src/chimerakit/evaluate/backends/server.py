"""Any OpenAI-compatible server: vLLM, SGLang, llama-server, hosted ones.

What may pass by itself (a lost connection, a time-out, 408, 409, 425, 429, 5xx, an answer that is none) is tried again, after
pauses that double, or after the time that the server asks for, an hour at most. Anything else, or too many failures,
ends the work with one error; answers that came before are kept by whoever asked. The key comes from the environment and
is written nowhere.
"""

import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from chimerakit.errors import EndpointError, MissingExtraError
from chimerakit.evaluate.backends.chat import GarbageError, body_of, generated_of, several_at_a_time
from chimerakit.evaluate.records import Ask, Generated, Settings

_PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
_ABSENT = frozenset({404, 405, 501})
"""There is no such path, and there will be none."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
"""Seconds, of pauses that double."""
_LONGEST_WAIT = 3600.0
"""Seconds, however long a server asks to wait: a slip in its clock shall not hold the work for days."""
_PATH = "/chat/completions"


class Said(NamedTuple):
    """A response."""

    status: int
    data: Any
    """What JSON it holds if the status is 200, else the beginning of its text."""


class Http:
    """Requests to one server, tried again where that may help; any number of threads may ask."""

    def __init__(self, address: str, *, key: str | None = None, timeout: float = 600.0, retries: int = 6):
        try:
            import httpx2
        except ImportError as e:
            raise MissingExtraError("httpx2", "eval") from e
        self._errors = httpx2.HTTPError
        self.address = address.rstrip("/")
        self._root = self.address.removesuffix("/v1")
        self._retries = retries
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # One that takes no connection for so long is not there; how long an answer takes is another matter.
        limits = httpx2.Timeout(timeout, connect=min(timeout, 30.0))
        pool = httpx2.Limits(max_connections=None)
        self._client = httpx2.Client(headers=headers, timeout=limits, limits=pool, follow_redirects=False)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers, as data. Raises EndpointError."""
        return self.call("POST", path, body)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The same for any method."""
        said = self._ask(method, self.address + path, body)
        if said.status != 200:
            raise EndpointError("the server refuses", where=self.address + path, found=f"{said.status} {said.data}")
        return said.data

    def ask_beside(self, path: str, body: Mapping[str, Any]) -> Said:
        """What the server answers at a path that it may not have; the path is meant from the root, not from /v1."""
        return self._ask("POST", self._root + path, body, final=_ABSENT)

    def _ask(
        self, method: str, url: str, body: Mapping[str, Any] | None, *, final: frozenset[int] = frozenset()
    ) -> Said:
        """The first response that will not pass by itself. final: what would pass elsewhere, but not here."""
        pause = _FIRST_PAUSE
        for attempt in range(self._retries + 1):
            try:
                response = self._client.request(method, url, json=body)
            except self._errors as e:
                why, wait = f"{type(e).__name__}: {e}", None
            else:
                if response.status_code == 200:
                    try:
                        return Said(200, response.json())
                    except ValueError:
                        why, wait = "an answer that is no JSON", None
                elif response.status_code in _PASSING - final:
                    why = f"{response.status_code} {response.reason_phrase}"
                    wait = _retry_after(response.headers.get("retry-after"))
                else:
                    return Said(response.status_code, response.text[:300])
            if attempt < self._retries:
                time.sleep(min(_LONGEST_PAUSE, pause * random.uniform(0.5, 1.5)) if wait is None else wait)
                pause *= 2
        raise EndpointError(
            "the server does not answer",
            where=url,
            found=f"{why}, {self._retries + 1} times",
            do="call again when it does: answers that came are kept, and only others are asked for",
        )

    def try_post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers, or None; asked once. The path is meant from the root, not from /v1."""
        try:
            response = self._client.post(self._root + path, json=body)
            return response.json() if response.status_code == 200 else None
        except (self._errors, ValueError):
            return None

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _retry_after(said: str | None) -> float | None:
    """Seconds to wait as a server asks, by a number or a date; an hour at most."""
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), _LONGEST_WAIT)


def _key_in(variable: str) -> str | None:
    """The key in an environment's variable; one that can't be sent is refused without being shown."""
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EndpointError("holds no key: it has characters that none has", where=f"the variable {variable}")
    return key


class Server:
    """A model behind an address such as http://localhost:8000/v1."""

    def __init__(
        self,
        address: str,
        model: str | None,
        *,
        at_once: int,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
        retries: int = 6,
    ):
        check_address(address)
        self._http = Http(address, key=_key_in(key_variable), timeout=timeout, retries=retries)
        self._retries = retries
        self._at_once = at_once
        try:
            self.model = self._only_model() if model is None else model
        except EndpointError:
            self._http.close()
            raise
        self._can_count = True

    def _only_model(self) -> str:
        """The model that a server has, if it has one only."""
        data = self._http.call("GET", "/models")
        try:
            names = [str(entry["id"]) for entry in data["data"]]
        except (KeyError, TypeError) as e:
            raise EndpointError(
                "the server does not say what models it has", where=self._http.address, do="write it: ADDRESS#MODEL"
            ) from e
        if len(names) != 1:
            raise EndpointError(
                "which of the server's models?",
                where=self._http.address,
                found=", ".join(names[:10]),
                do="write it: ADDRESS#MODEL",
            )
        return names[0]

    def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
        """Several at a time, as they come. What is no answer is asked for again, after pauses that double."""

        def work(ask: Ask) -> Generated:
            body = body_of(ask, settings, {"model": self.model})
            why, pause = "", _FIRST_PAUSE
            for _ in range(self._retries + 1):
                begun = time.monotonic()
                data = self._http.post(_PATH, body)
                try:
                    return generated_of(data, settings, time.monotonic() - begun, self._count)
                except GarbageError as e:
                    why = str(e)
                    time.sleep(min(_LONGEST_PAUSE, random.uniform(0.5, 1.5) * pause))
                    pause *= 2
            raise EndpointError("the server's answers are none", where=self._http.address + _PATH, found=why)

        return several_at_a_time(asks, work, self._at_once)

    def _count(self, text: str) -> int | None:
        """Tokens of a text, by llama-server's or vLLM's /tokenize, where a server has it.

        One that says that it has none is not asked again, and one that refuses a text is asked for the next. What may
        pass is waited for as for answers: an estimate among counts would be seen by nobody.
        """
        if not self._can_count:
            return None
        body = {"model": self.model, "content": text, "prompt": text, "add_special": False, "add_special_tokens": False}
        said = self._http.ask_beside("/tokenize", body)
        found = count_of(said.data) if said.status == 200 else None
        if found is None and said.status in {200, *_ABSENT}:
            self._can_count = False
        return found

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def count_of(data: Any) -> int | None:
    """The number of tokens that /tokenize tells: a count, or the tokens themselves."""
    if not isinstance(data, dict):
        return None
    found = data.get("count", len(data["tokens"]) if isinstance(data.get("tokens"), list) else None)
    return found if isinstance(found, int) else None


def check_address(address: str) -> None:
    """Refuse what is no address, or has a password in it, which would be written down."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError("is no address of a server", where=address, expected="http://HOST:PORT/v1")
    if parts.username is not None or parts.password is not None or parts.query:
        raise EndpointError(
            "an address with a password or a query would be written into results",
            where=f"{parts.scheme}://{parts.hostname}",
            do="put the key into OPENAI_API_KEY, or the variable that --key-from names",
        )
