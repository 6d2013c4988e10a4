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
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.trace import Markup

VARIABLE = "GHOSTTRACE_GUARD"
JOINER = "\u2060"
RAW = ("/v1/completions",)

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


def as_text(value: Any, tokens: Sequence[str]) -> Any:
    """A request's body with special tokens broken in all strings but the assistant's own.

    Args:
        value: parsed JSON.
        tokens: literals to be broken.
    """
    if isinstance(value, str):
        for token in tokens:
            value = value.replace(token, token[0] + JOINER + token[1:])
        return value
    if isinstance(value, list):
        return [as_text(one, tokens) for one in value]
    if isinstance(value, dict) and value.get("role") != "assistant":
        return {name: as_text(one, tokens) for name, one in value.items()}
    return value


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
        self.app, self.tokens = app, json.loads(os.environ[VARIABLE]) if tokens is None else tokens

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        """Pass a request on, its body as text."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in RAW:
            await self.app(scope, receive, send)
            return
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = self._guarded(b"".join(parts))
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

    def _guarded(self, body: bytes) -> bytes:
        try:
            parsed = json.loads(body)
        except ValueError:
            return body  # the server behind says what is wrong with it
        return json.dumps(as_text(parsed, self.tokens)).encode()


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
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
                return
        await self.app(scope, receive, send)
