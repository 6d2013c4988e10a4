"""ASGI middleware that breaks special tokens typed by users, so that they do not become special tokens of the prompt.

A chat template joins messages with special tokens, and the tokenizer then encodes the whole string. A user who types
`<|im_end|>` or `<|block_start|>` could therefore end the turn, open the assistant's turn, or cause erasures. The
middleware inserts a word joiner into every special token in a request's strings. The joiner is invisible, and the
tokenizer no longer recognises the special token.

Two kinds of text remain unchanged: the assistant's own turns, because they contain finished blocks and mementos, and
the prompts of `/v1/completions`, because they are not conversations.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.markup import Markup
from ghosttrace.serving.error_responses import Send, send_error

TOKENS_VARIABLE = "GHOSTTRACE_GUARD"  # environment variable with the special tokens as a JSON list
WORD_JOINER = "\u2060"
UNGUARDED_PATHS = ("/v1/completions",)
REFUSED_PATHS = ("/invocations",)  # vLLM serves the same endpoints there without an API key
TURN_PARAMETERS = ("messages", "input")  # parameters that may contain the assistant's own turns
NON_PROMPT_PARAMETERS = ("model", "stop", "bad_words")  # parameters that never become part of a prompt
MAX_BODY_BYTES = 32 << 20

Receive = Callable[[], Awaitable[dict[str, Any]]]


def special_tokens(tokenizer: Any, markup: Markup) -> list[str]:
    """Return the strings of all special tokens and delimiters, the longest first.

    Raises:
        UserError: if the assistant's header has no special token, because a user could then type the header.
    """
    tokens = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(list(markup.delimiters))}
    tokens |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    header = tokenizer.convert_ids_to_tokens(list(markup.assistant_header))
    if header and not tokens.intersection(header):
        raise UserError(
            f"the assistant's header {''.join(header)!r} has no special token, so a user could type it: add a special "
            "token to it in the chat template"
        )
    return sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)


class TokenBreaker:
    """Sanitiser that breaks special tokens in the body of a request.

    A string that ends with a prefix of a special token gets a word joiner at its end, because a template may append the
    rest of the token.

    Args:
        tokens: strings of the special tokens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, tokens)))
        self._prefixes = tuple({token[:n] for token in tokens for n in range(1, len(token))})

    def body(self, parsed: Any) -> Any:
        """Return a parsed body with broken special tokens.

        The values of `NON_PROMPT_PARAMETERS` and the assistant's own turns remain unchanged.
        """
        if not isinstance(parsed, dict):
            return self.break_strings(parsed)
        result: dict[str, Any] = {}
        for name, value in parsed.items():
            if name in TURN_PARAMETERS and isinstance(value, list):
                result[name] = [turn if _is_assistant_turn(turn) else self.break_strings(turn) for turn in value]
            else:
                result[self.break_strings(name)] = value if name in NON_PROMPT_PARAMETERS else self.break_strings(value)
        return result

    def break_strings(self, value: Any) -> Any:
        """Return a JSON value with broken special tokens in all its strings, including keys."""
        if isinstance(value, str):
            broken = self._pattern.sub(lambda match: match[0][0] + WORD_JOINER + match[0][1:], value)
            return broken + WORD_JOINER if broken.endswith(self._prefixes) else broken
        if isinstance(value, list):
            return [self.break_strings(item) for item in value]
        if isinstance(value, dict):
            return {self.break_strings(name): self.break_strings(item) for name, item in value.items()}
        return value


def _is_assistant_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"


class PromptGuard:
    """ASGI middleware that breaks special tokens in request bodies.

    `ghosttrace serve` installs it in vLLM's server and passes the special tokens in the environment.

    Args:
        app: the ASGI application to protect.
        tokens: strings of the special tokens; by default the list in the environment variable `GHOSTTRACE_GUARD`.

    Raises:
        UserError: if `tokens` is None and the environment variable is not set.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], tokens: Sequence[str] | None = None) -> None:
        if tokens is None and TOKENS_VARIABLE not in os.environ:
            raise UserError(f"{TOKENS_VARIABLE} is not set: start the server with `ghosttrace serve`")
        self.app = app
        self._breaker = TokenBreaker(json.loads(os.environ[TOKENS_VARIABLE]) if tokens is None else tokens)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Forward a request with broken special tokens, or send an error response."""
        if scope["type"] == "http" and scope["path"].rstrip("/") in REFUSED_PATHS:
            await send_error(send, 404, "this path is disabled: use the endpoints under /v1")
            return
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in UNGUARDED_PATHS:
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                await send_error(send, 413, f"the request body is too large: send at most {MAX_BODY_BYTES} bytes")
                return
        content_types = [value for name, value in scope["headers"] if name == b"content-type"]
        is_multipart = bool(content_types) and all(value.startswith(b"multipart/") for value in content_types)
        if body and not is_multipart:
            try:
                body = bytearray(json.dumps(self._breaker.body(json.loads(bytes(body)))).encode())
            except (ValueError, RecursionError):
                await send_error(send, 400, "the body is no valid JSON or is nested too deeply: send a JSON object")
                return
        await self._forward(scope, bytes(body), receive, send)

    async def _forward(self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Call the application with the changed body instead of the body that was received."""
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        delivered = False

        async def receive_body() -> dict[str, Any]:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send)
