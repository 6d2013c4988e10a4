"""An OpenAI-compatible endpoint over real HTTP whose answers and faults follow a script."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Lock, Thread
from typing import Any

from ghosttrace.pipeline.calls import request_key

Respond = Callable[[dict[str, Any]], str]
KEY = "secret-key"


class ScriptedEndpoint(ThreadingHTTPServer):
    """The server.

    Attributes:
        respond: text of the answer to a request.
        faults: faults of the first attempts of each request: a status such as `429`, `cut` (the connection ends within
            the answer), `broken` (half a JSON), `html`, `slow`; or a function of the request that returns them.
        structured: whether `response_format` is known; else such requests are refused.
        usage: whether answers report usage.
        received: keys of the requests that arrived, in order.
        answered: number of complete answers by key.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.faults: Callable[[str], list[str]] = lambda _: []
        self.structured = True
        self.usage = True
        self.delay = 0.0
        self.received: list[str] = []
        self.answered: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.tokens = [0, 0]
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a client that was killed hangs up."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedEndpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key, server = request_key(self.server.url, body), self.server
        with server.lock:
            server.received.append(key)
            attempt = server.attempts[key]
            server.attempts[key] += 1
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self._send(401, {"error": {"message": "this key is not known"}})
        if body["model"] != "scripted":
            return self._send(404, {"error": {"message": "there is no such model"}})
        if "response_format" in body and not server.structured:
            return self._send(400, {"error": {"message": "response_format is not supported"}})
        faults = server.faults(key)
        fault = faults[attempt] if attempt < len(faults) else ""
        if fault.isdigit():
            return self._send(int(fault), {"error": {"message": f"try again, {self.headers['Authorization']}"}})
        time.sleep(server.delay + (0.3 if fault == "slow" else 0))
        return self._answer(key, body, fault)

    def _answer(self, key: str, body: dict[str, Any], fault: str) -> None:
        text = self.server.respond(body)
        usage = {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(text) // 4}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
        if self.server.usage:
            answer["usage"] = usage | {"total_tokens": sum(usage.values())}
        data = json.dumps(answer).encode()
        if fault == "cut":
            self._send_bytes(200, data[: len(data) // 2], len(data))
            self.close_connection = True
        elif fault == "broken":
            self._send_bytes(200, data[: len(data) // 2])
        elif fault == "html":
            self._send_bytes(200, b"<html>busy</html>", kind="text/html")
        else:
            self._send_bytes(200, data)
            with self.server.lock:
                self.server.answered[key] += 1
                self.server.tokens[0] += usage["prompt_tokens"]
                self.server.tokens[1] += usage["completion_tokens"]

    def _send(self, status: int, content: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(content).encode())

    def _send_bytes(self, status: int, data: bytes, length: int | None = None, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(data)))
        self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


@contextmanager
def scripted_endpoint(respond: Respond) -> Iterator[ScriptedEndpoint]:
    """Run an endpoint in a thread."""
    server = ScriptedEndpoint(respond)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def random_faults(key: str) -> list[str]:
    """Return up to two faults of a request, drawn by its key."""
    random = Random(key)
    return [random.choice(["429", "500", "cut", "broken", "slow"]) for _ in range(random.choice([0, 0, 1, 2]))]
