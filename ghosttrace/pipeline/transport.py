"""Requests over HTTP: a chat completion in, the body of its response or the reason of its failure out."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import openai

from ghosttrace.errors import UserError
from ghosttrace.pipeline.endpoint import Endpoint


@dataclass(frozen=True)
class Reply:
    """Response of the endpoint.

    Attributes:
        body: the body, without secrets.
        retries: how often the request was repeated before.
    """

    body: str
    retries: int


@dataclass(frozen=True)
class Failure:
    """Failure of a request after all retries.

    Attributes:
        reason: what went wrong, without secrets.
        status: status of the last response; None if there was no response.
    """

    reason: str
    status: int | None


Send = Callable[[Mapping[str, Any]], Awaitable[Reply | Failure]]
"""Function that sends one request and returns what came back."""


class Transport:
    """Connections of this process to an endpoint; an asynchronous context manager that closes them.

    Args:
        endpoint: address, key, retries and timeout.

    Raises:
        UserError: the address is none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        try:
            self._openai = openai.AsyncOpenAI(
                base_url=endpoint.base_url,
                api_key=endpoint.api_key,
                timeout=endpoint.timeout,
                max_retries=endpoint.retries,
            )
        except (openai.OpenAIError, ValueError, TypeError) as error:
            message = f"--endpoint {endpoint.base_url!r} is no address ({error}): give http://HOST:PORT/v1"
            raise UserError(endpoint.hide(message)) from error

    async def send(self, request: Mapping[str, Any]) -> Reply | Failure:
        """Send a request, with the endpoint's number of retries."""
        try:
            raw = await self._openai.chat.completions.with_raw_response.create(
                model=self._endpoint.model, messages=request["messages"], extra_body=request
            )
        except openai.APIError as error:
            return Failure(self._endpoint.hide(str(error)), getattr(error, "status_code", None))
        return Reply(self._endpoint.hide(raw.text), raw.retries_taken)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()
