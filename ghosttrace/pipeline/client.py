"""Calls to an OpenAI-compatible endpoint: stored, counted, limited in number and in cost."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from ghosttrace.errors import UserError
from ghosttrace.pipeline.budget import Budget
from ghosttrace.pipeline.calls import Answer, CallCache, request_key
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.files import LOG
from ghosttrace.pipeline.rows import RowError
from ghosttrace.pipeline.transport import Failure, Send, Transport

KEPT = "the answers so far are kept, so the same command continues"
MAX_FAILURES = 8
"""Calls in a row that fail, after all retries, before the run stops."""

BROKEN = "broken"
USAGE = re.compile(r'"(prompt_tokens|completion_tokens)"\s*:\s*(\d{1,12})\b')

Message = dict[str, str]


class Client:
    """Client of an endpoint; an asynchronous context manager that waits for the requests under way when it ends.

    Args:
        endpoint: the endpoint and the limits.
        cache: answers that are known already; every new one is added.
        send: sends a request; by default from this process.
    """

    def __init__(self, endpoint: Endpoint, cache: CallCache, send: Send | None = None) -> None:
        self.endpoint = endpoint
        self.cache = cache
        self._other_send = send
        self._budget = Budget(endpoint, cache)
        self._structured = f"structured output of {endpoint.model} at {request_key(endpoint.base_url, {})}"
        self._failures = 0
        self._answered = False
        self._stopped: UserError | None = None
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._waiting: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        self._connections = AsyncExitStack()
        if self._other_send is not None:
            self._send_request = self._other_send
        else:
            self._send_request = (await self._connections.enter_async_context(Transport(self.endpoint))).send
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the requests under way, because their answers are paid for, and store these."""
        if kind is not None:
            self._stop(f"the run was stopped; {KEPT}")  # requests that wait for their turn are not sent
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._connections.aclose()

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
        if self.cache.setting(self._structured) == "no":
            return await self._answer(stage, plain)
        structured = plain | {"response_format": _response_format(schema)}
        try:
            return await self._answer(stage, structured)
        except _RefusedError as refused:
            LOG.info("structured output refused (%s): asking for JSON in the text", refused)
            answer = await self._answer(stage, plain)
            if self.cache.setting(self._structured) is None:
                self.cache.set_setting(self._structured, "no")
            return answer

    async def _answer(self, stage: str, request: dict[str, Any]) -> Answer:
        key = request_key(self.endpoint.base_url, request)
        known = self.cache.get(key)
        if known is not None:
            return known
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._send_within_limits(stage, key, request))
            self._under_way[key].add_done_callback(lambda task: task.cancelled() or task.exception())  # may be unasked
        task = self._under_way[key]
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[key] -= 1

    async def _send_within_limits(self, stage: str, key: str, request: dict[str, Any]) -> Answer:
        try:
            async with self._slots:
                return await self._send_until_answered(stage, key, request)
        finally:
            del self._under_way[key]

    async def _send_until_answered(self, stage: str, key: str, request: dict[str, Any]) -> Answer:
        if not self._waiting[key]:
            raise RowError("not sent: what asked for it has failed")
        for _ in range(self.endpoint.retries + 1):
            reserve = None if self._stopped else self._budget.reserve(request)
            if reserve is None:
                raise self._stop(f"--max-cost {self.endpoint.max_cost or 0:g} could be exceeded: raise it; {KEPT}")
            try:
                answer = await self._send(stage, key, request)
                self._keep(key, stage, request, answer)
            finally:
                self._budget.release(reserve)
            if answer.finish_reason != BROKEN:
                self._answered, self._failures = True, 0
                if "response_format" in request and self.cache.setting(self._structured) is None:
                    self.cache.set_setting(self._structured, "yes")
                return answer
        raise RowError("broken answer: the endpoint sends no complete chat completion")

    async def _send(self, stage: str, key: str, request: dict[str, Any]) -> Answer:
        started = perf_counter()
        reply = await self._send_request(request)
        if isinstance(reply, Failure):
            raise self._failed(reply, "response_format" in request)
        answer = read_answer(reply.body)
        LOG.info(
            "%s %s %.2f s, %d retries, %s + %s tokens, %s",
            *(stage, key[:12], perf_counter() - started, reply.retries),
            *(answer.prompt_tokens, answer.completion_tokens, answer.finish_reason),
        )
        return answer

    def _keep(self, key: str, stage: str, request: dict[str, Any], answer: Answer) -> None:
        """Store an answer and count its cost; of a broken one, count what the endpoint reports."""
        if answer.finish_reason == BROKEN:
            if answer.prompt_tokens is None and answer.completion_tokens is None:
                return
            key = f"{key} {uuid4().hex}"  # so that it answers no request
        self._budget.spend(request, answer.prompt_tokens, answer.completion_tokens)
        try:
            self.cache.put(key, stage, request, answer, (self.endpoint.price_in, self.endpoint.price_out))
        except UserError as error:
            self._stopped = error  # further answers would be paid for and lost
            raise

    def _failed(self, failure: Failure, structured: bool) -> Exception:
        """Return the error of a request that failed after all retries; stop the run if no other could succeed."""
        url, status, reason = self.endpoint.hide(self.endpoint.base_url), failure.status, failure.reason
        LOG.info("failed: %s", reason)
        if status in (401, 403):
            return self._stop(f"the endpoint {url} refuses the key: set the variable that --key-variable names")
        if status == 402:
            return self._stop(f"the endpoint {url} asks for payment ({reason}): add to the account; {KEPT}")
        if status == 404:
            return self._stop(f"the endpoint {url} has no model {self.endpoint.model!r}, or no chat: correct --model")
        if status == 429:
            return self._stop(f"the endpoint {url} keeps refusing for too many requests: lower --concurrency; {KEPT}")
        refused = status in (400, 413, 422)
        if refused and structured:
            return _RefusedError(f"refused request: {reason}")  # asked again in plain text
        self._failures += 1
        often = self._failures >= MAX_FAILURES
        if status is None:
            if often or not self._answered:
                fix = f"start the server or correct --endpoint; {KEPT}"
                return self._stop(f"the endpoint {url} cannot be reached ({reason}): {fix}")
            return RowError(f"no connection: {reason}")
        if often:
            fix = "correct --request, or drop long traces with --max-tokens" if refused else "look at the server"
            return self._stop(f"the endpoint {url} failed {MAX_FAILURES} times in a row ({reason}): {fix}; {KEPT}")
        return _RefusedError(f"refused request: {reason}") if refused else RowError(f"server error: {reason}")

    def _stop(self, message: str) -> UserError:
        """Let no further request begin, and return the error that ends the run."""
        self._stopped = self._stopped or UserError(message)
        return self._stopped


class _RefusedError(RowError):
    """Request that the endpoint does not accept."""


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def read_answer(body: str) -> Answer:
    """Return the answer in the body of a response; its reason to finish is `broken` if there is none."""
    usage = {name: int(count) for name, count in USAGE.findall(body)}
    tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    try:
        choice = json.loads(body)["choices"][0]
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Answer("", BROKEN, *tokens)
    if not isinstance(text, str):
        return Answer("", BROKEN, *tokens)
    return Answer(text.encode("utf-8", "replace").decode(), str(reason), *tokens)  # replaces half a surrogate pair
