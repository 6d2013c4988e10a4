"""An OpenAI-compatible endpoint, and what may be asked of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from ghosttrace.errors import UserError

MIN_SECRET = 8
"""Characters of the shortest key; a shorter one, such as `none`, is no secret, and its letters occur in any text."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint, and what may be asked of it.

    Attributes:
        base_url: address up to `/v1`.
        model: name of the model there.
        api_key: key of the endpoint.
        concurrency: number of requests at once.
        timeout: seconds for one request.
        retries: how often the client repeats a request after 408, 409, 429, 5xx or a lost connection.
        price_in, price_out: dollars for a million tokens of prompt and of completion.
        max_cost: dollars for all calls in a folder; None is unlimited.
        request: further fields of every request, such as `temperature`.
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float | None = None
    request: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise UserError("--concurrency must be at least 1, --retries at least 0, and --timeout more than 0")
        numbers = [self.timeout, self.price_in, self.price_out, *([] if self.max_cost is None else [self.max_cost])]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise UserError(
                "--timeout, --price-in, --price-out and --max-cost must be finite numbers, and not negative"
            )
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UserError(
                "the key holds a line break or is not ASCII: set the variable that --key-variable names again"
            )
        limit = self.request.get("max_completion_tokens", 1)
        if type(limit) is not int or limit < 1:
            raise UserError("--request may set max_completion_tokens only to a positive integer: correct or remove it")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise UserError("--max-cost needs prices: give --price-in and --price-out")

    @cached_property
    def _secrets(self) -> list[str]:
        userinfo = self.base_url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        password = userinfo.partition(":")[2]
        secrets = {userinfo, password, unquote(userinfo), unquote(password), self.api_key}
        return sorted((secret for secret in secrets if len(secret) >= MIN_SECRET), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a text without the key and the user's name and password in the address, for files and messages."""
        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")
        return text

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the dollars for a number of tokens."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6
