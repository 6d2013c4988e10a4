"""What a user types is text: an ASGI middleware in front of the chat endpoints.

A chat template pastes messages between special tokens, and the tokenizer then reads the whole, so that a user
who types `<|im_end|>` or `<|block_start|>` would write structure: end the turn, open the assistant's, and erase
or keep context at will. Here every special token that stands in a request's strings is broken by a word
joiner, which nobody sees and no tokenizer takes for the token. What the request gives as the assistant's own
earlier words is left as it is: finished blocks and mementos are meant to be there. So are the prompts of
`/v1/completions`, which are text to go on with and not a conversation.
"""

import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.markup import Markup
from ghosttrace.serving.http.protocol import failure

VARIABLE = "GHOSTTRACE_GUARD"
JOINER = "\u2060"
RAW = ("/v1/completions",)
CLOSED = ("/invocations",)  # another door to the same endpoints, which vLLM leaves open without a key
TURNS = ("messages", "input")  # where the assistant's own words stand
PARAMETERS = ("model", "stop", "bad_words")  # which reach no prompt
MOST = 32 << 20  # bytes of a body

Messages = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def special_tokens(tokenizer: Any, markup: Markup) -> list[str]:
    """Every token that a template or the law gives a meaning to, the longest first.

    Raises:
        UserError: the assistant's turn opens with plain text, which anybody can type.
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


class Breaker:
    """Breaks special tokens in a request's body.

    A string that ends in the beginning of a token gets a joiner there, for a template may paste the next one to it.

    Args:
        tokens: literals to be broken.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, tokens)))
        self._starts = tuple({token[:n] for token in tokens for n in range(1, len(token))})

    def body(self, parsed: Any) -> Any:
        """All of it but parameters that no prompt holds, and the assistant's own turns."""
        if not isinstance(parsed, dict):
            return self.text(parsed)
        found: dict[str, Any] = {}
        for name, value in parsed.items():
            if name in TURNS and isinstance(value, list):
                found[name] = [turn if _is_assistants(turn) else self.text(turn) for turn in value]
            else:
                found[self.text(name)] = value if name in PARAMETERS else self.text(value)
        return found

    def text(self, value: Any) -> Any:
        """Every string in a value, keys included."""
        if isinstance(value, str):
            broken = self._pattern.sub(lambda found: found[0][0] + JOINER + found[0][1:], value)
            return broken + JOINER if broken.endswith(self._starts) else broken
        if isinstance(value, list):
            return [self.text(one) for one in value]
        if isinstance(value, dict):
            return {self.text(name): self.text(one) for name, one in value.items()}
        return value


def _is_assistants(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"


class Guard:
    """The middleware; `ghosttrace serve` puts it before vLLM's server and names the tokens in the environment.

    Args:
        app: what it stands before.
        tokens: literals to be broken; those that the environment names unless told.

    Raises:
        UserError: nothing names them.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], tokens: Sequence[str] | None = None) -> None:
        if tokens is None and VARIABLE not in os.environ:
            raise UserError(f"{VARIABLE} is not set: start the server with `ghosttrace serve`")
        self.app = app
        self._breaker = Breaker(json.loads(os.environ[VARIABLE]) if tokens is None else tokens)

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        """Pass a request on, its body as text."""
        if scope["type"] == "http" and scope["path"].rstrip("/") in CLOSED:
            await refuse(send, 404, "there is nothing here: ask /v1")
            return
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in RAW:
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST:
                await refuse(send, 413, f"a body has at most {MOST} bytes")
                return
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if body and not (kinds and all(kind.startswith(b"multipart/") for kind in kinds)):
            try:
                body = bytearray(json.dumps(self._breaker.body(json.loads(bytes(body)))).encode())
            except (ValueError, RecursionError):
                await refuse(send, 400, "the body is not JSON, or nested too deeply")
                return
        await self._pass_on(scope, bytes(body), receive, send)

    async def _pass_on(self, scope: dict[str, Any], body: bytes, receive: Messages, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        given = False

        async def again() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer in the form of the OpenAI API."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(failure(status, sentence)).encode()})


class Locked:
    """Lets nobody in without the key, except to ask whether the server lives and what it counts.

    Args:
        app: what it stands before.
        key: what clients must show as a bearer's token; None lets everybody in.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str | None) -> None:
        self.app, self._expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        """Pass a request on, or answer 401 before its body is read."""
        if scope["type"] == "http" and self._expected is not None and scope["path"].startswith("/v1"):
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(shown, self._expected):
                await refuse(send, 401, "Unauthorized")
                return
        await self.app(scope, receive, send)
