"""A fake ASGI application behind the prompt guard, and requests to it: needs no server and no model."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ghosttrace.serving.prompt_guard import GuardSettings, PromptGuard

CHAT = "/v1/chat/completions"
JSON_TYPE = (b"content-type", b"application/json")


@dataclass
class Exchange:
    """What a request and its answer were.

    Attributes:
        status: HTTP status of the answer; 0 if there was none.
        answer: body of the answer.
        received: body that the application received; None if the request did not reach it.
        headers: headers that the application received.
        reads: number of events that were read from the client before the answer.
    """

    status: int = 0
    answer: bytes = b""
    received: bytes | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    reads: int = 0

    @property
    def json(self) -> Any:
        """The body that the application received, parsed."""
        assert self.received is not None, self.answer
        return json.loads(self.received)


async def exchange(
    settings: GuardSettings | PromptGuard,
    body: bytes | dict[str, Any] | list[Any] = b"",
    path: str = CHAT,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (JSON_TYPE,),
    reply: Any = None,
    **scope: Any,
) -> Exchange:
    """Send a request in two parts to a guarded application that answers 200 with `reply`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts, result = [content[:3], content[3:]], Exchange()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            received, more = received + message["body"], message["more_body"]
        result.received, result.headers = received, scope["headers"]
        answer = json.dumps(reply).encode()
        sent = [(b"content-length", str(len(answer)).encode()), JSON_TYPE]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        await send({"type": "http.response.body", "body": answer})

    async def receive() -> dict[str, Any]:
        result.reads += 1
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        result.status = message.get("status", result.status)
        result.answer += message.get("body", b"")

    guard = settings if isinstance(settings, PromptGuard) else PromptGuard(app, settings)
    guard.app = app
    request = {"type": "http", "method": method, "path": path, "headers": list(headers), **scope}
    await guard(request, receive, send)
    return result


def send_request(*arguments: Any, **options: Any) -> Exchange:
    """Return the exchange of one request; the arguments are those of `exchange`."""
    return asyncio.run(exchange(*arguments, **options))
