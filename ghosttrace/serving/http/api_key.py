"""ASGI middleware that checks the API key of requests."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from ghosttrace.serving.error_responses import Send, send_error


class ApiKeyCheck:
    """ASGI middleware that answers requests under `/v1` without the API key with status 401.

    `/health` and `/metrics` need no key.

    Args:
        app: the ASGI application to protect.
        key: bearer token that clients must send; None disables the check.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str | None) -> None:
        self.app, self._expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Forward a request, or answer 401 before its body is read."""
        if scope["type"] == "http" and self._expected is not None and scope["path"].startswith("/v1"):
            received = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(received, self._expected):
                await send_error(send, 401, "Unauthorized")
                return
        await self.app(scope, receive, send)
