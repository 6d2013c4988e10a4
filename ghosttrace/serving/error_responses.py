"""Errors in the form of the OpenAI API, which both servers answer with."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
"""ASGI's channel from a server to its client."""

ERROR_TYPES = {401: "AuthenticationError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailable"}


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return the JSON body of an error with this HTTP status."""
    kind = ERROR_TYPES.get(status, "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def send_error(send: Send, status: int, message: str) -> None:
    """Answer an ASGI request with an error."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(status, message)).encode()})
