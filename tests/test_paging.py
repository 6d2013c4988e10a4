"""Slots of a paged cache follow the law for arbitrary streams, chunks and preemptions."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
import pytest
from helpers import laws
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy, erasures, expiry
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import parse_law
from ghosttrace.serving.paging import SEALED_ARMS, PagedArm, SlotTracker

MARKUP = Markup(4, 5, 6, 7, assistant_header=(3,), turn_end=2)
POLICIES = [
    Policy(mask, keep, erase_at, answer)
    for mask in (True, False)
    for keep in (-1, 0, 1, 2)
    for erase_at in ("after_summary_end", "before_summary_end")
    for answer in (False, True)
]
STREAMS = st.lists(
    st.one_of(st.just([4, 9, 5, 6, 8, 7]), st.sampled_from([4, 5, 6, 7, 8, 9, 2, 3]).map(lambda token: [token])),
    max_size=14,
).map(lambda parts: [1, 3, *[token for part in parts for token in part]])


@dataclass
class Cache:
    """Simulated cache: token index of each slot, and the keys that each token saw when it was read."""

    slots: list[int] = field(default_factory=list)
    saw: dict[int, list[int]] = field(default_factory=dict)


def run(seed: int, tokens: list[int], slot_tracker: SlotTracker) -> Iterator[tuple[int, Cache]]:
    """Simulate an engine that reads a request, and yield each token index with the cache.

    Chunks have random sizes, tokens become known late, and the request may be preempted at any time. When it starts
    or restarts, some tokens before the first that may be erased may already be in the prefix cache.
    """
    rng = np.random.default_rng(seed)
    cache, num_read, written = Cache(), 0, int(rng.integers(1, len(tokens) + 1))
    begins = True
    while num_read < len(tokens):
        slot_tracker.update(tokens[:written])
        if begins or rng.random() < 0.05:
            slot_tracker.clear()
            shareable = slot_tracker.shareable_length
            shared = min(written - 1, len(tokens) if shareable is None else shareable)
            num_read = int(rng.choice([0, shared]))
            cache = Cache(list(range(num_read)), {index: list(range(index + 1)) for index in range(num_read)})
            begins = False
        else:
            num_read, compactions = slot_tracker.apply_erasures(num_read)
            for first, stop, target in compactions:
                cache.slots[target:] = cache.slots[first:stop]
        until = min(written, num_read + int(rng.integers(1, 10)))
        chunk_limit = slot_tracker.chunk_limit(num_read)
        if chunk_limit is not None:
            assert chunk_limit > num_read
            until = min(until, chunk_limit)
        for index in range(num_read, until):
            assert index - slot_tracker.erased == len(cache.slots)
            cache.slots.append(index)
            cache.saw[index] = list(cache.slots)
            yield index, cache
        num_read = until
        if num_read == written < len(tokens):
            written += 1


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(["memento", "placebo"]))
def test_memento_slots_follow_the_law(seed: int, tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    """At every token, for all chunks, preemptions, and times at which tokens become known."""
    times = expiry(tokens, MARKUP, policy)
    for index, cache in run(seed, tokens, SlotTracker(MementoLaw(MARKUP, policy), arm)):
        assert cache.slots == [key for key in range(index + 1) if index < times[key]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(SEALED_ARMS))
def test_sealed_cache_never_saw_erased_tokens(seed: int, tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    """At the end it holds the slots of `memento`, and no token in it saw a key that is erased by then."""
    times = expiry(tokens, MARKUP, policy)
    *_, (_, cache) = run(seed, tokens, SlotTracker(MementoLaw(MARKUP, policy), arm))
    erased = {key for key, time in enumerate(times) if time < NEVER}
    assert cache.slots == [key for key in range(len(tokens)) if key not in erased]
    assert all(not erased & set(cache.saw[key]) for key in cache.slots)


def test_restart_recomputes_the_memento_before_the_next_token() -> None:
    """Token by token, the block is erased exactly when `<|summary_end|>` is read."""
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    slot_tracker = SlotTracker(MementoLaw(MARKUP, Policy(True)), "restart")
    for index in range(8):
        slot_tracker.update(tokens[: index + 1])
        assert slot_tracker.apply_erasures(index) == (index, [])
    slot_tracker.update(tokens[:9])
    assert (
        slot_tracker.apply_erasures(8) == (6, [(2, 2, 2)])
        and slot_tracker.erased == 4
        and slot_tracker.chunk_limit(6) is None
    )


def test_placebo_recomputes_the_memento_with_its_block() -> None:
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    slot_tracker = SlotTracker(MementoLaw(MARKUP, Policy(True)), "placebo")
    slot_tracker.update(tokens[:9])
    assert (
        slot_tracker.apply_erasures(8) == (6, [(6, 6, 6)])
        and slot_tracker.erased == 0
        and slot_tracker.chunk_limit(6) == 9
    )
    slot_tracker.update(tokens)
    assert slot_tracker.apply_erasures(9) == (9, [(6, 9, 2)]) and slot_tracker.erased == 4


def replayed_peak(law: Law, arm: PagedArm, tokens: list[int]) -> tuple[int, SlotTracker]:
    """Return the peak of slots in use while all tokens are computed, and the tracker."""
    slot_tracker, num_read, slots_after, peak = SlotTracker(law, arm), 0, 0, 0
    slot_tracker.update(tokens)
    while num_read < len(tokens):
        num_read, compactions = slot_tracker.apply_erasures(num_read)
        slots_after = compactions[-1].slots_after if compactions else slots_after
        chunk_limit = slot_tracker.chunk_limit(num_read)
        until = len(tokens) if chunk_limit is None else min(chunk_limit, len(tokens))
        slots_after, num_read = slots_after + until - num_read, until
        peak = max(peak, slots_after)
    return peak, slot_tracker


@settings(max_examples=100, deadline=None)
@given(STREAMS, st.sampled_from(POLICIES), st.sampled_from(["full", "memento", "restart"]))
def test_peak_slots_equals_the_peak_of_a_replay(tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    peak, slot_tracker = replayed_peak(MementoLaw(MARKUP, policy), arm, tokens)
    assert peak == slot_tracker.peak_slots(len(tokens))


SERVED = [name for name in laws.LAWS if name != "log"]
CHATS = laws.streams.map(lambda tokens: [laws.TEXT, *tokens])


def times_under(name: str, tokens: list[int]) -> np.ndarray | None:
    """Return the expiry of each token by simulation; None if the law cannot hold."""
    try:
        return laws.simulate(tokens, laws.LAWS[name].leaving(tokens))
    except UserError:
        return None


@pytest.mark.parametrize("name", SERVED)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), CHATS, st.sampled_from(["memento", "placebo", "full"]))
def test_slots_follow_every_law(name: str, seed: int, tokens: list[int], arm: PagedArm) -> None:
    slot_tracker, times = SlotTracker(laws.LAWS[name].law(tokens), arm), times_under(name, tokens)
    if times is None and arm != "full":
        slot_tracker.update(tokens)
        assert slot_tracker.error is not None and "do not fit into the window" in slot_tracker.error
        return
    for index, cache in run(seed, tokens, slot_tracker):
        held = range(index + 1)
        assert cache.slots == [key for key in held if arm == "full" or times is None or index < times[key]]
    assert slot_tracker.error is None


@pytest.mark.parametrize("name", SERVED)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), CHATS, st.sampled_from(SEALED_ARMS))
def test_sealed_cache_never_saw_tokens_that_any_law_erased(
    name: str, seed: int, tokens: list[int], arm: PagedArm
) -> None:
    law, times = laws.LAWS[name].law(tokens), times_under(name, tokens)
    if times is None:
        return
    *_, (_, cache) = run(seed, tokens, SlotTracker(law, arm))
    erased = set(np.flatnonzero(times < NEVER).tolist())
    assert cache.slots == [key for key in range(len(tokens)) if key not in erased]
    assert all(not erased & set(cache.saw[key]) for key in cache.slots)
    peak, slot_tracker = replayed_peak(law, arm, tokens)
    assert peak == slot_tracker.peak_slots(len(tokens))


@pytest.mark.parametrize("name", SERVED)
def test_placebo_recomputes_before_every_erasure(name: str) -> None:
    """The tokens that it retains and that no earlier one has touched; the last is computed for the first time."""
    tokens = laws.chat_trace(2)
    law, computed, num_read = laws.LAWS[name].law(tokens), np.zeros(len(tokens), int), 0
    slot_tracker = SlotTracker(law, "placebo")
    for written in range(1, len(tokens) + 1):
        slot_tracker.update(tokens[:written])
        while num_read < written:
            num_read, _ = slot_tracker.apply_erasures(num_read)
            until = min(written, slot_tracker.chunk_limit(num_read) or written)
            computed[num_read:until] += 1
            num_read = until
    expected, last = np.ones(len(tokens), int), 0
    for expires_at, group in groupby(law.erasures(tokens), key=lambda erasure: erasure.expires_at):
        expected[max(next(group).keys.stop, last) : expires_at - 1] += 1
        last = expires_at
    np.testing.assert_array_equal(computed, expected)


@pytest.mark.parametrize("name", laws.LAWS)
@settings(max_examples=60, deadline=None)
@given(CHATS)
def test_tokens_that_are_shareable_never_leave(name: str, tokens: list[int]) -> None:
    """Whatever follows; and under laws without candidates that may come to nothing, no fewer tokens are shareable."""
    law, times = laws.LAWS[name].law(tokens), times_under(name, tokens)
    if times is None:
        return
    tracker = law.tracker()
    for index, token in enumerate(tokens):
        tracker.push(token)
        first = tracker.first_erasable
        assert (times[: index + 1 if first is None else min(first, index + 1)] == NEVER).all()
    if name.partition("-")[0] in ("window", "sinks", "no", "chunks", "turns") and (times < NEVER).any():
        assert first == np.flatnonzero(times < NEVER)[0]


def test_nothing_more_is_erased_once_the_law_cannot_hold() -> None:
    """Such a request is ended by the engine; until then, the tracker must not fail."""
    slot_tracker = SlotTracker(parse_law("window:10,4", laws.CHAT))
    tokens = [*range(20, 30), laws.START, laws.HEAD, *range(30, 60)]
    for length in (5, 12, 30, len(tokens)):
        slot_tracker.update(tokens[:length])
        assert (slot_tracker.error is None) == (length < 12) and not slot_tracker.has_erasures
    assert "a prompt of 12 tokens" in str(slot_tracker.error)
    assert slot_tracker.apply_erasures(len(tokens)) == (len(tokens), [])


def test_tokens_before_the_first_block_of_the_assistant_are_shareable() -> None:
    slot_tracker = SlotTracker(MementoLaw(MARKUP, Policy(True)))
    slot_tracker.update([1, 4, 8, 3, 8])
    assert slot_tracker.shareable_length is None
    slot_tracker.update([1, 4, 8, 3, 8, 4, 9, 4])
    assert slot_tracker.shareable_length == 5


def test_arms_that_need_more_than_paging_are_refused() -> None:
    with pytest.raises(UserError, match="swap"):
        SlotTracker(MementoLaw(MARKUP, Policy(True)), "swap")  # type: ignore[arg-type]


def test_erasures_are_sorted_by_token_index() -> None:
    """`SlotTracker` requires that erased keys precede the keys that are erased next."""
    rng = np.random.default_rng(0)
    found = [erasures([3, *rng.choice([4, 5, 6, 7, 9], 400).tolist()], MARKUP, policy) for policy in POLICIES]
    found += [laws.LAWS[name].law([]).erasures(laws.chat_trace(1, rounds=9)) for name in SERVED]
    for row_erasures in found:
        keys = [erasure.keys for erasure in row_erasures]
        assert all(isinstance(erased, range) for erased in keys)
        assert all(before.stop <= after.start for before, after in pairwise(keys))
        assert [e.expires_at for e in row_erasures] == sorted(e.expires_at for e in row_erasures)
