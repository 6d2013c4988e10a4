"""Responses of the small server in the format of the OpenAI API, complete or streamed."""

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
    """Addition to one choice of a response.

    Attributes:
        index: index of the choice.
        reasoning: new text of the reasoning.
        content: new text of the content.
        tokens: new token ids.
        finish: reason why the choice has ended; None if it has not ended.
    """

    index: int
    reasoning: str
    content: str
    tokens: list[int]
    finish: FinishReason | None


class ResponseBuilder:
    """Builder of the JSON bodies that answer one request.

    Args:
        body: body of the request.
        model: name of the model in requests.
        prompts: token ids of each prompt.

    Attributes:
        chat: whether the request is a chat completion.
    """

    def __init__(self, body: CompletionBody, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self.chat, self._prompts, self._body = isinstance(body, ChatBody), prompts, body
        object_type = "chat.completion" if self.chat else "text_completion"
        response_id = ("chatcmpl-" if self.chat else "cmpl-") + uuid4().hex
        self._head = {"id": response_id, "object": object_type, "created": int(time.time()), "model": model}

    def full_response(self, choices: Sequence[dict[str, Any]], completion_tokens: int) -> dict[str, Any]:
        """Return the complete response; `completion_tokens` is the number of tokens of all choices."""
        response = self._head | {"choices": list(choices), "usage": self._usage(completion_tokens)}
        if self._body.return_token_ids and self.chat:
            response["prompt_token_ids"] = list(self._prompts[0])
        return response

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the body of one streamed event."""
        return self._head | {"choices": list(choices)} | ({"object": "chat.completion.chunk"} if self.chat else {})

    def opening_chunk(self, index: int) -> dict[str, Any]:
        """Return the body of the first event of a chat choice, which contains the role."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": index, "finish_reason": None, "logprobs": None, "delta": delta}])

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any] | None:
        """Return the body of the last event, which contains the usage; None if the request does not ask for it."""
        if self._body.stream_options is None or not self._body.stream_options.include_usage:
            return None
        return self.chunk([]) | {"usage": self._usage(completion_tokens)}

    def choice(self, part: Delta, streamed: bool = False) -> dict[str, Any]:
        """Return the JSON object of a complete choice or, if `streamed`, of a part of it."""
        choice: dict[str, Any] = {"index": part.index, "finish_reason": part.finish, "logprobs": None}
        if self.chat:
            message = {"reasoning": part.reasoning or None, "content": part.content}
            choice["delta" if streamed else "message"] = message if streamed else {"role": "assistant"} | message
        else:
            choice["text"] = part.content
        if self._body.return_token_ids:
            choice["token_ids"] = list(part.tokens)
            if not self.chat:
                choice["prompt_token_ids"] = list(self._prompts[part.index // self._body.n])
        return choice

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        prompt_tokens = sum(map(len, self._prompts))
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


async def collect_response(builder: ResponseBuilder, deltas: AsyncIterator[Delta], count: int) -> dict[str, Any]:
    """Return the complete response after all deltas of its `count` choices."""
    choices = [Delta(index, "", "", [], None) for index in range(count)]
    async for part in deltas:
        before = choices[part.index]
        choices[part.index] = Delta(
            part.index,
            before.reasoning + part.reasoning,
            before.content + part.content,
            before.tokens + part.tokens,
            part.finish,
        )
    completion_tokens = sum(len(choice.tokens) for choice in choices)
    return builder.full_response([builder.choice(choice) for choice in choices], completion_tokens)


async def stream_response(builder: ResponseBuilder, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
    """Yield the response as server-sent events, in the text format of the stream."""
    completion_tokens, opened = 0, set[int]()
    try:
        async for part in deltas:
            if builder.chat and part.index not in opened:
                opened.add(part.index)
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
