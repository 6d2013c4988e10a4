"""Finished rows make room for the next requests: responses, KV curves and resumed runs stay the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arm_matrix import MATRIX, Case, other_blocks
from helpers.families import FAMILIES, VOCABULARY, tiny
from helpers.laws import CHAT
from helpers.traces import MARKUP, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.ablation.arms import Arm, Memento, Swap
from ghosttrace.ablation.backend import HuggingFaceBackend, write_samples
from ghosttrace.ablation.collect import collect
from ghosttrace.ablation.run import plan_bench_arms
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.parse import parse_law
from ghosttrace.model import cache as cache_module
from ghosttrace.model import generate as generate_module
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import load
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.model.session import Eraser, Session
from ghosttrace.runs.records import Records

SCRIPTS = [trace(seed, blocks) for seed, blocks in enumerate((3, 1, 2, 4, 1, 2))]
ANSWER = 4  # tokens that the model writes itself after the script


def scripted(number: int, tokens: list[int], answer: int = ANSWER) -> Request:
    """Return a request whose blocks are forced; then the model samples `answer` tokens, and the response ends."""
    begin = tokens.index(3) + 1

    def put(tracker: ExpiryTracker) -> int | None:
        index = tracker.block_tracker.num_read
        return tokens[index] if index < len(tokens) else 2 if index >= len(tokens) + answer else None

    return Request(tokens[:begin], (7, number), put)


def donor(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
    """Return a counterfactual content of a trace's last block."""
    tokens = SCRIPTS[key[1]]
    blocks = find_blocks(tokens, MARKUP)
    if number != len(blocks) - 1:
        return None
    return other_blocks(tokens)[blocks[-1].start + 1 : blocks[-1].end]


def decode(
    family: str, case: Case, requests: Sequence[Request], rows: int | None = None, **more: Any
) -> list[Generation]:
    arm = Swap(donor) if case.arm.name == "swap" else case.arm
    policy = arm.adapt_policy(case.policy)
    return generate(
        tiny(family), requests, MARKUP, policy, Sampling(200, 1.0), arm.eraser, log_probs=True, rows=rows, **more
    )


def check_equal(generations: Sequence[Generation], expected: Sequence[Generation]) -> None:
    """Check texts, reasons and KV curves for equality, and log-probabilities up to rounding."""
    for own, other in zip(generations, expected, strict=True):
        assert (own.prompt, own.tokens, own.finish_reason, own.blocks, own.forced) == (
            *(other.prompt, other.tokens, other.finish_reason, other.blocks, other.forced),
        )
        assert own.kv_tokens.tolist() == other.kv_tokens.tolist()
        np.testing.assert_allclose(own.log_probs, other.log_probs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "family, name", [*((family, "restart") for family in FAMILIES), *(("gemma3", name) for name in MATRIX)]
)
def test_refilled_rows_equal_rows_decoded_alone(family: str, name: str) -> None:
    """On every family and under every arm, as in one batch without refilling and as each request by itself."""
    requests = [scripted(number, tokens) for number, tokens in enumerate(SCRIPTS)]
    refilled = decode(family, MATRIX[name], requests, rows=2)
    assert len({len(generation.tokens) for generation in refilled}) > 4  # rows finish at different steps
    check_equal(refilled, decode(family, MATRIX[name], requests))
    check_equal(refilled, [decode(family, MATRIX[name], [request])[0] for request in requests])


@pytest.mark.parametrize("name", ["restart", "swap", "noise", "placebo"])
def test_arms_differ_where_rows_are_refilled(name: str) -> None:
    """Positive control: the comparison sees the arm, in rows of the first batch and in rows that joined."""
    requests = [scripted(number, tokens) for number, tokens in enumerate(SCRIPTS)]
    case = MATRIX[name]
    own, reference = (decode("qwen3", each, requests, rows=2) for each in (case, Case(Memento(), policy=case.policy)))
    differs = [
        np.abs(np.array(a.log_probs) - np.array(b.log_probs)).max() > 1e-3 for a, b in zip(own, reference, strict=True)
    ]
    assert differs == [case.differs_from_memento] * len(SCRIPTS)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, rows=st.integers(1, 6), refill_steps=st.sampled_from([0, 1, 2, 5]), seed=st.integers(0, 99))
