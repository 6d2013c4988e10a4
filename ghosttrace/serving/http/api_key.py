"""An ASGI middleware that asks clients for the API key."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from ghosttrace.serving.error_responses import Send, send_error


class ApiKeyCheck:
    """Answers 401 under `/v1` without the key; `/health` and `/metrics` stay open.

    Args:
        app: the ASGI application that it protects.
        key: the bearer token that clients must send; None lets every client in.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str | None) -> None:
        self.app, self._expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Pass a request on, or answer 401 before its body is read."""
        if scope["type"] == "http" and self._expected is not None and scope["path"].startswith("/v1"):
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(shown, self._expected):
                await send_error(send, 401, "Unauthorized")
                return
        await self.app(scope, receive, send)
