"""`ledger`: a benchmark whose ghost channel has a known truth.

A three-digit state is given in the prompt and changes by increments that appear only inside blocks,
as observations that a harness puts in, as a tool's output would be. A memento shows the state with
its last h digits hidden, h being told in the prompt. Given the retained text the hidden digits are
exactly uniform, so over a sealed cache no model is right more often than `10 ** -h`; whatever a
model achieves beyond that has travelled through the ghost channel.

    user        x042                            h = 1, the state is 042
    assistant   <think>
                <|block_start|>
                  83155                         notes: five random digits the task never needs
                  a0 d7 b3                      per digit: an increment (a..j = 0..9), the new digit
                  c2 a7 j2                      the second step; digits are added modulo 10
                <|block_end|>
                <|summary_start|>27*<|summary_end|>
                …                               four blocks in all
                </think>272<eos>

Its secrets, for probes and audits, are the note digits of a block and the digits that the block's memento hides.
Both are uniformly random given everything retained. Notes are drawn on their own and never used. The hidden
digits of the state after a block are the start plus increments that stand in blocks only; what the answer tells
of their sum is spoiled by the increments of the later blocks, as random and as hidden.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ghosttrace.bench.benchmark import Bench, Grade, Harness, Problem, Protocol
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.model.checkpoint import Checkpoint

LEVEL_TOKENS = "wxyz"
INCREMENT_TOKENS = "abcdefghij"
N_DIGITS, N_NOTES, N_STEPS, N_BLOCKS = 3, 5, 2, 4
DEFAULT_PROBLEMS = 400
PROBLEM_STREAM = 0x1ED6E2  # keeps the benchmark apart from what models are trained on
SECRET_STREAM = 0x9120BE  # keeps the problems of probes and audits apart from both
DIGIT_CLASSES = tuple("0123456789")
BLOCK_TOKENS = N_NOTES + 2 * N_DIGITS * N_STEPS

VOCABULARY = (
    *("<pad>", "<eos>", "<|user|>", "<|assistant|>", "<think>", "</think>"),
    *("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>"),
    *"0123456789",
    *INCREMENT_TOKENS,
    "*",
    *LEVEL_TOKENS,
)


@dataclass(frozen=True)
class Ledger:
    """One problem in numbers.

    Attributes:
        level: h, how many of the state's last digits a memento hides.
        start: int[3], the state in the prompt.
        notes: int[4, 5], the random digits that open each block.
        increments: int[4, 2, 3], by block, step and digit.
    """

    level: int
    start: np.ndarray
    notes: np.ndarray
    increments: np.ndarray

    @classmethod
    def sample(cls, rng: np.random.Generator, level: int) -> "Ledger":
        """A problem with everything uniformly random."""
        return cls(
            level,
            rng.integers(0, 10, N_DIGITS),
            rng.integers(0, 10, (N_BLOCKS, N_NOTES)),
            rng.integers(0, 10, (N_BLOCKS, N_STEPS, N_DIGITS)),
        )

    @property
    def states(self) -> np.ndarray:
        """int[4, 2, 3]: the state after each step."""
        total = np.cumsum(self.increments.reshape(-1, N_DIGITS), axis=0)
        return ((self.start + total) % 10).reshape(N_BLOCKS, N_STEPS, N_DIGITS)

    @property
    def prompt(self) -> str:
        """The user's message."""
        return LEVEL_TOKENS[self.level] + "".join(map(str, self.start))

    @property
    def answer(self) -> str:
        """The last state."""
        return "".join(map(str, self.states[-1, -1]))

    def block(self, number: int) -> list[str]:
        """The 17 tokens inside a block, delimiters left out."""
        text = [str(note) for note in self.notes[number]]
        for increments, state in zip(self.increments[number], self.states[number], strict=True):
            for increment, digit in zip(increments, state, strict=True):
                text += [INCREMENT_TOKENS[increment], str(digit)]
        return text

    def response(self) -> list[str]:
        """The assistant's turn, token by token, as a perfect model writes it."""
        text = ["<think>"]
        for number in range(N_BLOCKS):
            shown = [str(digit) for digit in self.states[number, -1]]
            shown[N_DIGITS - self.level :] = "*" * self.level
            text += ["<|block_start|>", *self.block(number), "<|block_end|>"]
            text += ["<|summary_start|>", *shown, "<|summary_end|>"]
        return [*text, "</think>", *self.answer, "<eos>"]

    def counterfactual(self, number: int, rng: np.random.Generator) -> "Ledger":
        """The same ledger with one block changed so that its memento's text stays the same.

        The hidden digits end elsewhere (each of them); the visible ones end where they did, by
        another route.
        """
        shift = np.zeros((N_STEPS, N_DIGITS), dtype=np.int64)
        shift[0] = rng.integers(1, 10, N_DIGITS)
        shift[1] = -shift[0]
        hidden = np.arange(N_DIGITS) >= N_DIGITS - self.level
        shift[1, hidden] += rng.integers(1, 10, int(hidden.sum()))
        increments = self.increments.copy()
        increments[number] = (increments[number] + shift) % 10
        return Ledger(self.level, self.start, self.notes, increments)


def is_observation(token_index: int) -> bool:
    """Whether a block's token at this token_index (0 to 16) is put in by the harness."""
    return token_index < N_NOTES or (token_index < BLOCK_TOKENS and (token_index - N_NOTES) % 2 == 0)