def test_any_lengths_and_any_number_of_rows(lengths: list[int], rows: int, refill_steps: int, seed: int) -> None:
    """Requests of any lengths: texts and curves as without refilling, never more rows than allowed, all in order."""
    rng = np.random.default_rng(seed)
    requests = [
        scripted(number, [*rng.integers(8, VOCABULARY, rng.integers(1, 9)).tolist(), 3], length)
        for number, length in enumerate(lengths)
    ]
    running, started, done = set[int](), [], []

    def on_token(number: int, token: int) -> None:
        if number not in started:
            started.append(number)
            running.add(number)
        assert len(running) <= rows

    def on_done(number: int, generation: Generation) -> None:
        running.remove(number)
        done.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "REFILL_STEPS", refill_steps)
        case = MATRIX["memento"]
        refilled = decode("llama", case, requests, rows, on_token=on_token, on_done=on_done)
    check_equal(refilled, decode("llama", case, requests))
    assert started == sorted(done) == list(range(len(requests)))


def test_a_row_is_refilled_once_free_rows_have_lost_the_cost_of_it() -> None:
    """Two rows, of which one ends early: with a cost of two steps of two rows, it is refilled four steps later."""
    requests = [scripted(number, [9, 3], length) for number, length in enumerate((20, 3, 5))]
    counts: dict[int, int] = {}
    starts: dict[int, int] = {}

    def on_token(number: int, token: int) -> None:
        starts.setdefault(number, counts.get(0, 0))
        counts[number] = counts.get(number, 0) + 1

    decode("llama", MATRIX["memento"], requests, rows=2, on_token=on_token)
    end = 3 + 1  # the step at which the second row ends
    assert generate_module.REFILL_STEPS == 2 and starts[2] == end + 4


def test_impossible_numbers_of_rows_are_refused() -> None:
    with pytest.raises(UserError, match="rows must be at least 1, not 0"):
        generate(tiny("llama"), [Request([1])], MARKUP, Policy(True), Sampling(1), rows=0)


@pytest.mark.parametrize("law", [None, "sinks:2,12"])
@pytest.mark.parametrize("name", MATRIX)
def test_joined_sessions_continue_as_before(name: str, law: str | None) -> None:
    """Logits after joining a longer and a shorter session, and the state that the eraser keeps for each row."""
    case, at = MATRIX[name], (25, 40)
    if law is not None and not case.arm.any_law:
        pytest.skip("this arm acts on blocks")
    other_law = None if law is None else case.arm.adapt_law(parse_law(law, CHAT))
    traces = [SCRIPTS[0], SCRIPTS[3]]

    def begin(model: Any, number: int) -> Session:
        arm: Arm = Swap(donor) if name == "swap" else case.arm
        key = (7, (0, 3)[number])
        session = Session(model, MARKUP, arm.adapt_policy(case.policy), [key], arm.eraser, other_law)
        session.advance([traces[number][: at[number]]])
        return session

    for order in ((0, 1), (1, 0)):
        rest = [traces[number][at[number] :] for number in order]
        with attending(tiny("gemma3")) as model:
            first, second = (begin(model, number) for number in order)
            first.join(second)
            joined = first.advance(rest, all_logits=True)
            alone = [begin(model, number).advance([tokens], all_logits=True)[0] for number, tokens in zip(order, rest)]  # noqa: B905
        for own, other in zip(joined, alone, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_an_eraser_that_could_not_join_is_refused() -> None:
    with pytest.raises(UserError, match="Forgetful overrides select"):

        class Forgetful(Eraser):
            def select(self, rows: Sequence[int]) -> None:
                pass


SAMPLING = {"temperature": 1.5, "max_new_tokens": 110}
UNEVEN = AblationSettings(limit=6, repetitions=2, batch_size=3, sampling=SAMPLING)
GROUP_SIZE = 8


class StoppedError(Exception):
    """Exception that interrupts a run."""


def run_arms(records: Records, arms: tuple[str, ...], group_size: int, writer: Callable[..., None]) -> list[Any]:
    """Run arms over the records; return the rows."""
    settings = replace(UNEVEN, arms=arms)
    bench_arms = plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", UNEVEN.limit), settings)
    collect(bench_arms, records, group_size, writer)
    return [records.get(key) for bench_arm in bench_arms for key in bench_arm.keys]


@pytest.mark.slow
def test_an_ablation_with_refilling_equals_one_without() -> None:
    arms = ("restart", "rerotated", "swap", "noise")
    refilled = run_arms(Records(SAMPLE_TABLE), arms, GROUP_SIZE, partial(write_samples, batch_size=3))
    assert refilled == run_arms(Records(SAMPLE_TABLE), arms, 3, write_samples)
    assert len({row["response_tokens"] for row in refilled}) > 2
    followed = [row for row in refilled if row["donor_answer"] is not None]
    assert {row["arm"] for row in followed} == {"swap"} and len(followed) > 5


def watch(records: Records, stop_at: int | None = None) -> list[tuple[Any, ...]]:
    """Run one arm, or stop when so many samples are recorded; return the rows of every forward pass."""
    seen: list[tuple[Any, ...]] = []
    advance = Session.advance

    def watched(self: Session, chunks: Any, *rest: Any) -> Any:
        seen.append(tuple((row.key, len(row.tokens)) for row in self.rows))
        return advance(self, chunks, *rest)

    def stopping(bench_arm: Any, requests: Any, on_done: Any) -> None:
        def done(index: int, generation: Generation) -> None:
            if len(records) == stop_at:
                raise StoppedError
            on_done(index, generation)

        write_samples(bench_arm, requests, done, batch_size=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "advance", watched)
        run_arms(records, (), GROUP_SIZE, stopping)
    return seen


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[tuple[Any, ...]], Records]:
    records = Records(SAMPLE_TABLE)
    return watch(records), records


