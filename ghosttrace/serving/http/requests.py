"""Request bodies of the small server: the parameters of the OpenAI API that the server supports.

Other parameters in a body are an error.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ghosttrace.errors import UserError
from ghosttrace.model.sampling import Sampling

GREEDY_BELOW = 1e-5
"""Temperature below which decoding is greedy, as in vLLM, because probabilities would overflow."""


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class CompletionBody(BaseModel):
    """Parameters of both endpoints, with the names and defaults of the OpenAI API and of vLLM.

    The default of a sampling parameter is its value in the model's generation config, if there is one.
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
        """Return the sampling parameters of the responses.

        Args:
            defaults: the model's generation config.
            remaining_context: number of tokens that fit into the context after the prompt.
            max_block_tokens: number of tokens in a block after which `<|block_end|>` is forced; None for no limit.
        """
        names = ("temperature", "top_p", "top_k", "min_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        model_defaults = {name: defaults[name] for name in names if defaults.get(name) is not None}
        values = {"temperature": 1.0} | model_defaults | given
        values["top_k"] = max(values.get("top_k", 0), 0)
        values["temperature"] = 0.0 if values["temperature"] < GREEDY_BELOW else values["temperature"]
        return Sampling(
            min(self.max_response_tokens or remaining_context, remaining_context),
            **values,
            max_block_tokens=max_block_tokens,
        )

    @property
    def max_response_tokens(self) -> int | None:
        """Return the maximum number of tokens of a response; None for all that fit into the context."""
        return self.max_tokens


class ChatBody(CompletionBody):
    """Body of a request to `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def max_response_tokens(self) -> int | None:
        """Return `max_completion_tokens` or, if it is not set, the older parameter `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    def turns(self) -> list[dict[str, Any]]:
        """Return the messages, with the text parts of each message joined to a string.

        Raises:
            UserError: if a message has no role or no content, or a part that is not text.
        """
        return [message | {"content": _text(message)} for message in self.messages]


class TextBody(CompletionBody):
    """Body of a request to `/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]

    @property
    def max_response_tokens(self) -> int | None:
        """Return the maximum number of tokens of a response, by default 16 as in the OpenAI API."""
        return self.max_tokens or 16

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list of texts or of token-id lists.

        Raises:
            UserError: if there is no prompt.
        """
        if self.prompt == []:
            raise UserError("prompt is an empty list: give at least one prompt")
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else self.prompt  # type: ignore[return-value]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(message.get("role"), str) or not isinstance(parts, list):
        raise UserError("a message lacks a role or a content: give both")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UserError("a message has a part that is not text: send text parts only")
    return "".join(part["text"] for part in parts)
