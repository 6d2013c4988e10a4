"""ASGI middleware in front of both servers: it checks requests, and breaks special tokens typed by users.

Only the routes in `ghosttrace.serving.routes` are answered. Nothing of a request's body is read before its key was
accepted. Two kinds of text remain unchanged: the assistant's own turns, because they contain finished blocks and
mementos, and the prompts of `/v1/completions`, because they are not conversations.
"""

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.law import SpecifiedLaw
from ghosttrace.serving import metrics
from ghosttrace.serving.api_keys import ApiKeys, read_header
from ghosttrace.serving.error_responses import Receive, RefusedRequestError, Send, send_error
from ghosttrace.serving.model_list import MODELS_PATH, ModelListSend
from ghosttrace.serving.paging import PagedArm
from ghosttrace.serving.request_body import BodyLimits, BodyReader, ClientGoneError
from ghosttrace.serving.request_permissions import RequestPermissions
from ghosttrace.serving.routes import COMPLETIONS_PATH, Route, find_route
from ghosttrace.serving.sealed_prompts import PromptMarkup
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.token_breaker import TokenBreaker, special_tokens
from ghosttrace.serving.tokenizer_check import check_typed_tokens

GUARD_VARIABLE = "GHOSTTRACE_GUARD"  # environment variable with the guard's settings as JSON
MAX_REQUESTS = 4096

