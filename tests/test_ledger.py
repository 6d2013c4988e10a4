"""`ledger`: its problems, its grader, and why a sealed cache cannot beat 10 ** -h."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.bench import load_bench
from ghosttrace.bench.ledger import BLOCK_TOKENS, BLOCKS, DIGITS, STREAM, Ledger, grade, is_observation, ledger
from ghosttrace.bench.problem import Problem, final_text
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import load_tokenizer

TOKENIZER = load_tokenizer("toy-mixed")
MARKUP = Markup.from_tokenizer(TOKENIZER)


def text_of(one: Ledger) -> list[str]:
    return ["<|user|>", *one.prompt, "<|assistant|>", *one.response()]


def retained(one: Ledger) -> tuple[str, ...]:
    """What is left to read once every block is erased, the answer left out."""
    text = text_of(one)
    blocks = find_blocks(TOKENIZER.convert_tokens_to_ids(text), MARKUP)
    gone = {place for block in blocks for place in range(block.start, block.end + 1)}
    return tuple(t for place, t in enumerate(text[: -DIGITS - 1]) if place not in gone)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_every_ledger_is_consistent(seed: int, level: int) -> None:
    one = Ledger.sample(np.random.default_rng(seed), level)
    state = one.start.copy()
    for number in range(BLOCKS):
        block = one.block(number)
        assert len(block) == BLOCK_TOKENS
        for place, token in enumerate(block):
            digit = (place - 5) // 2 % DIGITS
            if place >= 5 and is_observation(place):
                state[digit] = (state[digit] + ord(token) - ord("a")) % 10
            elif place >= 5:
                assert int(token) == state[digit]
    assert one.answer == "".join(map(str, state))
    assert grade(Problem("", one.prompt, one.answer), final_text("".join(one.response()[:-1]), "eos")).correct
    assert "".join(retained(one)).count("*") == BLOCKS * level


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_counterfactuals_leave_the_retained_text_alone(seed: int, level: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    one = Ledger.sample(rng, level)
    other = one.counterfactual(number, rng)
    assert retained(one) == retained(other)
    assert one.block(number) != other.block(number)
    hidden = [a != b for a, b in zip(one.answer, other.answer, strict=True)]
    assert hidden == [False] * (DIGITS - level) + [True] * level


@pytest.mark.parametrize("level", range(4))
def test_hidden_digits_are_uniform_given_the_retained_text(level: int) -> None:
    """Enumerate every counterfactual of the last block: the text allows 10 ** h answers, equally often."""
    one = Ledger.sample(np.random.default_rng(level), level)
    answers: Counter[str] = Counter()
    for shift in np.ndindex(*[10] * level):
        increments = one.increments.copy()
        increments[-1, 0, DIGITS - level :] = (increments[-1, 0, DIGITS - level :] + shift) % 10
        other = Ledger(level, one.start, one.notes, increments)
        assert retained(other) == retained(one)
        answers[other.answer] += 1
    assert len(answers) == 10**level
    assert set(answers.values()) == {1}
    assert ledger(level, 1).ceiling == pytest.approx(1 / len(answers))


def test_the_harness_writes_observations_and_nothing_else() -> None:
    (bench,) = load_bench("ledger-h2", 3)
    one = Ledger.sample(np.random.default_rng([0, 2, STREAM]), 2)
    harness = bench.harness(bench.problems[0], TOKENIZER)  # type: ignore[misc]
    tracker = ExpiryTracker(MARKUP, Policy(True))
    put_in = 0
    for token in TOKENIZER.convert_tokens_to_ids(text_of(one)):
        forced = harness(tracker)
        assert forced in (None, token)
        put_in += forced is not None
        tracker.push(token)
    assert put_in == BLOCKS * sum(map(is_observation, range(BLOCK_TOKENS)))


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("<think>9</think>123", "123"),
        ("<think>123", None),
        ("</think>12", None),
        ("</think>12*", None),
        ("</think>1234", None),
        ("</think>１２３", None),
        ("</think>9</think>123", "123"),
    ],
)
def test_grading(response: str, extracted: str | None) -> None:
    found = grade(Problem("", "", "123"), final_text(response, "length"))
    assert (found.extracted, found.correct) == (extracted, extracted == "123")
    assert not grade(Problem("", "", "124"), final_text(response, "length")).correct


def test_problems_are_the_same_for_the_same_seed_and_grow_by_appending() -> None:
    few, many, other = ledger(1, 5), ledger(1, 9), ledger(1, 5, seed=1)
    assert few.problems == many.problems[:5]
    assert {p.prompt for p in few.problems} != {p.prompt for p in other.problems}
    with pytest.raises(UserError, match="levels 0 to 3"):
        ledger(4)
