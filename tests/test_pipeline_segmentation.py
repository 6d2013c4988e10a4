"""Segmentation: equal to the best of all cuts, within its limits, and certified."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.pipeline.rows import Row, RowError
from ghosttrace.pipeline.segmentation import BlockLimits, best_segmentation, check_limits, objective, segment

SCORES = [0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 3]


def all_cuts(size: int) -> Iterator[list[int]]:
    for cut in product((False, True), repeat=size - 1):
        yield [0, *(index + 1 for index, chosen in enumerate(cut) if chosen)]


def value(lengths: Sequence[int], scores: Sequence[float], starts: Sequence[int], weight: float) -> float:
    return objective(block_lengths(lengths, starts), [scores[start - 1] for start in starts[1:]], weight)


def block_lengths(lengths: Sequence[int], starts: Sequence[int]) -> list[int]:
    return [sum(lengths[first:last]) for first, last in pairwise([*starts, len(lengths)])]


def within(lengths: Sequence[int], limits: BlockLimits) -> bool:
    shortest = min(limits.min_tokens, sum(lengths))
    return all(shortest <= length <= (limits.max_tokens or length) for length in lengths) and limits.min_blocks <= len(
        lengths
    ) <= (limits.max_blocks or len(lengths))


def brute_force(lengths: Sequence[int], scores: Sequence[float], limits: BlockLimits) -> float | None:
    values = [
        value(lengths, scores, starts, limits.spread_weight)
        for starts in all_cuts(len(lengths))
        if within(block_lengths(lengths, starts), limits)
    ]
    return max(values, default=None)


@pytest.mark.parametrize("part", range(5))
def test_equal_to_brute_force(part: int) -> None:
    """500 random cases in all, with every limit; the certificate's bound leaves no gap."""
    random, solved = Random(part), 0
    for _ in range(100):
        size = random.randint(1, 10)
        lengths = [random.randint(5, 120) for _ in range(size)]
        scores = [random.choice(SCORES) for _ in range(size - 1)]
        limits = BlockLimits(
            min_tokens=random.choice([1, 30, 80, 150]),
            max_tokens=random.choice([None, None, 160, 250, 400]),
            min_blocks=random.choice([1, 1, 1, 2, 3]),
            max_blocks=random.choice([None, None, 3, 5]),
            spread_weight=random.choice([0.0, 0.1, 0.5, 1, 2]),
        )
        best = brute_force(lengths, scores, limits)
        if best is None:
            with pytest.raises(RowError, match="no segmentation"):
                best_segmentation(lengths, scores, limits)
            continue
        starts, certificate = best_segmentation(lengths, scores, limits)
        assert within(block_lengths(lengths, starts), limits)
        assert certificate.objective == pytest.approx(best, abs=1e-9)
        assert value(lengths, scores, starts, limits.spread_weight) == pytest.approx(best, abs=1e-9)
        assert certificate.objective <= certificate.bound <= certificate.objective + 1e-9
        solved += 1
    assert solved > 50


@settings(max_examples=30)
@given(st.data())
def test_no_other_cut_of_a_long_trace_is_better(data: st.DataObject) -> None:
    """Long traces with windows that slide: moving, adding or removing one cut never helps."""
    random = Random(data.draw(st.integers(0, 2**30)))
    size = random.randint(30, 80)
    lengths = [random.randint(5, 90) for _ in range(size)]
    scores = [random.choice(SCORES) for _ in range(size - 1)]
    limits = BlockLimits(min_tokens=100, max_tokens=random.choice([None, 300, 500]))
    starts, certificate = best_segmentation(lengths, scores, limits)
    moved = [sorted({*starts, index} - {dropped}) for index in range(1, size) for dropped in (-1, *starts[1:])]
    for other in moved:
        if within(block_lengths(lengths, other), limits):
            assert value(lengths, scores, other, 0.5) <= certificate.bound + 1e-9


def test_a_short_trace_is_one_block() -> None:
    assert best_segmentation([50, 60], [3], BlockLimits(min_tokens=200))[0] == (0,)


def test_a_row_gets_blocks_and_certificate() -> None:
    row = Row("a", "p", "x y z", "4", sentences=("x ", "y ", "z"), sentence_tokens=(9, 9, 9), boundary_scores=(0.5, 3))
    cut = segment(row, BlockLimits(min_tokens=9))
    assert cut.blocks == ((0, 1), (2, 2)) and cut.block_texts == ["x y ", "z"] and cut.block_tokens == [18, 9]
    assert cut.certificate is not None and cut.certificate.min_tokens == 9
    with pytest.raises(RowError, match="run ghosttrace data score first"):
        segment(Row("a", "p", "x", "4", sentences=("x", "y")), BlockLimits())


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"max_blocks": 0}])
def test_limits_of_zero_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least"):
        BlockLimits(**limits)


def test_impossible_lengths_are_found_without_scores() -> None:
    row = Row("a", "p", "t", "a", sentence_tokens=(300, 300, 300))
    assert check_limits(row, BlockLimits(min_tokens=200, max_blocks=2)) is row
    for limits in (BlockLimits(min_tokens=100, max_tokens=250), BlockLimits(min_blocks=4), BlockLimits(500, 700)):
        with pytest.raises(RowError, match="no segmentation"):
            check_limits(row, limits)