App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class GuardSettings:
    """Settings of a prompt guard.

    Attributes:
        tokens: strings of the special tokens, the longest first.
        permissions: what requests may choose of the erasure settings.
        keys: API keys of which clients must send one.
        max_requests: maximum number of requests that are answered at the same time.
        limits: limits of request bodies.
        sealed_prompts: markup with which prompts of a sealed server are checked; None for no check.
    """

    tokens: tuple[str, ...]
    permissions: RequestPermissions
    keys: ApiKeys = field(default_factory=ApiKeys)
    max_requests: int = MAX_REQUESTS
    limits: BodyLimits = field(default_factory=BodyLimits)
    sealed_prompts: PromptMarkup | None = None

    @classmethod
    def for_model(
        cls, tokenizer: Any, settings: ServingSettings, keys: Iterable[str], request_arms: Sequence[PagedArm]
    ) -> "GuardSettings":
        """Return the guard settings of a server.

        Args:
            tokenizer: tokenizer of the model.
            settings: erasure settings of the server.
            keys: API keys of which clients must send one.
            request_arms: arms that a request may choose instead of the server's.

        Raises:
            UserError: if a user could type a special token despite the guard, or the assistant's header has none.
        """
        chat = settings.other_law.chat_tokens if isinstance(settings.other_law, SpecifiedLaw) else None
        tokens = special_tokens(tokenizer, settings.markup, chat)
        check_typed_tokens(tokenizer, tokens)
        permissions = RequestPermissions.from_settings(settings, request_arms)
        sealed_blocks = permissions.sealed and settings.other_law is None
        sealed_prompts = PromptMarkup.from_tokenizer(tokenizer, settings.markup) if sealed_blocks else None
        return cls(tuple(tokens), permissions, ApiKeys.from_keys(keys), sealed_prompts=sealed_prompts)

    def to_json(self) -> str:
        """Return the settings for the environment variable `GUARD_VARIABLE`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "GuardSettings":
        """Return the settings from the text that `to_json` returned."""
        stored = json.loads(text)
        permissions = RequestPermissions.from_dict(stored["permissions"])
        keys = ApiKeys(tuple(stored["keys"]["digests"]))
        sealed_prompts = stored["sealed_prompts"] and PromptMarkup.from_dict(stored["sealed_prompts"])
        limits = BodyLimits(**stored["limits"])
        return cls(tuple(stored["tokens"]), permissions, keys, stored["max_requests"], limits, sealed_prompts)

    @classmethod
    def from_environment(cls) -> "GuardSettings":
        """Return the settings that `ghosttrace serve` has passed to vLLM's server.

        Raises:
            UserError: if the environment variable is not set.
        """
        if GUARD_VARIABLE not in os.environ:
            raise UserError(f"{GUARD_VARIABLE} is not set: start the server with `ghosttrace serve`")
        return cls.from_json(os.environ[GUARD_VARIABLE])


class PromptGuard:
    """ASGI middleware that checks the key of requests and breaks special tokens in their bodies.

    Args:
        app: the ASGI application to protect.
        settings: settings of the guard; by default those in the environment variable `GUARD_VARIABLE`.

    Raises:
        UserError: if `settings` is None and the environment variable is not set.
    """

    def __init__(self, app: App, settings: GuardSettings | None = None) -> None:
        self.app, self.settings = app, settings or GuardSettings.from_environment()
        self._breaker = TokenBreaker(self.settings.tokens)
        self._bodies = BodyReader(self.settings.limits)
        self._requests = 0
        permissions = self.settings.permissions
        metrics.SEALED.labels(permissions.arm, ",".join(permissions.request_arms)).set(permissions.sealed)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Forward a request with broken special tokens, or send an error response."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            route = find_route(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
            if route.access != "everyone" and scope["method"] != "OPTIONS":
                self.settings.keys.check(scope)
            with self._counted(route):
                await self.app(*await self._arguments(route, scope, receive, send))
        except RefusedRequestError as refusal:
            await send_error(send, refusal.status, refusal.message)
        except ClientGoneError:
            return

    @contextmanager
    def _counted(self, route: Route) -> Iterator[None]:
        """Count a request while it is answered, except on a route for everyone, which clients without a key could fill.

        Raises:
            RefusedRequestError: if the server is answering its maximum number of requests.
        """
        if route.access == "everyone":
            yield
            return
        if self._requests >= self.settings.max_requests:
            raise RefusedRequestError(503, "the server is answering as many requests as it can: try again later")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _arguments(
        self, route: Route, scope: dict[str, Any], receive: Receive, send: Send
    ) -> tuple[dict[str, Any], Receive, Send]:
        """Return the arguments with which the application is called.

        Raises:
            RefusedRequestError: if the request is not answered.
            ClientGoneError: if the client has disconnected.
        """
        if scope["method"] != "POST":
            describes_models = route.path == MODELS_PATH and scope["method"] == "GET"
            sending = ModelListSend(send, self.settings.permissions.describe()) if describes_models else send
            return *_with_body(scope, receive, b""), sending
        read_header(scope, b"content-type")  # two of them are refused; the body is read as JSON, whatever it is called
        rewrite = partial(self._rewrite, route=route)
        return *_with_body(scope, receive, await self._bodies.read(scope, receive, rewrite)), send

    def _rewrite(self, body: bytes, route: Route) -> bytes:
        """Return a body with broken special tokens, except in texts to continue, if the request is permitted.

        Raises:
            RefusedRequestError: if the body is no JSON, or its parameters are not permitted.
        """
        if not body:
            return body
        try:
            parsed = json.loads(body)
            if isinstance(parsed, dict):
                self.settings.permissions.check_body(parsed)
                self._check_sealed(parsed, route)
            return json.dumps(self._breaker.body(parsed, route.text_parameters), allow_nan=False).encode()
        except UserError as error:
            raise RefusedRequestError(400, str(error)) from error
        except (ValueError, RecursionError) as error:
            raise RefusedRequestError(
                400, "the body is no valid JSON (NaN and Infinity are none) or is nested too deeply: send a JSON object"
            ) from error

    def _check_sealed(self, parsed: dict[str, Any], route: Route) -> None:
        """Raise an error if a sealed server would not erase blocks of this request.

        Raises:
            UserError: if a delimiter of its prompt or of its turns lies outside the assistant's turns.
        """
        markup = self.settings.sealed_prompts
        if markup:
            markup.check_turns(parsed)
        if markup and route.path == COMPLETIONS_PATH:
            markup.check(parsed.get("prompt"))


def _with_body(scope: dict[str, Any], receive: Receive, body: bytes) -> tuple[dict[str, Any], Receive]:
    """Return the scope and the receive callable of a request whose body was replaced."""
    replaced = (b"content-length", b"transfer-encoding", b"content-type" if body else b"")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers += [(b"content-type", b"application/json")] if body else []
    delivered = False

    async def receive_body() -> dict[str, Any]:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}, receive_body
