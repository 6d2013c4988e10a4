"""The law of expiry: vector form, tracker and brute force agree on any stream."""

import numpy as np
import pytest
from helpers.token_strategies import BE, BS, HEAD_A, HEAD_B, MARKUP, NO_HEADER_POLICY, SE, SS, policies, streams
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ERASE_AT, NEVER, ExpiryTracker, Policy, alive, erasures, expiry
from ghosttrace.law.markup import Block, BlockTracker, Markup, find_blocks


def tracked(tokens: list[int], policy: Policy) -> np.ndarray:
    tracker = ExpiryTracker(MARKUP, policy)
    times = np.full(len(tokens), NEVER, dtype=np.int64)
    for position, token in enumerate(tokens):
        for erasure in tracker.push(token):
            assert erasure.expires_at in (position, position + 1)
            times[erasure.keys.start : erasure.keys.stop] = erasure.expires_at
    return times


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(streams, policies)
@example([BS, BS, 9, BE, SS, SE, BS, 8, BE, BE, SS, SE], NO_HEADER_POLICY)
@example([HEAD_A, BS, BE, SS, SE, HEAD_A, HEAD_A, HEAD_B, BS, BE, SS, SE, BS], Policy(True, 0, ERASE_AT[0], True))
def test_vector_form_equals_tracker(tokens: list[int], policy: Policy) -> None:
    np.testing.assert_array_equal(expiry(tokens, MARKUP, policy), tracked(tokens, policy))


@settings(max_examples=500, deadline=None)
@given(streams, policies, st.integers(0, 60))
def test_visibility_is_causal(tokens: list[int], policy: Policy, cut: int) -> None:
    """Truncating a stream does not change which keys the remaining queries see."""
    full, part = expiry(tokens, MARKUP, policy), expiry(tokens[:cut], MARKUP, policy)
    steps = len(part)
    np.testing.assert_array_equal(np.minimum(full[:steps], steps), np.minimum(part, steps))


@settings(max_examples=500, deadline=None)
@given(streams, policies)
def test_only_finished_blocks_of_the_assistant_expire(tokens: list[int], policy: Policy) -> None:
    """Blocks expire after their memento; prompt, memento and answer never; delimiters according to the policy."""
    times = expiry(tokens, MARKUP, policy)
    allowed = np.zeros(len(tokens), dtype=bool)
    for block in find_blocks(tokens, MARKUP, policy.require_assistant_section):
        keys = policy.erased_indices(block)
        allowed[keys.start : keys.stop] = True
        assert [tokens[p] for p in block] == [BS, BE, SS, SE]
        assert not set(tokens[block.start + 1 : block.end]) & {BS, BE, SS, SE}
        assert all(times[k] >= block.memento_end for k in keys)
    assert (times[~allowed] == NEVER).all()
    if policy.require_assistant_section and HEAD_B in tokens:
        assert (times[: tokens.index(HEAD_B)] == NEVER).all()
    if policy.require_assistant_section and HEAD_B not in tokens:
        assert (times == NEVER).all()


@settings(max_examples=300, deadline=None)
@given(streams, policies)
def test_alive_counts_visible_keys(tokens: list[int], policy: Policy) -> None:
    times = expiry(tokens, MARKUP, policy)
    count = [sum(k <= t < times[k] for k in range(len(tokens))) for t in range(len(tokens))]
    assert alive(times).tolist() == count


@settings(max_examples=150, deadline=None)
@given(streams, policies)
def test_number_of_blocks_from_which_one_is_erased(tokens: list[int], policy: Policy) -> None:
    blocks, erased = (
        len(find_blocks(tokens, MARKUP, policy.require_assistant_section)),
        erasures(tokens, MARKUP, policy),
    )
    if policy.min_blocks is None:
        assert not erased
    elif not policy.keep_last_block_for_answer:
        assert (blocks >= policy.min_blocks) == bool(erased)
    else:
        assert erased or blocks < policy.min_blocks
        assert not erased or blocks >= policy.min_blocks - 1


def three_blocks() -> list[int]:
    return [HEAD_A, HEAD_B] + [BS, 9, BE, SS, 8, SE] * 3 + [10]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(True), {2: 8, 3: 8, 4: 8, 8: 14, 9: 14, 10: 14, 14: 20, 15: 20, 16: 20}),
        (Policy(False), {3: 8, 9: 14, 15: 20}),
        (Policy(False, erase_at="before_summary_end"), {3: 7, 9: 13, 15: 19}),
        (Policy(False, keep_last_n_blocks=1), {3: 14, 9: 20}),
        (Policy(False, keep_last_n_blocks=-1), {}),
        (Policy(False, keep_last_block_for_answer=True), {3: 8, 9: 14}),
        (Policy(False, keep_last_n_blocks=1, keep_last_block_for_answer=True), {3: 14}),
    ],
)
def test_expiry_by_hand(policy: Policy, expected: dict[int, int]) -> None:
    times = expiry(three_blocks(), MARKUP, policy)
    assert {k: int(t) for k, t in enumerate(times) if t != NEVER} == expected


def test_prompt_blocks_expire_only_without_an_assistant_section() -> None:
    tokens = [BS, 9, BE, SS, 8, SE, HEAD_A, HEAD_B, 9]
    assert find_blocks(tokens, MARKUP) == []
    assert find_blocks(tokens, MARKUP, require_assistant_section=False) == [Block(0, 2, 3, 5)]


def test_tracker_reports_the_unfinished_block() -> None:
    tracker = BlockTracker(MARKUP, require_assistant_section=False)
    for token in (9, BS, 9, 9):
        tracker.push(token)
    assert tracker.in_block and tracker.block_tokens == 2
    tracker.push(BE)
    assert not tracker.in_block and tracker.block_tokens == 0


def test_invalid_policies_and_markups_are_refused() -> None:
    with pytest.raises(TypeError):
        Policy()  # type: ignore[call-arg]
    with pytest.raises(UserError, match="erase_at"):
        Policy(True, erase_at="whenever")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="keep_last_n_blocks"):
        Policy(True, keep_last_n_blocks=-2)
    with pytest.raises(UserError, match="four ids"):
        Markup(1, 2, 3, 3)
    with pytest.raises(UserError, match="require_assistant_section"):
        BlockTracker(Markup(1, 2, 3, 4))
