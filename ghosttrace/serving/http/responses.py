"""Responses of the small server, whole or streamed, in the form of the OpenAI API."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from ghosttrace.serving.error_responses import error_body
from ghosttrace.serving.http.requests import ChatBody, CompletionBody

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """What one event of a job adds to a response.

    Attributes:
        index: of the choice.
        reasoning, content: new text.
        tokens: new token ids.
        finish: why the choice has ended; None while it goes on.
    """

    index: int
    reasoning: str
    content: str
    tokens: list[int]
    finish: FinishReason | None


class ResponseBuilder:
    """Builds the JSON bodies that answer one request.

    Args:
        body: the request.
        model: the model's name, as clients know it.
        prompts: token ids of each prompt.

    Attributes:
        chat: whether the request was a conversation.
    """

    def __init__(self, body: CompletionBody, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self.chat, self._prompts, self._body = isinstance(body, ChatBody), prompts, body
        kind = "chat.completion" if self.chat else "text_completion"
        name = ("chatcmpl-" if self.chat else "cmpl-") + uuid4().hex
        self._head = {"id": name, "object": kind, "created": int(time.time()), "model": model}

    def full_response(self, choices: Sequence[dict[str, Any]], completion_tokens: int) -> dict[str, Any]:
        """Return the whole response; `completion_tokens` counts the tokens of all choices."""
        found = self._head | {"choices": list(choices), "usage": self._usage(completion_tokens)}
        if self._body.return_token_ids and self.chat:
            found["prompt_token_ids"] = list(self._prompts[0])
        return found

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return one event of a stream."""
        return self._head | {"choices": list(choices)} | ({"object": "chat.completion.chunk"} if self.chat else {})

    def opening_chunk(self, index: int) -> dict[str, Any]:
        """Return the first event of a chat's choice, which names the role."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": index, "finish_reason": None, "logprobs": None, "delta": delta}])

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any] | None:
        """Return the last event of a stream, which holds the usage; None if the request did not ask for it."""
        if self._body.stream_options is None or not self._body.stream_options.include_usage:
            return None
        return self.chunk([]) | {"usage": self._usage(completion_tokens)}

    def choice(self, part: Delta, streamed: bool = False) -> dict[str, Any]:
        """Return one whole choice, or a streamed part of it."""
        found: dict[str, Any] = {"index": part.index, "finish_reason": part.finish, "logprobs": None}
        if self.chat:
            message = {"reasoning": part.reasoning or None, "content": part.content}
            found["delta" if streamed else "message"] = message if streamed else {"role": "assistant"} | message
        else:
            found["text"] = part.content
        if self._body.return_token_ids:
            found["token_ids"] = list(part.tokens)
            if not self.chat:
                found["prompt_token_ids"] = list(self._prompts[part.index // self._body.n])
        return found

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        read = sum(map(len, self._prompts))
        return {"prompt_tokens": read, "completion_tokens": completion_tokens, "total_tokens": read + completion_tokens}


async def collect_response(builder: ResponseBuilder, deltas: AsyncIterator[Delta], count: int) -> dict[str, Any]:
    """Wait for all deltas of `count` choices and return the whole response."""
    found = [Delta(index, "", "", [], None) for index in range(count)]
    async for part in deltas:
        before = found[part.index]
        found[part.index] = Delta(
            part.index,
            before.reasoning + part.reasoning,
            before.content + part.content,
            before.tokens + part.tokens,
            part.finish,
        )
    return builder.full_response([builder.choice(one) for one in found], sum(len(one.tokens) for one in found))


async def stream_response(builder: ResponseBuilder, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
    """Yield a response as server-sent events."""
    completion_tokens, begun = 0, set[int]()
    try:
        async for part in deltas:
            if builder.chat and part.index not in begun:
                begun.add(part.index)
                yield _event(builder.opening_chunk(part.index))
            completion_tokens += len(part.tokens)
            yield _event(builder.chunk([builder.choice(part, streamed=True)]))
        usage = builder.usage_chunk(completion_tokens)
        if usage is not None:
            yield _event(usage)
    except Exception as error:  # the status was already sent, so the error becomes an event
        yield _event(error_body(500, f"decoding failed: {error}"))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