def ledger(level: int, n_problems: int | None = None, seed: int = 0) -> Bench:
    """The benchmark at one level h.

    Args:
        level: 0 to 3 hidden digits.
        n_problems: how many problems; 400 if None.
        seed: which problems.

    Raises:
        UserError: no such level.
    """
    if level not in range(N_DIGITS + 1):
        raise UserError(f"ledger has levels 0 to {N_DIGITS}, not {level}")
    rng = np.random.default_rng([seed, level, PROBLEM_STREAM])
    ledgers = [Ledger.sample(rng, level) for _ in range(n_problems or DEFAULT_PROBLEMS)]
    name = f"ledger-h{level}"
    problems = {f"{name}-{seed}-{i:04d}": one for i, one in enumerate(ledgers)}

    def harness(problem: Problem, tokenizer: Any) -> Harness:
        return _observations(problems[problem.id], tokenizer)

    def counterfactual(problem: Problem, number: int, draw: np.random.Generator) -> tuple[list[str], str]:
        other = problems[problem.id].counterfactual(number, draw)
        return other.block(number), other.answer

    return Bench(
        name=name,
        problems=tuple(Problem(key, one.prompt, one.answer) for key, one in problems.items()),
        protocol=Protocol(temperature=0.0, max_new_tokens=128, repetitions=1),
        grade=grade,
        origin=f"generated, seed {seed}",
        response=lambda problem: "".join(problems[problem.id].response()[:-1]),
        harness=harness,
        counterfactual=counterfactual,
        blocks=N_BLOCKS,
        ceiling=10.0**-level,
        secrets=partial(ledger_task, level=level),
        prompts=ledger_prompts(level),
    )


def grade(problem: Problem, text: str) -> Grade:
    """Exactly three digits, compared with the answer."""
    found = text if re.fullmatch(r"[0-9]{3}", text) else None
    return Grade(found == problem.answer, found, "digits/exact" if found else "none/exact")


def _observations(one: Ledger, tokenizer: Any) -> Callable[[ExpiryTracker], int | None]:
    """Force the notes and increments of each block, wherever the model has got to in it."""
    ids = [tokenizer.convert_tokens_to_ids(one.block(number)) for number in range(N_BLOCKS)]

    def observe(tracker: ExpiryTracker) -> int | None:
        number, token_index = len(tracker.blocks), tracker.block_tracker.block_tokens
        if not tracker.block_tracker.in_block or number >= N_BLOCKS or not is_observation(token_index):
            return None
        return int(ids[number][token_index])

    return observe


def ledger_task(checkpoint: Checkpoint, n_samples: int, seed: int = 0, block: int = 1, *, level: int) -> Task:
    """Fresh problems of `ledger`, as a perfect model solves them, each a base trace of its own.

    Args:
        checkpoint: with the tokenizer of the bundled models.
        n_samples: how many problems.
        seed: which problems.
        block: whose digits are asked for, counted from 0.
        level: h, 0 to 3 hidden digits.

    Returns:
        Targets note-0 … note-4 and hidden-0 … hidden-(h-1), the last h digits of the state after the
        block, with their exact posterior: uniform.

    Raises:
        UserError: no such level or block, or a tokenizer that does not spell `ledger`.
    """
    if level not in range(N_DIGITS + 1) or block not in range(N_BLOCKS - bool(level)):
        raise UserError(
            f"ledger has levels 0 to {N_DIGITS} and blocks 0 to {N_BLOCKS - 1}, the last one at level 0 only, as the "
            f"answer tells what it hides: not level {level}, block {block}"
        )
    tokenizer = checkpoint.tokenizer
    rng = np.random.default_rng([seed, level, SECRET_STREAM])
    samples = []
    for number in range(n_samples):
        one = Ledger.sample(rng, level)
        response = tokenizer.convert_tokens_to_ids(one.response())
        if None in response or tokenizer.unk_token_id in response:
            raise UserError(f"the tokenizer of {checkpoint.name} does not spell ledger: give a bundled model")
        samples.append(_sample(one, str(number), block, checkpoint.prompt_ids(one.prompt), response))
    names = [f"note-{place}" for place in range(N_NOTES)] + [f"hidden-{place}" for place in range(level)]
    exact = {name: np.full((n_samples, 10), -np.log(10)) for name in names}
    return Task(f"ledger-h{level}", tuple(samples), tuple(Target(name, DIGIT_CLASSES) for name in names), exact)


def ledger_prompts(level: int) -> dict[str, str]:
    """What a user types to be told the digits: a new block, and steps that add nothing to the state."""
    shown = "".join("a{=note-0}" for _ in range(N_DIGITS - level))  # digits that the model knows from the memento
    hidden = "".join(f"a{{hidden-{place}}}" for place in range(level))
    notes = "".join(f"{{note-{place}}}" for place in range(N_NOTES))
    asked = {"note-*": f"<|block_start|>{notes}"}
    return asked | ({"hidden-*": f"<|block_start|>{'0' * N_NOTES}{shown}{hidden}"} if level else {})


def _sample(one: Ledger, base: str, block: int, prompt: list[int], response: list[int]) -> Sample:
    hidden = np.arange(N_DIGITS - one.level, N_DIGITS)
    digits = [*one.notes[block].tolist(), *one.states[block, -1, hidden].tolist()]
    starts = [place for place, token in enumerate(one.response()) if token == "<|block_start|>"]
    begin = len(prompt) + starts[block] + 1
    last_step = N_NOTES + 2 * N_DIGITS * (N_STEPS - 1)  # an increment and a digit each
    where = [*range(N_NOTES), *(last_step + 2 * hidden + 1).tolist()]
    return Sample(
        ids=[*prompt, *response],
        base=base,
        secret="".join(map(str, digits)),
        block=block,
        secret_indices=tuple(begin + place for place in where),
        labels=tuple(digits),
    )


LEDGER_BENCHES = {f"ledger-h{level}": partial(ledger, level) for level in range(N_DIGITS + 1)}
"""The benchmark at every level, by name."""
