"""Token counts of texts: exact with a tokenizer, or estimated without one."""

import re
from collections.abc import Callable, Sequence

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Function that returns the number of tokens of each text."""

ESTIMATED = re.compile(r"[^\W\d_]{1,8}|\d|[^\w\s]|_|\n+")


def estimate_tokens(texts: Sequence[str]) -> list[int]:
    """Estimate the number of tokens: one per word of up to 8 letters, digit, symbol and run of newlines."""
    return [sum(1 for _ in ESTIMATED.finditer(text)) for text in texts]


def token_counter(tokenizer: str | None) -> TokenCounter:
    """Return a counter of tokens.

    Args:
        tokenizer: bundled name, folder or hub id of a model whose tokenizer counts; None estimates.

    Raises:
        UserError: there is no such tokenizer.
    """
    if tokenizer is None:
        return estimate_tokens
    from ghosttrace.model.checkpoint import load_tokenizer  # imported here because it takes seconds

    loaded = load_tokenizer(tokenizer)

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in loaded(list(texts), add_special_tokens=False)["input_ids"]]

    return count
