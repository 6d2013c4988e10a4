"""What the small server is asked, and how it answers: the OpenAI API as far as it goes here.

What is not here is refused, not ignored.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from ghosttrace.errors import UserError
from ghosttrace.model.sampling import Sampling

COLDEST = 1e-5
"""Below this temperature decoding is greedy, as in vLLM: probabilities would overflow."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What both endpoints take; names and defaults are those of the OpenAI API and of vLLM.

    A sampling parameter that is not given is the model's own, if its generation config has one.
    """

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int = Field(1, ge=1, le=64)
    seed: int | None = Field(None, ge=0)
    stream: bool = False
    stream_options: StreamOptions | None = None
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    vllm_xargs: dict[str, Any] = {}
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def sampling(self, own: Mapping[str, Any], room: int, max_block_tokens: int | None) -> Sampling:
        """How its tokens are chosen.

        Args:
            own: the model's own parameters.
            room: tokens that the model can still read behind the prompt.
            max_block_tokens: of its law.
        """
        names = ("temperature", "top_p", "top_k", "min_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        found = {"temperature": 1.0} | {name: own[name] for name in names if own.get(name) is not None} | given
        found["top_k"] = max(found.get("top_k", 0), 0)
        found["temperature"] = 0.0 if found["temperature"] < COLDEST else found["temperature"]
        return Sampling(min(self.most or room, room), **found, max_block_tokens=max_block_tokens)

    @property
    def most(self) -> int | None:
        """Tokens of a response at most; None: as many as there is room for."""
        return self.max_tokens


class ChatAsked(Asked):
    """A body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def most(self) -> int | None:
        """Under its new name, else under its old."""
        return self.max_completion_tokens or self.max_tokens

    def turns(self) -> list[dict[str, Any]]:
        """The messages with parts of text pasted together.

        Raises:
            UserError: a message has no role or something that is not text.
        """
        return [message | {"content": _text(message)} for message in self.messages]


class TextAsked(Asked):
    """A body of `/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]

    @property
    def most(self) -> int | None:
        """16, as in the OpenAI API, unless told."""
        return self.max_tokens or 16

    def prompts(self) -> list[str] | list[list[int]]:
        """One or more.

        Raises:
            UserError: there is none.
        """
        if self.prompt == []:
            raise UserError("prompt is empty: give at least one")
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[return-value]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(message.get("role"), str) or not isinstance(parts, list):
        raise UserError("a message has a role and a content")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UserError("this server reads text alone: leave out other parts of messages")
    return "".join(part["text"] for part in parts)


class Answer:
    """Builds what is sent back for one request.

    Attributes:
        chat: it answers a conversation.

    Args:
        asked: the request.
        model: the name that clients know.
        prompts: token ids of each prompt.
    """

    def __init__(self, asked: Asked, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self.chat, self._prompts, self._asked = isinstance(asked, ChatAsked), prompts, asked
        kind = "chat.completion" if self.chat else "text_completion"
        name = ("chatcmpl-" if self.chat else "cmpl-") + uuid4().hex
        self._head = {"id": name, "object": kind, "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[dict[str, Any]], written: int) -> dict[str, Any]:
        """The whole answer; `written`: tokens of all choices."""
        found = self._head | {"choices": list(choices), "usage": self._usage(written)}
        if self._asked.return_token_ids and self.chat:
            found["prompt_token_ids"] = list(self._prompts[0])
        return found

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A piece of a stream."""
        return self._head | {"choices": list(choices)} | ({"object": "chat.completion.chunk"} if self.chat else {})

    def opening(self, number: int) -> dict[str, Any]:
        """The first piece of a choice of a chat: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": number, "finish_reason": None, "logprobs": None, "delta": delta}])

    def last(self, written: int) -> dict[str, Any] | None:
        """The piece with the usage, where it was asked for."""
        if self._asked.stream_options is None or not self._asked.stream_options.include_usage:
            return None
        return self.chunk([]) | {"usage": self._usage(written)}

    def choice(
        self,
        number: int,
        text: tuple[str, str],
        tokens: Sequence[int],
        finish: Literal["stop", "length"] | None,
        delta: bool = False,
    ) -> dict[str, Any]:
        """One choice, or a piece of it.

        Args:
            number: of the choice.
            text: reasoning and content.
            tokens: its ids.
            finish: why it ended, if it has.
            delta: it is a piece.
        """
        found: dict[str, Any] = {"index": number, "finish_reason": finish, "logprobs": None}
        if self.chat:
            said = {"reasoning": text[0] or None, "content": text[1]}
            found["delta" if delta else "message"] = said if delta else {"role": "assistant"} | said
        else:
            found["text"] = text[1]
        if self._asked.return_token_ids:
            found["token_ids"] = list(tokens)
            if not self.chat:
                found["prompt_token_ids"] = list(self._prompts[number // self._asked.n])
        return found

    def _usage(self, written: int) -> dict[str, int]:
        read = sum(map(len, self._prompts))
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def failure(status: int, sentence: str) -> dict[str, Any]:
    """An error in the form of the OpenAI API."""
    kinds = {401: "AuthenticationError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailable"}
    kind = kinds.get(status, "BadRequestError")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": status}}
