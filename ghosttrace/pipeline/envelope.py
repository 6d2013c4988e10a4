"""All best segmentations for one penalty on unevenness, one for each number of blocks, in exact integers.

For a penalty mu = b / a the best K blocks maximise a * S - b * Q, where S is the sum of the scores at the cuts and Q
the sum of the squared block lengths. A block from P[j] to P[i] contributes a * s[j] - b * (P[i] - P[j])^2, which is a
line in P[i] for each j, so that the upper envelope of the lines gives each layer in linear time (convex-hull trick).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class Sums:
    """Segmentation with a fixed number of blocks.

    Attributes:
        score: S, the sum of the integer scores at the cuts.
        squares: Q, the sum of the squared block lengths.
        starts: index of the first sentence of each block.
    """

    score: int
    squares: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class CutProblem:
    """Sentences to be cut into blocks of limited length.

    Attributes:
        lengths: int[n], tokens of each sentence.
        scores: int[n - 1], the score of the boundary after each sentence but the last.
        min_tokens, max_tokens: limits of a block's length.
    """

    lengths: tuple[int, ...]
    scores: tuple[int, ...]
    min_tokens: int
    max_tokens: int

    @cached_property
    def ends(self) -> list[int]:
        """int[n + 1], number of tokens before each boundary."""
        return [0, *accumulate(self.lengths)]

    @cached_property
    def cut_scores(self) -> list[int]:
        """int[n], score of a block that begins at each boundary; 0 for the first."""
        return [0, *self.scores]

    @cached_property
    def first_starts(self) -> list[int]:
        """int[n + 1], the first boundary at which a block that ends at each boundary may begin."""
        return _thresholds(self.ends, self.max_tokens)

    @cached_property
    def last_starts(self) -> list[int]:
        """int[n + 1], the last boundary at which a block that ends at each boundary may begin; -1 if there is none."""
        return [index - 1 for index in _thresholds(self.ends, self.min_tokens - 1)]

    def best_cuts(self, a: int, b: int) -> Iterator[tuple[int, Sums]]:
        """Yield for K = 1, 2, … the K blocks that maximise a * S - b * Q, where K blocks exist.

        Args:
            a, b: weights of the scores and of the squared lengths, not negative.
        """
        size = len(self.lengths)
        values: list[int | None] = [0] + [None] * size
        layers: list[list[int]] = []
        while any(value is not None for value in values):
            values, starts = self._next_layer(values, a, b, len(layers) + 1)
            layers.append(starts)
            if values[size] is not None:
                yield len(layers), self._trace_back(layers)

    def _next_layer(
        self, values: Sequence[int | None], a: int, b: int, blocks: int
    ) -> tuple[list[int | None], list[int]]:
        """Add one block: return the best value that ends at each boundary, and where its last block begins.

        The starts that a block may have slide with its end. Each batch of ends is split at one boundary: the starts up
        to it leave one by one, which is the arrival of starts read backwards, and those after it arrive one by one.
        """
        ends, size = self.ends, len(self.lengths)
        slopes = [2 * b * end for end in ends]
        lines = [
            None if value is None or start == size else value + a * self.cut_scores[start] - b * ends[start] ** 2
            for start, value in enumerate(values)
        ]
        best: list[int | None] = [None] * (size + 1)
        starts = [-1] * (size + 1)
        end = max(1, bisect_left(ends, blocks * self.min_tokens))
        final = bisect_right(ends, blocks * self.max_tokens) - 1
        while end <= final:
            split = self.last_starts[end]
            last = min(final, bisect_right(self.first_starts, split) - 1)
            if last < end:
                end += 1
                continue
            if self.first_starts[last] == self.first_starts[end]:  # no start leaves: all of them arrive one by one
                split = self.first_starts[end] - 1
            else:
                left = [(i, -ends[i], split - self.first_starts[i] + 1) for i in range(last, end - 1, -1)]
                mirrored = [-slope for slope in slopes[split::-1]]
                _raise_to_envelope(mirrored, lines[split::-1], left, best, starts, split, -1)
            right = [(i, ends[i], self.last_starts[i] - split) for i in range(end, last + 1)]
            reach = self.last_starts[last] + 1
            _raise_to_envelope(slopes[split + 1 : reach], lines[split + 1 : reach], right, best, starts, split + 1, 1)
            end = last + 1
        return [None if v is None else v - b * ends[i] ** 2 for i, v in enumerate(best)], starts

    def _trace_back(self, layers: Sequence[Sequence[int]]) -> Sums:
        """Return the blocks that end at the last boundary in the last layer."""
        score = squares = 0
        end, cuts = len(self.lengths), []
        for starts in reversed(layers):
            start = starts[end]
            score += self.cut_scores[start]
            squares += (self.ends[end] - self.ends[start]) ** 2
            cuts.append(start)
            end = start
        return Sums(score, squares, tuple(reversed(cuts)))


def _thresholds(ends: Sequence[int], distance: int) -> list[int]:
    """Return for each end the index of the first one that lies at most `distance` before it."""
    found, index = [], 0
    for end in ends:
        while end - ends[index] > distance:
            index += 1
        found.append(index)
    return found


def _raise_to_envelope(
    slopes: Sequence[int],
    offsets: Sequence[int | None],
    queries: Sequence[tuple[int, int, int]],
    best: list[int | None],
    starts: list[int],
    origin: int,
    step: int,
) -> None:
    """Raise the best values to the highest of the lines that count at each query.

    Args:
        slopes: slopes of the lines, not decreasing.
        offsets: the line at x = 0; None leaves the line out.
        queries: an index, x, and the number of lines that count; x and the number do not decrease.
        best: value by index; changed in place.
        starts: `origin` plus `step` times the number of the line, by index; changed in place.
        origin, step: see `starts`.
    """
    hull_slopes: list[int] = []
    hull_offsets: list[int] = []
    hull_lines: list[int] = []
    head = added = 0
    for index, x, available in queries:
        while added < available:
            slope, offset, line = slopes[added], offsets[added], added
            added += 1
            if offset is None:
                continue
            if len(hull_slopes) > head and hull_slopes[-1] == slope:
                if hull_offsets[-1] >= offset:
                    continue
                del hull_slopes[-1], hull_offsets[-1], hull_lines[-1]
            while len(hull_slopes) - head >= 2 and (offset - hull_offsets[-2]) * (
                hull_slopes[-1] - hull_slopes[-2]
            ) >= (hull_offsets[-1] - hull_offsets[-2]) * (slope - hull_slopes[-2]):
                del hull_slopes[-1], hull_offsets[-1], hull_lines[-1]
            hull_slopes.append(slope)
            hull_offsets.append(offset)
            hull_lines.append(line)
        if head == len(hull_slopes):
            continue
        value = hull_slopes[head] * x + hull_offsets[head]
        while head + 1 < len(hull_slopes):
            following = hull_slopes[head + 1] * x + hull_offsets[head + 1]
            if following < value:
                break
            value = following
            head += 1
        known = best[index]
        if known is None or value > known:
            best[index], starts[index] = value, origin + step * hull_lines[head]
