"""Limit of the cost of all calls in a folder: what a request may cost is reserved before it is sent."""

import json
from collections.abc import Mapping
from typing import Any

from ghosttrace.pipeline.calls import CallCache
from ghosttrace.pipeline.endpoint import Endpoint


class Budget:
    """Dollars spent and reserved.

    The tokenizers of language models begin from bytes, so a request has at most as many tokens as its JSON has bytes.
    Endpoints may add to that, or ignore the limit of the answer: the largest excess seen is added to each reserve.

    Args:
        endpoint: prices and limit.
        cache: the calls of earlier runs; those that were stored without prices get those of the endpoint.
    """

    def __init__(self, endpoint: Endpoint, cache: CallCache) -> None:
        self.endpoint = endpoint
        if endpoint.price_in or endpoint.price_out:
            cache.set_missing_prices(endpoint.model, endpoint.price_in, endpoint.price_out)
        self._spent = sum(cost.cost for cost in cache.costs())
        self._excess = cache.largest_excess()
        self._reserved = 0.0

    def reserve(self, request: Mapping[str, Any]) -> float | None:
        """Reserve what a request may cost; return it, or None if the limit could be exceeded."""
        prompt_tokens, completion_tokens = highest_usage(request)
        cost = self.endpoint.cost(prompt_tokens + self._excess[0], completion_tokens + self._excess[1])
        most = self.endpoint.max_cost
        if most is not None and self._spent + self._reserved + cost > most:
            return None
        self._reserved += cost
        return cost

    def release(self, reserve: float) -> None:
        """Give back a reserve, after what was spent of it."""
        self._reserved -= reserve

    def spend(self, request: Mapping[str, Any], prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count the usage of an answer; what the endpoint did not report counts as the most that it may be."""
        highest = highest_usage(request)
        used = [
            most if given is None else given
            for given, most in zip((prompt_tokens, completion_tokens), highest, strict=True)
        ]
        self._spent += self.endpoint.cost(used[0], used[1])
        self._excess = max(self._excess[0], used[0] - highest[0]), max(self._excess[1], used[1] - highest[1])


def highest_usage(request: Mapping[str, Any]) -> tuple[int, int]:
    """Return upper bounds of the tokens of a request and of its answer."""
    return len(json.dumps(request, ensure_ascii=False).encode()), request["max_completion_tokens"]
