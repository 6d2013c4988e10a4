"""What a benchmark is: problems, a protocol, a grader, and what surrounds the model while it works."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from ghosttrace.data.task import Task
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.prompts import PLAIN_TEMPLATE, PromptTemplate

Harness = Callable[[ExpiryTracker], int | None]
"""ProbeTarget before every token: the id it puts in (a tool's output, say), or None for the model's own."""


@dataclass(frozen=True)
class Problem:
    """One problem: its id, the user's message and the right answer."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Grade:
    """Whether a response is right.

    Attributes:
        correct: it is.
        extracted: the answer found in it, in a canonical form where there is one; None if there was none.
        rule: where the answer stood and how it was compared, e.g. `boxed/integer`.
    """

    correct: bool
    extracted: str | None
    rule: str


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
        grade: (problem, what follows `</think>`) to `Grade`; see `final_text`.
        origin: where the problems come from, with revision or digest.
        template: how a problem became the prompt.
        response: the assistant's turn as a perfect model writes it, where that is known.
        harness: (problem, tokenizer) to what puts tokens in, if anything does.
        counterfactual: (problem, block number, generator) to another text of that block, as token
            strings, under which the memento's text is the same, and the answer that follows from it.
        blocks: how many blocks a response has, where that is known; `swap` draws one of them.
        ceiling: the most that any model can score over a sealed cache, where that is known.
        full_size: problems of the whole benchmark, where more can be missing than a limit leaves out.
        secrets: (checkpoint, samples, seed, block) to traces whose erased block of that number holds secrets that
            the retained text does not determine; what probes and audits look for.
        prompts: for each of these secrets, what a user types to get it (see `--prompt` of `ghosttrace audit`).
    """

    name: str
    problems: tuple[Problem, ...]
    protocol: Protocol
    grade: Callable[[Problem, str], Grade]
    origin: str
    template: PromptTemplate = PLAIN_TEMPLATE
    response: Callable[[Problem], str] | None = None
    harness: Callable[[Problem, Any], Harness] | None = None
    counterfactual: Callable[[Problem, int, np.random.Generator], tuple[list[str], str]] | None = None
    blocks: int = 0
    ceiling: float | None = None
    full_size: int | None = None
    secrets: Callable[[Checkpoint, int, int, int], Task] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [problem.id for problem in self.problems]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise UserError(f"{self.name} repeats the id {twice!r}: give every problem an id of its own")

    @property
    def size(self) -> int:
        """Problems of the whole benchmark."""
        return len(self.problems) if self.full_size is None else self.full_size

    @property
    def digest(self) -> str:
        """SHA-256 of every id, prompt and answer, in order."""
        text = json.dumps([[problem.id, problem.prompt, problem.answer] for problem in self.problems])
        return sha256(text.encode()).hexdigest()


def final_text(response: str, finish: str) -> str:
    """The part of a response that is graded: what follows the last `</think>`.

    Args:
        response: special tokens included, the end of turn left out.
        finish: `eos` or `length`. A response cut off before `</think>` has no answer; one that ended
            without it, of a model that does not mark its thinking, is graded as a whole.
    """
    _, mark, after = response.rpartition("</think>")
    return after if mark or finish == "eos" else ""
