"""Bodies of requests to the small server: the OpenAI API as far as the server supports it.

Anything else in a body is refused, not ignored.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ghosttrace.errors import UserError
from ghosttrace.model.sampling import Sampling

GREEDY_BELOW = 1e-5
"""Below this temperature decoding is greedy, as in vLLM: probabilities would overflow."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class CompletionBody(BaseModel):
    """Parameters of both endpoints; names and defaults are those of the OpenAI API and of vLLM.

    A sampling parameter that is missing is taken from the model's generation config, if it has one.
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

    def sampling(self, defaults: Mapping[str, Any], remaining_context: int, max_block_tokens: int | None) -> Sampling:
        """Return how the response's tokens are chosen.

        Args:
            defaults: the model's generation config.
            remaining_context: tokens that fit into the context after the prompt.
            max_block_tokens: of the request's settings.
        """
        names = ("temperature", "top_p", "top_k", "min_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        own = {name: defaults[name] for name in names if defaults.get(name) is not None}
        found = {"temperature": 1.0} | own | given
        found["top_k"] = max(found.get("top_k", 0), 0)
        found["temperature"] = 0.0 if found["temperature"] < GREEDY_BELOW else found["temperature"]
        return Sampling(
            min(self.max_response_tokens or remaining_context, remaining_context),
            **found,
            max_block_tokens=max_block_tokens,
        )

    @property
    def max_response_tokens(self) -> int | None:
        """The most tokens of a response; None: as many as fit into the context."""
        return self.max_tokens


class ChatBody(CompletionBody):
    """A body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def max_response_tokens(self) -> int | None:
        """The most tokens of a response, under the parameter's new name or else its old one."""
        return self.max_completion_tokens or self.max_tokens

    def turns(self) -> list[dict[str, Any]]:
        """Return the messages, each with its text parts joined.

        Raises:
            UserError: a message has no role, or a part that is not text.
        """
        return [message | {"content": _text(message)} for message in self.messages]


class TextBody(CompletionBody):
    """A body of `/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]

    @property
    def max_response_tokens(self) -> int | None:
        """The most tokens of a response; 16 by default, as in the OpenAI API."""
        return self.max_tokens or 16

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list.

        Raises:
            UserError: there is none.
        """
        if self.prompt == []:
            raise UserError("prompt is empty: give at least one")
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else self.prompt  # type: ignore[return-value]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(message.get("role"), str) or not isinstance(parts, list):
        raise UserError("a message has a role and a content")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UserError("this server reads text alone: leave out other parts of messages")
    return "".join(part["text"] for part in parts)
