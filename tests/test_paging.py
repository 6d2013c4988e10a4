"""Slots of a paged cache, held to the law on arbitrary streams, chunks and losses of the cache."""

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
    """What slots hold: the place of each token, and whom it saw when it was read."""

    slots: list[int] = field(default_factory=list)
    saw: dict[int, list[int]] = field(default_factory=dict)


def run(seed: int, tokens: list[int], slot_tracker: SlotTracker) -> Iterator[tuple[int, Cache]]:
    """Read a request as an engine would: chunks of any size, tokens known late, the cache lost at any time.

    One that begins, or begins again, finds some of its first tokens in the cache, up to its first block, and reads on
    from there before anything is settled.
    """
    rng = np.random.default_rng(seed)
    cache, place, written = Cache(), 0, int(rng.integers(1, len(tokens) + 1))
    begins = True
    while place < len(tokens):
        slot_tracker.update(tokens[:written])
        if begins or rng.random() < 0.05:
            slot_tracker.clear()
            shared = min(
                written - 1, len(tokens) if slot_tracker.first_block_index is None else slot_tracker.first_block_index
            )
            place = int(rng.choice([0, shared]))
            cache = Cache(list(range(place)), {here: list(range(here + 1)) for here in range(place)})
            begins = False
        else:
            place, compactions = slot_tracker.apply_erasures(place)
            for first, stop, to in compactions:
                cache.slots[to:] = cache.slots[first:stop]
        until = min(written, place + int(rng.integers(1, 10)))
        chunk_limit = slot_tracker.chunk_limit(place)
        if chunk_limit is not None:
            assert chunk_limit > place
            until = min(until, chunk_limit)
        for here in range(place, until):
            assert here - slot_tracker.erased == len(cache.slots)
            cache.slots.append(here)
            cache.saw[here] = list(cache.slots)
            yield here, cache
        place = until
        if place == written < len(tokens):
            written += 1


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(["memento", "placebo"]))
def test_memento_holds_what_the_law_says(seed: int, tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    """At every token, whatever the chunks, the moments at which tokens become known, and the losses."""
    times = expiry(tokens, MARKUP, policy)
    for place, cache in run(seed, tokens, SlotTracker(MARKUP, policy, arm)):
        assert cache.slots == [key for key in range(place + 1) if place < times[key]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(SEALED_ARMS))
def test_a_sealed_cache_never_saw_what_is_erased(seed: int, tokens: list[int], policy: Policy, arm: PagedArm) -> None:
    """At the end it holds what `memento` holds, and no token in it ever saw a key that is gone by then."""
    times = expiry(tokens, MARKUP, policy)
    *_, (_, cache) = run(seed, tokens, SlotTracker(MARKUP, policy, arm))
    gone = {key for key, time in enumerate(times) if time < NEVER}
    assert cache.slots == [key for key in range(len(tokens)) if key not in gone]
    assert all(not gone & set(cache.saw[key]) for key in cache.slots)


def test_a_live_restart_reads_the_memento_again_before_the_next_token_is_chosen() -> None:
    """Written token by token: the block is gone when `<|summary_end|>` is read, and only then."""
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    slot_tracker = SlotTracker(MARKUP, Policy(True), "restart")
    for place in range(8):
        slot_tracker.update(tokens[: place + 1])
        assert slot_tracker.apply_erasures(place) == (place, [])
    slot_tracker.update(tokens[:9])
    assert (
        slot_tracker.apply_erasures(8) == (6, [(2, 2, 2)])
        and slot_tracker.erased == 4
        and slot_tracker.chunk_limit(6) is None
    )


def test_placebo_reads_the_same_tokens_again_with_the_block_there() -> None:
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
def test_most_is_the_peak_of_a_replay(tokens: list[int], policy: Policy) -> None:
    for arm in ("full", "memento", "restart"):
        slot_tracker, place, slots_after, peak = SlotTracker(MARKUP, policy, arm), 0, 0, 0
        slot_tracker.update(tokens)
        while place < len(tokens):
            place, compactions = slot_tracker.apply_erasures(place)
            slots_after = compactions[-1].slots_after if compactions else slots_after
            chunk_limit = slot_tracker.chunk_limit(place)
            until = len(tokens) if chunk_limit is None else min(chunk_limit, len(tokens))
            slots_after, place = slots_after + until - place, until
            peak = max(peak, slots_after)
        assert peak == slot_tracker.peak_slots(len(tokens))


def test_frontier_is_the_first_block_of_the_assistant() -> None:
    slot_tracker = SlotTracker(MARKUP, Policy(True))
    slot_tracker.update([1, 4, 8, 3, 8])
    assert slot_tracker.first_block_index is None
    slot_tracker.update([1, 4, 8, 3, 8, 4, 9, 4])
    assert slot_tracker.first_block_index == 5


def test_arms_that_need_more_than_paging_are_refused() -> None:
    with pytest.raises(UserError, match="swap"):
        SlotTracker(MARKUP, Policy(True), "swap")  # type: ignore[arg-type]


def test_erasures_are_in_the_order_of_their_places() -> None:
    """What `SlotTracker` relies on: keys that are gone lie before those that go next."""
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        found = erasures([3, *rng.choice([4, 5, 6, 7, 9], 400).tolist()], MARKUP, policy)
        assert [e.keys.start for e in found] == sorted(e.keys.start for e in found)
        assert [e.expires_at for e in found] == sorted(e.expires_at for e in found)
