"""Random traces for the tiny models in `helpers.families`."""

import numpy as np

from ghosttrace.law.markup import Markup
from helpers.families import VOCABULARY

MARKUP = Markup(4, 5, 6, 7, assistant_header=(3,), turn_end=2)


def trace(seed: int, blocks: int = 5) -> list[int]:
    """Return token ids of a prompt, `blocks` block-memento pairs and an answer, with random text of varying lengths."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> list[int]:
        return rng.integers(8, VOCABULARY, rng.integers(low, high)).tolist()

    tokens = [1, *text(2, 6), 3]
    for _ in range(blocks):
        tokens += [4, *text(3, 9), 5, 6, *text(1, 4), 7]
    return tokens + text(2, 6)
