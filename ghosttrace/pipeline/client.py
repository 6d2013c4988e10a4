"""Calls to an OpenAI-compatible endpoint: stored, counted, limited in number and in cost."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import openai
from openai.types.chat import ChatCompletion

from ghosttrace.errors import UserError
from ghosttrace.pipeline.calls import Answer, CallCache, request_key
from ghosttrace.pipeline.files import LOG
from ghosttrace.pipeline.rows import RowError
from ghosttrace.pipeline.tokens import estimate_tokens

KEPT = "the answers so far are kept, so the same command continues"
MAX_FAILURES = 8
"""Calls in a row that may fail for want of a connection before the run stops."""

Message = dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint, and what may be asked of it.

    Attributes:
        base_url: address up to `/v1`.
        model: name of the model there.
        api_key: key of the endpoint.
        concurrency: number of requests at once.
        timeout: seconds for one request.
        retries: how often the client repeats a request after 408, 409, 429, 5xx or a lost connection.
        price_in, price_out: dollars for a million tokens of prompt and of completion.
        max_cost: dollars for all calls in a folder; None is unlimited.
        request: further fields of every request, such as `temperature`.
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float | None = None
    request: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise UserError("--concurrency must be at least 1, --retries at least 0, and --timeout more than 0")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise UserError("--max-cost needs prices: give --price-in and --price-out")


class Client:
    """Client of an endpoint; an asynchronous context manager that waits for the requests under way when it ends.

    Args:
        endpoint: the endpoint and the limits.
        cache: answers that are known already; every new one is added.
    """

    def __init__(self, endpoint: Endpoint, cache: CallCache) -> None:
        self.endpoint = endpoint
        self.cache = cache
        self.sent = 0
        self._spent = sum(cost.cost for cost in cache.costs())
        self._reserved = 0.0
        self._failures = 0
        self._answered = False
        self._stopped: UserError | None = None
        self._under_way: dict[str, asyncio.Task[Answer]] = {}

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        try:
            self._openai = openai.AsyncOpenAI(
                base_url=self.endpoint.base_url,
                api_key=self.endpoint.api_key,
                timeout=self.endpoint.timeout,
                max_retries=self.endpoint.retries,
            )
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise UserError(
                f"--endpoint {self.endpoint.base_url!r} is no address ({error}): give http://HOST:PORT/v1"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the requests under way, because their answers are paid for, and store these."""
        if kind is not None:
            self._stop(f"the run was stopped; {KEPT}")  # requests that wait for their turn are not sent
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._openai.close()

    async def complete(self, stage: str, messages: Sequence[Message], schema: Mapping[str, Any], limit: int) -> Answer:
        """Return the answer to a conversation, from the cache if it is known.

        Args:
            stage: the stage that asks, for the cost table.
            messages: the conversation.
            schema: JSON schema of the answer, sent if the endpoint knows structured output.
            limit: maximum number of tokens of the answer.

        Raises:
            RowError: the endpoint refuses this request, or fails at it every time.
            UserError: no request can succeed, or the limit of the cost is reached; see `stop`.
        """
        plain = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "max_completion_tokens": limit,
            **self.endpoint.request,
        }
        if self.cache.setting("structured") == "no":
            return await self._answer(stage, plain)
        structured = plain | {"response_format": _response_format(schema)}
        try:
            return await self._answer(stage, structured)
        except _RefusedError as refused:
            if self.cache.setting("structured") == "yes":
                raise
            LOG.info("structured output refused (%s): asking for JSON in the text", refused)
            answer = await self._answer(stage, plain)
            self.cache.set_setting("structured", "no")
            return answer

    async def _answer(self, stage: str, request: dict[str, Any]) -> Answer:
        key = request_key(request)
        known = self.cache.get(key)
        if known is not None:
            return known
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._send_within_limits(stage, key, request))
            self._under_way[key].add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(self._under_way[key])

    async def _send_within_limits(self, stage: str, key: str, request: dict[str, Any]) -> Answer:
        async with self._slots:
            reserve = self._highest_cost(request)
            if self._stopped is None and self.endpoint.max_cost is not None:
                total = self._spent + self._reserved + reserve
                if total > self.endpoint.max_cost:
                    self._stop(f"--max-cost {self.endpoint.max_cost:g} would be exceeded: raise it; {KEPT}")
            if self._stopped is not None:
                raise UserError(str(self._stopped))
            self._reserved += reserve
            try:
                answer = await self._send(stage, key, request)
            finally:
                self._reserved -= reserve
            try:
                self.cache.put(key, stage, request, answer, (self.endpoint.price_in, self.endpoint.price_out))
            except UserError as error:
                self._stopped = error  # further answers would be paid for and lost
                raise
            self._spent += self._cost(answer.prompt_tokens or 0, answer.completion_tokens or 0)
            if "response_format" in request and self.cache.setting("structured") is None:
                self.cache.set_setting("structured", "yes")
            return answer

    async def _send(self, stage: str, key: str, request: dict[str, Any]) -> Answer:
        """Send a request until it is answered in full."""
        started = perf_counter()
        for _ in range(self.endpoint.retries + 1):
            self.sent += 1
            try:
                raw = await self._openai.chat.completions.with_raw_response.create(
                    model=self.endpoint.model, messages=request["messages"], extra_body=request
                )
                completion = raw.parse()
            except (json.JSONDecodeError, openai.APIResponseValidationError):
                continue
            except openai.APIError as error:
                raise self._failed(error) from error
            if isinstance(completion, ChatCompletion) and completion.choices:
                self._answered, self._failures = True, 0
                answer = _read(completion)
                LOG.info(
                    "%s %s %.2f s, %d retries, %s + %s tokens, %s",
                    *(stage, key[:12], perf_counter() - started, raw.retries_taken),
                    *(answer.prompt_tokens, answer.completion_tokens, answer.finish_reason),
                )
                return answer
        raise RowError("broken answer: the endpoint sends no complete chat completion")

    def _failed(self, error: openai.APIError) -> Exception:
        """Return the error of a request that failed after all retries; stop the run if no other could succeed."""
        url, status = self.endpoint.base_url, getattr(error, "status_code", None)
        LOG.info("failed: %s", error)
        if isinstance(error, openai.APIConnectionError):
            self._failures += 1
            if not self._answered or self._failures >= MAX_FAILURES:
                fix = f"start the server or correct --endpoint; {KEPT}"
                return self._stop(f"the endpoint {url} cannot be reached ({error}): {fix}")
            return RowError(f"no connection: {error}")
        if status in (401, 403):
            return self._stop(f"the endpoint {url} refuses the key: set the variable that --key-variable names")
        if status == 404:
            return self._stop(f"the endpoint {url} has no model {self.endpoint.model!r}, or no chat: correct --model")
        if status == 429:
            return self._stop(f"the endpoint {url} keeps refusing for too many requests: lower --concurrency; {KEPT}")
        if status in (400, 413, 422):
            return _RefusedError(f"refused request: {error}")
        return RowError(f"server error: {error}")

    def _stop(self, message: str) -> UserError:
        """Let no further request begin, and return the error that ends the run."""
        self._stopped = self._stopped or UserError(message)
        return self._stopped

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.endpoint.price_in + completion_tokens * self.endpoint.price_out) / 1e6

    def _highest_cost(self, request: Mapping[str, Any]) -> float:
        (prompt_tokens,) = estimate_tokens(["\n".join(message["content"] for message in request["messages"])])
        return self._cost(prompt_tokens, request["max_completion_tokens"])


class _RefusedError(RowError):
    """Request that the endpoint does not accept."""


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def _read(completion: ChatCompletion) -> Answer:
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or ""
    return Answer(
        text.encode("utf-8", "replace").decode(),  # half a surrogate pair cannot be stored
        choice.finish_reason or "stop",
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
    )
