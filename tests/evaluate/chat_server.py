"""A server of chat completions that answers as it is told to: well, badly, late, or not at all; it remembers who asked what."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Manner = Callable[["Handler", str], bool]
"""What becomes of a question; True if it was dealt with, and no answer is wanted."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: "ChatServer"

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and self.server.tokenize is not None:
            self.server.tokenize(self, body["content"])
            return
        if self.path == "/apply-template" and self.server.template is not None:
            self.send(200, self.server.template)
            return
        if not self.path.endswith("/chat/completions"):
            self.send(404, {"error": "no such place"})
            return
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[question] += 1
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
        if self.server.manner is not None and self.server.manner(self, question):
            return
        self.send(200, self.server.answer(question))
        with self.server.lock:
            self.server.answered[question] += 1

    def send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        """A whole response."""
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def cut(self) -> None:
        """Half a response, and no more."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.wfile.flush()
        self.close_connection = True


class ChatServer(ThreadingHTTPServer):
    """The server."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["tiny"]
        self.manner: Manner | None = None
        self.tokenize: Callable[[Handler, str], None] | None = None
        """What becomes of a text whose tokens shall be counted; None if there is no such path."""
        self.template: Any = None
        """What is answered for messages that shall be put as a prompt; None if there is no such path."""

    def handle_error(self, *_: Any) -> None:
        """Who has left needs no answer."""

    @property
    def address(self) -> str:
        """As a client is told."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, question: str) -> dict[str, Any]:
        """A good response: the trace in the text, the answer the question's last character."""
        text = f"<think>{question}</think>{question[-1]}"
        message = {"role": "assistant", "content": text}
        usage = {"completion_tokens": len(question) + 4, "prompt_tokens": 3}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


@contextmanager
def serving() -> Iterator[ChatServer]:
    """A server for the time of a test."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def naughty(seconds: float) -> Manner:
    """Every question goes wrong in another way a few times before it is answered. seconds: longer than anybody waits."""
    turns: Counter[str] = Counter()
    lock = threading.Lock()

    def manner(handler: Handler, question: str) -> bool:
        with lock:
            turn = turns[question]
            turns[question] += 1
        ways: list[Callable[[], None]] = [
            lambda: handler.send(500, {"error": "oh"}),
            lambda: handler.send(429, {"error": "slowly"}, {"Retry-After": "0"}),
            lambda: handler.send(200, b"<html>a proxy's page</html>"),
            lambda: handler.send(200, {"choices": []}),
            handler.cut,
            lambda: time.sleep(seconds),
            lambda: handler.send(503, b""),
        ]
        if turn >= 3:
            return False
        ways[(hash(question) + turn) % len(ways)]()
        return True

    return manner
