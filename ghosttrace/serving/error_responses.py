"""Error responses in the format of the OpenAI API, shared by both servers."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
"""ASGI callable that returns the next event from the client."""
Send = Callable[[dict[str, Any]], Awaitable[None]]
"""ASGI callable that sends one event to the client."""

ERROR_TYPES = {401: "AuthenticationError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailable"}


class RefusedRequestError(Exception):
    """Error raised for a request that the server does not answer.

    Args:
        status: HTTP status of the response.
        message: what is wrong with the request, and the fix.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return the JSON body of an error response with this HTTP status."""
    error_type = ERROR_TYPES.get(status, "BadRequestError")
    return {"error": {"message": message, "type": error_type, "param": None, "code": status}}


async def send_error(send: Send, status: int, message: str) -> None:
    """Send an error response to an ASGI request."""
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
