"""Slots of a paged cache follow the law for arbitrary streams, chunks and preemptions."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, erasures, expiry
from ghosttrace.law.markup import Markup
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
    or restarts, some tokens before its first block may already be in the prefix cache.
    """
    rng = np.random.default_rng(seed)
    cache, num_read, written = Cache(), 0, int(rng.integers(1, len(tokens) + 1))
    begins = True
    while num_read < len(tokens):
        slot_tracker.update(tokens[:written])
        if begins or rng.random() < 0.05:
            slot_tracker.clear()
            shared = min(
                written - 1, len(tokens) if slot_tracker.first_block_index is None else slot_tracker.first_block_index
            )
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
    for index, cache in run(seed, tokens, SlotTracker(MARKUP, policy, arm)):
        assert cache.slots == [key for key in range(index + 1) if index < times[key]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(SEALED_ARMS))
def test_sealed_cache_never_saw_erased_tokens(seed: int, tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    """At the end it holds the slots of `memento`, and no token in it saw a key that is erased by then."""
    times = expiry(tokens, MARKUP, policy)
    *_, (_, cache) = run(seed, tokens, SlotTracker(MARKUP, policy, arm))
    erased = {key for key, time in enumerate(times) if time < NEVER}
    assert cache.slots == [key for key in range(len(tokens)) if key not in erased]
    assert all(not erased & set(cache.saw[key]) for key in cache.slots)


def test_restart_recomputes_the_memento_before_the_next_token() -> None:
    """Token by token, the block is erased exactly when `<|summary_end|>` is read."""
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    slot_tracker = SlotTracker(MARKUP, Policy(True), "restart")
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
    slot_tracker = SlotTracker(MARKUP, Policy(True), "placebo")
    slot_tracker.update(tokens[:9])
    assert (
        slot_tracker.apply_erasures(8) == (6, [(6, 6, 6)])
        and slot_tracker.erased == 0
        and slot_tracker.chunk_limit(6) == 9
    )
    slot_tracker.update(tokens)
    assert slot_tracker.apply_erasures(9) == (9, [(6, 9, 2)]) and slot_tracker.erased == 4


@settings(max_examples=100, deadline=None)
@given(STREAMS, st.sampled_from(POLICIES))
def test_peak_slots_equals_the_peak_of_a_replay(tokens: list[int], policy: Policy) -> None:
    for arm in ("full", "memento", "restart"):
        slot_tracker, num_read, slots_after, peak = SlotTracker(MARKUP, policy, arm), 0, 0, 0
        slot_tracker.update(tokens)
        while num_read < len(tokens):
            num_read, compactions = slot_tracker.apply_erasures(num_read)
            slots_after = compactions[-1].slots_after if compactions else slots_after
            chunk_limit = slot_tracker.chunk_limit(num_read)
            until = len(tokens) if chunk_limit is None else min(chunk_limit, len(tokens))
            slots_after, num_read = slots_after + until - num_read, until
            peak = max(peak, slots_after)
        assert peak == slot_tracker.peak_slots(len(tokens))


def test_first_block_index_is_the_first_block_of_the_assistant() -> None:
    slot_tracker = SlotTracker(MARKUP, Policy(True))
    slot_tracker.update([1, 4, 8, 3, 8])
    assert slot_tracker.first_block_index is None
    slot_tracker.update([1, 4, 8, 3, 8, 4, 9, 4])
    assert slot_tracker.first_block_index == 5


def test_arms_that_need_more_than_paging_are_refused() -> None:
    with pytest.raises(UserError, match="swap"):
        SlotTracker(MARKUP, Policy(True), "swap")  # type: ignore[arg-type]


def test_erasures_are_sorted_by_token_index() -> None:
    """`SlotTracker` requires that erased keys precede the keys that are erased next."""
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        row_erasures = erasures([3, *rng.choice([4, 5, 6, 7, 9], 400).tolist()], MARKUP, policy)
        assert [e.keys.start for e in row_erasures] == sorted(e.keys.start for e in row_erasures)
        assert [e.expires_at for e in row_erasures] == sorted(e.expires_at for e in row_erasures)
