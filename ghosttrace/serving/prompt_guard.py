"""An ASGI middleware that keeps special tokens typed by users out of prompts.

A chat template joins messages with special tokens, and the tokenizer then reads the whole string. A user who types
`<|im_end|>` or `<|block_start|>` would therefore write structure: end the turn, open the assistant's turn, and erase
or keep context. The middleware breaks every special token in a request's strings with a word joiner, which is invisible
and which no tokenizer reads as part of the token. It leaves the assistant's own turns as they are, because finished
blocks and mementos belong there. It also leaves the prompts of `/v1/completions`, which are text to continue and not a
conversation.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.markup import Markup
from ghosttrace.serving.error_responses import Send, send_error

TOKENS_VARIABLE = "GHOSTTRACE_GUARD"  # of the environment: the special tokens as a JSON list
WORD_JOINER = "\u2060"
UNGUARDED_PATHS = ("/v1/completions",)
REFUSED_PATHS = ("/invocations",)  # vLLM serves the same endpoints there, without asking for the key
TURN_PARAMETERS = ("messages", "input")  # parameters that hold the assistant's own turns
NON_PROMPT_PARAMETERS = ("model", "stop", "bad_words")  # parameters that never reach a prompt
MAX_BODY_BYTES = 32 << 20  # bytes

Receive = Callable[[], Awaitable[dict[str, Any]]]


def special_tokens(tokenizer: Any, markup: Markup) -> list[str]:
    """Return every token that a template or the law gives a meaning to, the longest first.

    Raises:
        UserError: the assistant's turn opens with plain text, which any user can type.
    """
    found = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(list(markup.delimiters))}
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    header = tokenizer.convert_ids_to_tokens(list(markup.assistant_header))
    if header and not found.intersection(header):
        raise UserError(
            f"the assistant's turn opens with plain text ({''.join(header)!r}), so that a user could open it too: "
            "give the chat template a special token there"
        )
    return sorted((token for token in found if len(token) > 1), key=len, reverse=True)


class TokenBreaker:
    """Breaks special tokens in a request's body.

    A string that ends with the beginning of a token gets a joiner at its end, because a template may join the next
    string to it.

    Args:
        tokens: literals to break.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, tokens)))
        self._prefixes = tuple({token[:n] for token in tokens for n in range(1, len(token))})

    def body(self, parsed: Any) -> Any:
        """Return the body with its tokens broken, except in `NON_PROMPT_PARAMETERS` and in the assistant's own turns."""
        if not isinstance(parsed, dict):
            return self.break_strings(parsed)
        found: dict[str, Any] = {}
        for name, value in parsed.items():
            if name in TURN_PARAMETERS and isinstance(value, list):
                found[name] = [turn if _is_assistants(turn) else self.break_strings(turn) for turn in value]
            else:
                found[self.break_strings(name)] = value if name in NON_PROMPT_PARAMETERS else self.break_strings(value)
        return found

    def break_strings(self, value: Any) -> Any:
        """Return a value with the tokens broken in every string that it holds, keys included."""
        if isinstance(value, str):
            broken = self._pattern.sub(lambda found: found[0][0] + WORD_JOINER + found[0][1:], value)
            return broken + WORD_JOINER if broken.endswith(self._prefixes) else broken
        if isinstance(value, list):
            return [self.break_strings(one) for one in value]
        if isinstance(value, dict):
            return {self.break_strings(name): self.break_strings(one) for name, one in value.items()}
        return value


def _is_assistants(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"


class PromptGuard:
    """The middleware. `ghosttrace serve` installs it in vLLM's server and passes the tokens in the environment.

    Args:
        app: the ASGI application that it guards.
        tokens: literals to break; by default those in the environment variable `GHOSTTRACE_GUARD`.

    Raises:
        UserError: `tokens` is None and the variable is not set.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], tokens: Sequence[str] | None = None) -> None:
        if tokens is None and TOKENS_VARIABLE not in os.environ:
            raise UserError(f"{TOKENS_VARIABLE} is not set: start the server with `ghosttrace serve`")
        self.app = app
        self._breaker = TokenBreaker(json.loads(os.environ[TOKENS_VARIABLE]) if tokens is None else tokens)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on with its special tokens broken, or answer it with an error."""
        if scope["type"] == "http" and scope["path"].rstrip("/") in REFUSED_PATHS:
            await send_error(send, 404, "there is nothing here: ask /v1")
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
                await send_error(send, 413, f"a body has at most {MAX_BODY_BYTES} bytes")
                return
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if body and not (kinds and all(kind.startswith(b"multipart/") for kind in kinds)):
            try:
                body = bytearray(json.dumps(self._breaker.body(json.loads(bytes(body)))).encode())
            except (ValueError, RecursionError):
                await send_error(send, 400, "the body is not JSON, or nested too deeply")
                return
        await self._pass_on(scope, bytes(body), receive, send)

    async def _pass_on(self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        given = False

        async def receive_body() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send)
