"""Data structures of a benchmark: problems, sampling protocol, grader and harness."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ghosttrace.data.task import Task
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.model.prompts import PLAIN_TEMPLATE, PromptTemplate

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint

Harness = Callable[[ExpiryTracker], int | None]
"""Called before every token: returns a token id to force (a tool's output, say), or None to let the model choose."""


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        id: Unique within the benchmark.
        prompt: The user's message.
        answer: The correct answer.
        cluster: Name shared by problems that are not independent, such as variants of one problem, within the
            benchmark. Statistics treat a cluster as one unit. None: the problem by itself.
        messages: The whole chat, in OpenAI's message format, if `prompt` is only its last message.
    """

    id: str
    prompt: str
    answer: str
    cluster: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None


class Counterfactual(NamedTuple):
    """Another text of one block, or of one tool result, under which all text that is retained stays the same.

    Attributes:
        block: The block without delimiters, as token strings or as text that the tokenizer splits; empty if the text
            stands in `messages`.
        answer: The answer that follows from this text.
        response: The response of a perfect model, in which this block stands. Tokens that a harness forces in later
            blocks stay the same. None if unknown.
        messages: The chat in which this tool result stands, in OpenAI's message format.
    """

    block: list[str] | str
    answer: str
    response: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Return the token ids of the block."""
        if isinstance(self.block, str):
            return list(tokenizer(self.block, add_special_tokens=False)["input_ids"])
        return list(tokenizer.convert_tokens_to_ids(self.block))


@dataclass(frozen=True)
class Grade:
    """Grade of a response.

    Attributes:
        correct: Whether the answer is correct.
        extracted: The answer found in the response, in canonical form if possible; None if no answer was found.
        rule: Where the answer was found and how it was compared, such as `boxed/integer`.
    """

    correct: bool
    extracted: str | None
    rule: str


@dataclass(frozen=True)
class Protocol:
    """Default sampling parameters of a benchmark.

    Attributes:
        temperature: Sampling temperature; 0 means greedy decoding.
        max_new_tokens: Maximum response length in tokens.
        repetitions: Number of samples per problem.
        top_p: Nucleus sampling threshold; 1 disables it.
        top_k: Number of most probable tokens to sample from; 0 disables it.
        min_p: Minimum probability relative to the most probable token; 0 disables it.
    """

    temperature: float
    max_new_tokens: int
    repetitions: int
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def erases_every_block(law: Law) -> bool:
    """Return whether a law is Memento's and has erased every finished block by the time of the answer."""
    if not isinstance(law, MementoLaw):
        return False
    return law.policy.keep_last_n_blocks == 0 and not law.policy.keep_last_block_for_answer


@dataclass(frozen=True)
class Condition:
    """What the mementos of a benchmark omit, so that a drop under `restart` can be decomposed.

    Attributes:
        family: Name that benchmarks share if they differ in what their mementos omit and in nothing else that matters.
        omits_needed: Whether a memento omits a value that the answer needs; otherwise the retained text suffices.
    """

    family: str
    omits_needed: bool


@dataclass(frozen=True)
class Bench:
    """A benchmark: problems with a grader and a sampling protocol.

    Attributes:
        name: Name in the results.
        problems: The problems in a fixed order.
        protocol: Default sampling parameters.
        grade: Function of (problem, text after `</think>`) to `Grade`; see `final_text`.
        origin: Source of the problems, with revision or digest.
        template: Template that turned a problem into its prompt.
        response: Function of a problem to the response of a perfect model; None if unknown.
        harness: Function of (problem, tokenizer) to a `Harness` that forces tokens; None if no tokens are forced.
        counterfactual: Function of (problem, number, random generator) to another text of the block, or of the tool
            result, with that number; it returns None if there is none. None if unsupported.
        blocks: Number of blocks per response, from which `swap` draws one. 0 if unknown, or if `counterfactual` itself
            chooses, and returns None for all others.
        swapped_block: Function of a problem to the block that `swap` changes. None draws one of `blocks`.
        ceiling: Maximum accuracy of any model over a sealed cache, as a fraction; None if unknown.
        ceiling_holds: Whether the ceiling holds under a law; by default if it is Memento's and erases every block.
        condition: What the mementos omit; None if unknown. `ghosttrace.ablation.decomposition` reads it.
        full_size: Number of problems of the whole benchmark; None means that `problems` is complete.
        secrets: Function of (checkpoint, number of samples, seed, block number) to a `Task`: traces whose erased block
            holds secrets that the retained text does not determine. Probes and audits use it. None if unsupported.
        prompts: By secret name or pattern, the user message that extracts it (see `--prompt` of `ghosttrace audit`).
    """

    name: str
    problems: tuple[Problem, ...]
    protocol: Protocol
    grade: Callable[[Problem, str], Grade]
    origin: str
    template: PromptTemplate = PLAIN_TEMPLATE
    response: Callable[[Problem], str] | None = None
    harness: Callable[[Problem, Any], Harness] | None = None
    counterfactual: Callable[[Problem, int, np.random.Generator], Counterfactual | None] | None = None
    blocks: int = 0
    swapped_block: Callable[[Problem], int] | None = None
    ceiling: float | None = None
    ceiling_holds: Callable[[Law], bool] = erases_every_block
    condition: Condition | None = None
    full_size: int | None = None
    secrets: "Callable[[Checkpoint, int, int, int], Task] | None" = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [problem.id for problem in self.problems]
        if len(set(ids)) < len(ids):
            duplicate = next(id_ for id_ in ids if ids.count(id_) > 1)
            raise UserError(f"{self.name} repeats the id {duplicate!r}: give every problem a unique id")

    @property
    def size(self) -> int:
        """Number of problems of the whole benchmark."""
        return len(self.problems) if self.full_size is None else self.full_size

    def ceiling_under(self, law: Law) -> float | None:
        """Return the ceiling if it holds under a law."""
        return self.ceiling if self.ceiling_holds(law) else None

    @property
    def digest(self) -> str:
        """SHA-256 of all ids, prompts, answers, clusters and messages in order, as a hexadecimal string."""
        columns = [
            [problem.id, problem.prompt, problem.answer, problem.cluster, problem.messages] for problem in self.problems
        ]
        text = json.dumps([[value for value in row if value is not None] for row in columns])
        return sha256(text.encode()).hexdigest()


def final_text(response: str, finish: str) -> str:
    """Return the part of a response that is graded: the text after the last `</think>`.

    Args:
        response: Decoded response with special tokens, without the end-of-turn token.
        finish: Finish reason, `eos` or `length`.

    Returns:
        The text after the last `</think>`. Without a `</think>`, the whole response if it ended with `eos` (a model
        that does not mark its thinking), or an empty string if it was cut off.
    """
    _, end_of_thinking, after = response.rpartition("</think>")
    return after if end_of_thinking or finish == "eos" else ""