@pytest.mark.parametrize("kept", [1, 5, GROUP_SIZE, GROUP_SIZE + 1])
def test_a_run_interrupted_within_a_group_is_resumed_with_the_same_batches(
    kept: int, uninterrupted: tuple[list[tuple[Any, ...]], Records]
) -> None:
    """Every forward pass of the resumed group has the rows that it has in an uninterrupted run."""
    passes, expected = uninterrupted
    assert len({len(rows) for rows in passes}) > 1
    records = Records(SAMPLE_TABLE)
    with pytest.raises(StoppedError):
        watch(records, kept)
    assert len(records) == kept
    resumed = watch(records)
    assert resumed == passes[len(passes) - len(resumed) :]  # whole groups are skipped, and others begin anew
    assert len(resumed) == len(passes) if kept < GROUP_SIZE else len(resumed) < len(passes)
    keys = expected.keys()
    assert [records.get(key) for key in keys] == [expected.get(key) for key in keys]
    assert not records.changed_on_resume


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_attend_in_parts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that read only the slots they use give the responses of rows that read all slots."""
    requests = [scripted(number, tokens) for number, tokens in enumerate(SCRIPTS)]
    whole, parts, row_parts = decode(family, MATRIX["full"], requests, rows=3), list[int](), cache_module.row_parts
    monkeypatch.setattr(cache_module, "MIN_SAVED_SLOTS", 4)

    def counting(length: np.ndarray, first: int = 0) -> Any:
        found = row_parts(length, first)
        parts.append(len(found))
        return found

    monkeypatch.setattr(cache_module, "row_parts", counting)
    check_equal(decode(family, MATRIX["full"], requests, rows=3), whole)
    assert max(parts) == 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_parts_hold_all_rows_and_all_their_keys(length: list[int], saved: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "MIN_SAVED_SLOTS", saved)
        parts = cache_module.row_parts(np.array(length))
    assert [row for part in parts for row in range(part.rows.start, part.rows.stop)] == list(range(len(length)))
    assert all(part.width == max(1, *length[part.rows]) for part in parts)
    slots = sum((part.rows.stop - part.rows.start) * part.width for part in parts)
    assert len(length) * max(1, *length) - slots >= saved * (len(parts) - 1)


def test_the_default_group_holds_several_batches() -> None:
    assert HuggingFaceBackend().batches_per_group == HuggingFaceBackend.batches_per_group > 1
