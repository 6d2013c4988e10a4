"""ASGI middleware that ends open requests when the server shuts down, so that it does not wait for them forever.

vLLM stops its engine first, and at once cancels the task that would tell open streams of it. Whether that task comes
first is a race: if it does not, the streams wait for tokens that never come, and uvicorn waits for the streams.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from ghosttrace.serving.error_responses import Receive, Send, error_body, send_error

GRACE_SECONDS = 3.0
"""Time that open requests have to end by themselves after the server has begun to shut down."""
CLOSE_SECONDS = 2.0
"""Time after which connections are dropped whose requests have been ended, because clients may read nothing more."""
END_SECONDS = 1.0
"""Time in which a client must take the end of its response."""
POLL_SECONDS = 0.2
STOPPING = "the server is shutting down: try again later"


class OpenRequests:
    """ASGI middleware that ends open requests when the server shuts down.

    A stream ends with an error event, another request with status 503. Connections that are open even then are dropped,
    because a client that does not read its response would keep the server forever. This must be the outermost
    middleware, so that it also ends requests whose bodies do not arrive. The application must have its uvicorn server
    as `app.state.server`, as vLLM's has.

    Args:
        app: the ASGI application.
        grace_seconds: time that open requests have to end by themselves.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], grace_seconds: float = GRACE_SECONDS) -> None:
        self.app, self._grace_seconds = app, grace_seconds
        self._open = set[asyncio.Task[Any]]()
        self._watcher: asyncio.Task[None] | None = None
        self._ending = False

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Forward a request, and end it if it is open when the server shuts down."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self.app(scope, receive, send)
            return
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._end_requests(scope["app"].state.server))
        started = False

        async def send_and_remember(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        self._open.add(task)
        try:
            await self.app(scope, receive, send_and_remember)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_end(send, started), END_SECONDS)
        finally:
            self._open.discard(task)

    async def _end_requests(self, server: Any) -> None:
        """Wait until the server shuts down, cancel requests after the grace time, and drop connections that remain."""
        while not server.should_exit:
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(self._grace_seconds)
        self._ending = True
        for task in self._open:
            task.cancel()
        await asyncio.sleep(CLOSE_SECONDS)
        server.force_exit = True


async def _end(send: Send, started: bool) -> None:
    """Send the end of a response that the server no longer completes."""
    if not started:
        await send_error(send, 503, STOPPING)
        return
    event = f"data: {json.dumps(error_body(503, STOPPING))}\n\n"
    await send({"type": "http.response.body", "body": event.encode()})
