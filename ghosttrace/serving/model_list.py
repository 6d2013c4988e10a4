"""What `/v1/models` says about erasure: an addition to the answer of either server."""

import json
from typing import Any

from ghosttrace.serving.error_responses import Send

MODELS_PATH = "/v1/models"


class ModelListSend:
    """ASGI callable that adds a description to every model of the answer, and sends it.

    Args:
        send: ASGI callable that sends the answer.
        description: JSON object to add to each model as `ghosttrace`.
    """

    def __init__(self, send: Send, description: dict[str, Any]) -> None:
        self._send, self._description = send, description
        self._start: dict[str, Any] = {}
        self._body = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        """Keep an event until the answer is complete, then send the changed answer."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        if self._start["status"] == 200:
            listed = json.loads(self._body)
            listed["data"] = [model | {"ghosttrace": self._description} for model in listed["data"]]
            self._body = json.dumps(listed).encode()
        kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(self._body)).encode())]
        await self._send(self._start | {"headers": headers})
        await self._send({"type": "http.response.body", "body": self._body})
