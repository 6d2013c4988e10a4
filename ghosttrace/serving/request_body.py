"""Bounded reading and parsing of request bodies: no client can fill the memory or stop the event loop for long.

`json.loads` and regular expressions hold Python's global lock. The number of bytes and of JSON values therefore bounds
how long the event loop can stop, and one thread parses large bodies, one after the other.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ghosttrace.serving.api_keys import read_header
from ghosttrace.serving.error_responses import Receive, RefusedRequestError


@dataclass(frozen=True)
class BodyLimits:
    """Limits of request bodies.

    Attributes:
        max_bytes: maximum size of a body.
        max_values: maximum number of the characters `[`, `{` and `,` in a body, which bounds its number of JSON values.
        max_total_bytes: maximum size of all bodies that are read at the same time.
        seconds: maximum time in which a body must arrive.
        inline_bytes: maximum size of a body that is parsed on the event loop.
    """

    max_bytes: int = 32 << 20
    max_values: int = 1 << 20
    max_total_bytes: int = 256 << 20
    seconds: float = 60.0
    inline_bytes: int = 1 << 16


class ClientGoneError(Exception):
    """Error raised when the client disconnects before its body has arrived."""


class BodyReader:
    """Reader of request bodies for one server.

    Args:
        limits: limits of the bodies.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self._bytes_held = 0
        self._thread = ThreadPoolExecutor(1, "parse-body")

    async def read(self, scope: Mapping[str, Any], receive: Receive, rewrite: Callable[[bytes], bytes]) -> bytes:
        """Return the rewritten body of a request.

        Args:
            scope: ASGI scope of the request.
            receive: ASGI callable that returns the parts of the body.
            rewrite: function that parses and rewrites the body.

        Raises:
            RefusedRequestError: if the body is larger than a limit or late, or `rewrite` refuses it.
            ClientGoneError: if the client disconnects.
        """
        declared = read_header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self.limits.max_bytes:
            raise self._too_large()
        held = [0]
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._collect(receive, held)
            if sum(map(body.count, (b"[", b"{", b","))) > self.limits.max_values:
                raise RefusedRequestError(413, f"the body has too many values: send at most {self.limits.max_values}")
            if len(body) <= self.limits.inline_bytes:
                return rewrite(body)
            return await asyncio.get_running_loop().run_in_executor(self._thread, rewrite, body)
        except TimeoutError as error:
            raise RefusedRequestError(408, f"the body did not arrive in {self.limits.seconds:g} seconds") from error
        finally:
            self._bytes_held -= held[0]

    async def _collect(self, receive: Receive, held: list[int]) -> bytes:
        """Return all parts of a body; `held[0]` is the number of bytes that it adds to `_bytes_held`."""
        parts, more = list[bytes](), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            held[0] += len(parts[-1])
            self._bytes_held += len(parts[-1])
            if held[0] > self.limits.max_bytes:
                raise self._too_large()
            if self._bytes_held > self.limits.max_total_bytes:
                raise RefusedRequestError(503, "other clients are sending large bodies: try again later")
        return b"".join(parts)

    def _too_large(self) -> RefusedRequestError:
        return RefusedRequestError(413, f"the request body is too large: send at most {self.limits.max_bytes} bytes")
