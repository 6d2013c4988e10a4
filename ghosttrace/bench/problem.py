"""What a benchmark is: problems, a protocol, a grader, and what surrounds the model while it works."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghosttrace.expiry import ExpiryTracker

Harness = Callable[[ExpiryTracker], int | None]
"""Asked before every token: the id it puts in (a tool's output, say), or None for the model's own."""


@dataclass(frozen=True)
class Problem:
    """One problem: its id, the user's message and the right answer."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Grade:
    """Whether a response is right, and the answer found in it (None if there was none)."""

    correct: bool
    extracted: str | None


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is sampled unless told otherwise. Temperature 0 is greedy decoding."""

    temperature: float
    max_new_tokens: int
    repetitions: int
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        name: as in the results.
        problems: in a fixed order.
        protocol: the default sampling.
        grade: (problem, response as token strings) to `Grade`.
        harness: (problem, tokenizer) to what puts tokens in, if anything does.
        counterfactual: (problem, block number, generator) to another text of that block, as token
            strings, under which the memento's text is the same, and the answer that follows from it.
        blocks: how many blocks a response has, where that is known; `swap` draws one of them.
        ceiling: the most that any model can score over a sealed cache, where that is known.
    """

    name: str
    problems: tuple[Problem, ...]
    protocol: Protocol
    grade: Callable[[Problem, Sequence[str]], Grade]
    harness: Callable[[Problem, Any], Harness] | None = None
    counterfactual: Callable[[Problem, int, np.random.Generator], tuple[list[str], str]] | None = None
    blocks: int = 0
    ceiling: float | None = None
