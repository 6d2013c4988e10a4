"""`ledger`: its problems, its grader, and why a sealed cache cannot beat 10 ** -h."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.bench import load_bench
from ghosttrace.bench.benchmark import Problem, final_text
from ghosttrace.bench.ledger import (
    BLOCK_TOKENS,
    N_BLOCKS,
    N_DIGITS,
    PROBLEM_STREAM,
    Ledger,
    grade,
    is_observation,
    ledger,
    ledger_task,
)
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint, load, load_tokenizer

TOKENIZER = load_tokenizer("toy-mixed")
MARKUP = Markup.from_tokenizer(TOKENIZER)


def trace_text(ledger: Ledger) -> list[str]:
    return ["<|user|>", *ledger.prompt, "<|assistant|>", *ledger.response()]


def retained(ledger: Ledger) -> tuple[str, ...]:
    """Return the retained text after all blocks are erased, without the answer."""
    text = trace_text(ledger)
    blocks = find_blocks(TOKENIZER.convert_tokens_to_ids(text), MARKUP)
    erased = {index for block in blocks for index in range(block.start, block.end + 1)}
    return tuple(t for index, t in enumerate(text[: -N_DIGITS - 1]) if index not in erased)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_every_ledger_is_consistent(seed: int, level: int) -> None:
    ledger = Ledger.sample(np.random.default_rng(seed), level)
    state = ledger.start.copy()
    for number in range(N_BLOCKS):
        block = ledger.block(number)
        assert len(block) == BLOCK_TOKENS
        for index, token in enumerate(block):
            digit = (index - 5) // 2 % N_DIGITS
            if index >= 5 and is_observation(index):
                state[digit] = (state[digit] + ord(token) - ord("a")) % 10
            elif index >= 5:
                assert int(token) == state[digit]
    assert ledger.answer == "".join(map(str, state))
    assert grade(Problem("", ledger.prompt, ledger.answer), final_text("".join(ledger.response()[:-1]), "eos")).correct
    assert "".join(retained(ledger)).count("*") == N_BLOCKS * level


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_counterfactuals_keep_the_retained_text(seed: int, level: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    ledger = Ledger.sample(rng, level)
    other = ledger.counterfactual(number, rng)
    assert retained(ledger) == retained(other)
    assert ledger.block(number) != other.block(number)
    hidden = [a != b for a, b in zip(ledger.answer, other.answer, strict=True)]
    assert hidden == [False] * (N_DIGITS - level) + [True] * level


def test_harness_forces_only_observations() -> None:
    (bench,) = load_bench("ledger-h2", 3)
    ledger = Ledger.sample(np.random.default_rng([0, 2, PROBLEM_STREAM]), 2)
    harness = bench.harness(bench.problems[0], TOKENIZER)  # type: ignore[misc]
    tracker = ExpiryTracker(MARKUP, Policy(True))
    put_in = 0
    for token in TOKENIZER.convert_tokens_to_ids(trace_text(ledger)):
        forced = harness(tracker)
        assert forced in (None, token)
        put_in += forced is not None
        tracker.push(token)
    assert put_in == N_BLOCKS * sum(map(is_observation, range(BLOCK_TOKENS)))


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
    result = grade(Problem("", "", "123"), final_text(response, "length"))
    assert (result.extracted, result.correct) == (extracted, extracted == "123")
    assert not grade(Problem("", "", "124"), final_text(response, "length")).correct


def test_more_problems_extend_the_list_of_the_same_seed() -> None:
    few, many, other = ledger(1, 5), ledger(1, 9), ledger(1, 5, seed=1)
    assert few.problems == many.problems[:5]
    assert {p.prompt for p in few.problems} != {p.prompt for p in other.problems}
    with pytest.raises(UserError, match="levels 0 to 3"):
        ledger(4)


@pytest.fixture(scope="module")
def toy() -> Checkpoint:
    return load("toy-open")


@pytest.mark.parametrize("level", range(4))
def test_ledger_labels_equal_the_digits_in_the_trace(toy: Checkpoint, level: int) -> None:
    task = ledger_task(toy, 20, seed=1, block=2, level=level)
    assert [t.name for t in task.targets] == [f"note-{i}" for i in range(5)] + [f"hidden-{i}" for i in range(level)]
    for sample in task.samples:
        assert (
            "".join(toy.tokenizer.convert_ids_to_tokens([sample.ids[p] for p in sample.secret_indices]))
            == sample.secret
        )
        assert "".join(map(str, sample.labels)) == sample.secret
        pair = find_blocks(sample.ids, toy.markup)[2]
        text = toy.tokenizer.convert_ids_to_tokens(list(sample.ids))
        shown = text[pair.memento_start + 1 : pair.memento_end]
        after = text[pair.end - 5 : pair.end : 2]  # the digits of the state, each after an increment
        assert text[sample.secret_indices[0]] == text[pair.start + 1]
        assert shown == after[: 3 - level] + ["*"] * level
        assert "".join(after[3 - level :]) == sample.secret[5:]
        assert text[-1] == "<eos>"


def test_ledger_probe_samples_differ_from_problems(toy: Checkpoint) -> None:
    task = ledger_task(toy, 30, level=1)
    rng = np.random.default_rng([0, 1, PROBLEM_STREAM])
    known = {tuple(Ledger.sample(rng, 1).notes[1]) for _ in range(400)}
    assert len(known & {sample.labels[:5] for sample in task.samples}) <= 1
    assert ledger_task(toy, 30, block=3, level=0).targets[-1].name == "note-4"
    for level, block in ((4, 1), (1, 3), (0, 4), (0, -1)):
        with pytest.raises(UserError, match="ledger has levels 0 to 3"):
            ledger_task(toy, 3, block=block, level=level)
    with pytest.raises(UserError, match="lacks tokens of ledger"):
        ledger_task(replace(toy, tokenizer=SimpleNamespace(convert_tokens_to_ids=lambda text: [None])), 3, level=1)
