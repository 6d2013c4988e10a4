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
from ghosttrace.serving.paging import SEALED, Arm, Paging

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


def run(seed: int, tokens: list[int], paging: Paging) -> Iterator[tuple[int, Cache]]:
    """Read a request as an engine would: chunks of any size, tokens known late, the cache lost at any time.

    One that begins, or begins again, finds some of its first tokens in the cache, up to its first block, and reads on
    from there before anything is settled.
    """
    rng = np.random.default_rng(seed)
    cache, place, written = Cache(), 0, int(rng.integers(1, len(tokens) + 1))
    begins = True
    while place < len(tokens):
        paging.read(tokens[:written])
        if begins or rng.random() < 0.05:
            paging.clear()
            shared = min(written - 1, len(tokens) if paging.frontier is None else paging.frontier)
            place = int(rng.choice([0, shared]))
            cache = Cache(list(range(place)), {here: list(range(here + 1)) for here in range(place)})
            begins = False
        else:
            place, compactions = paging.settle(place)
            for first, stop, to in compactions:
                cache.slots[to:] = cache.slots[first:stop]
        until = min(written, place + int(rng.integers(1, 10)))
        limit = paging.limit(place)
        if limit is not None:
            assert limit > place
            until = min(until, limit)
        for here in range(place, until):
            assert here - paging.erased == len(cache.slots)
            cache.slots.append(here)
            cache.saw[here] = list(cache.slots)
            yield here, cache
        place = until
        if place == written < len(tokens):
            written += 1


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(["memento", "placebo"]))
def test_memento_holds_what_the_law_says(seed: int, tokens: list[int], policy: Policy, arm: Arm) -> None:
    """At every token, whatever the chunks, the moments at which tokens become known, and the losses."""
    times = expiry(tokens, MARKUP, policy)
    for place, cache in run(seed, tokens, Paging(MARKUP, policy, arm)):
        assert cache.slots == [key for key in range(place + 1) if place < times[key]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), STREAMS, st.sampled_from(POLICIES), st.sampled_from(SEALED))
def test_a_sealed_cache_never_saw_what_is_erased(seed: int, tokens: list[int], policy: Policy, arm: Arm) -> None:
    """At the end it holds what `memento` holds, and no token in it ever saw a key that is gone by then."""
    times = expiry(tokens, MARKUP, policy)
    *_, (_, cache) = run(seed, tokens, Paging(MARKUP, policy, arm))
    gone = {key for key, time in enumerate(times) if time < NEVER}
    assert cache.slots == [key for key in range(len(tokens)) if key not in gone]
    assert all(not gone & set(cache.saw[key]) for key in cache.slots)


def test_a_live_restart_reads_the_memento_again_before_the_next_token_is_chosen() -> None:
    """Written token by token: the block is gone when `<|summary_end|>` is read, and only then."""
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    paging = Paging(MARKUP, Policy(True), "restart")
    for place in range(8):
        paging.read(tokens[: place + 1])
        assert paging.settle(place) == (place, [])
    paging.read(tokens[:9])
    assert paging.settle(8) == (6, [(2, 2, 2)]) and paging.erased == 4 and paging.limit(6) is None


def test_placebo_reads_the_same_tokens_again_with_the_block_there() -> None:
    tokens = [1, 3, 4, 9, 9, 5, 6, 8, 7, 8]
    paging = Paging(MARKUP, Policy(True), "placebo")
    paging.read(tokens[:9])
    assert paging.settle(8) == (6, [(6, 6, 6)]) and paging.erased == 0 and paging.limit(6) == 9
    paging.read(tokens)
    assert paging.settle(9) == (9, [(6, 9, 2)]) and paging.erased == 4


@settings(max_examples=100, deadline=None)
@given(STREAMS, st.sampled_from(POLICIES))
def test_most_is_the_peak_of_a_replay(tokens: list[int], policy: Policy) -> None:
    for arm in ("full", "memento", "restart"):
        paging, place, length, peak = Paging(MARKUP, policy, arm), 0, 0, 0
        paging.read(tokens)
        while place < len(tokens):
            place, compactions = paging.settle(place)
            length = compactions[-1].length if compactions else length
            limit = paging.limit(place)
            until = len(tokens) if limit is None else min(limit, len(tokens))
            length, place = length + until - place, until
            peak = max(peak, length)
        assert peak == paging.most(len(tokens))


def test_frontier_is_the_first_block_of_the_assistant() -> None:
    paging = Paging(MARKUP, Policy(True))
    paging.read([1, 4, 8, 3, 8])
    assert paging.frontier is None
    paging.read([1, 4, 8, 3, 8, 4, 9, 4])
    assert paging.frontier == 5


def test_arms_that_need_more_than_paging_are_refused() -> None:
    with pytest.raises(UserError, match="swap"):
        Paging(MARKUP, Policy(True), "swap")  # type: ignore[arg-type]


def test_erasures_are_in_the_order_of_their_places() -> None:
    """What `Paging` relies on: keys that are gone lie before those that go next."""
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        found = erasures([3, *rng.choice([4, 5, 6, 7, 9], 400).tolist()], MARKUP, policy)
        assert [e.keys.start for e in found] == sorted(e.keys.start for e in found)
        assert [e.at for e in found] == sorted(e.at for e in found)
