"""Segmentation of scored sentences into blocks, to the proven optimum.

The objective is that of the Memento paper (arXiv 2604.09852): S / K - lambda * std(l) / mean(l) for K blocks of l
tokens, where S is the sum of the scores at their boundaries. With L tokens in all and Q the sum of the squared lengths,
the second term is lambda * sqrt(K * Q / L^2 - 1). For fixed K the objective is convex in (S, Q), rises in S and falls
in Q, so its maximum lies on a vertex of the convex hull of all (S, Q), which maximises S - mu * Q for some penalty
mu >= 0. The search finds vertices between known ones in the order of their upper bounds, and ends when no bound exceeds
the best value.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, count, pairwise, takewhile

from ghosttrace.errors import UserError
from ghosttrace.pipeline.envelope import CutProblem, Sums
from ghosttrace.pipeline.rows import Certificate, Row, RowError

TOLERANCE = 1e-12  # of the objective, for rounding in floating point
MAX_SCORE_DENOMINATOR = 60
USUAL_BLOCK_TOKENS = 1150  # in the paper; only the first penalty depends on it


@dataclass(frozen=True)
class BlockLimits:
    """Limits of a segmentation.

    Attributes:
        min_tokens, max_tokens: limits of a block's length; None is unlimited. A shorter trace is one block.
        min_blocks, max_blocks: limits of the number of blocks; None is unlimited.
        spread_weight: lambda, the weight of uneven lengths.

    Raises:
        UserError: limits contradict each other.
    """

    min_tokens: int = 200
    max_tokens: int | None = None
    min_blocks: int = 1
    max_blocks: int | None = None
    spread_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or (self.max_tokens is not None and self.max_tokens < self.min_tokens):
            raise UserError("--min-block-tokens must be at least 1, and --max-block-tokens at least as many")
        if self.min_blocks < 1 or (self.max_blocks is not None and self.max_blocks < self.min_blocks):
            raise UserError("--min-blocks must be at least 1, and --max-blocks must be at least as many")
        if not 0 <= self.spread_weight < math.inf:
            raise UserError("--spread-weight must be at least 0")


@dataclass(frozen=True)
class Vertex:
    """A segmentation that maximises S - penalty * Q among those with as many blocks, or -Q alone if it is None."""

    penalty: Fraction | None
    sums: Sums

    @property
    def order(self) -> tuple[bool, Fraction]:
        """Sort key: by penalty, None last."""
        return self.penalty is None, self.penalty or Fraction(0)

    @property
    def point(self) -> tuple[int, int]:
        """S and Q."""
        return self.sums.score, self.sums.squares


def segment(row: Row, limits: BlockLimits) -> Row:
    """Cut the sentences of a row into the best blocks.

    Raises:
        RowError: the row has no scores, or no segmentation lies within the limits.
    """
    if not row.sentences or len(row.boundary_scores) != len(row.sentences) - 1:
        raise RowError("no boundary scores: run ghosttrace data score first")
    starts, certificate = best_segmentation(row.sentence_tokens, row.boundary_scores, limits)
    ends = [*starts[1:], len(row.sentences)]
    blocks = tuple((start, end - 1) for start, end in zip(starts, ends, strict=True))
    return replace(row, blocks=blocks, certificate=certificate)


def check_limits(row: Row, limits: BlockLimits) -> Row:
    """Return the row if some segmentation lies within the limits, whatever the scores.

    Raises:
        RowError: none does.
    """
    lengths, total = row.sentence_tokens, sum(row.sentence_tokens)
    shortest = min(limits.min_tokens, max(total, 1))
    problem = CutProblem(lengths, (0,) * (len(lengths) - 1), shortest, limits.max_tokens or total)
    most = limits.max_blocks or len(lengths)
    counts = takewhile(lambda blocks: blocks <= most, (blocks for blocks, _ in problem.best_cuts(0, 1)))
    if not any(blocks >= limits.min_blocks for blocks in counts):
        raise RowError(f"no segmentation: no cut gives blocks within {limits}")
    return row


def best_segmentation(
    lengths: Sequence[int], scores: Sequence[float], limits: BlockLimits
) -> tuple[tuple[int, ...], Certificate]:
    """Return the best segmentation within limits, and the proof that it is.

    Args:
        lengths: int[n], tokens of each sentence.
        scores: float[n - 1], scores of the boundaries between them; fractions with a denominator of at most 60.
        limits: limits of the blocks.

    Returns:
        The index of the first sentence of each block, and the certificate.

    Raises:
        RowError: no segmentation lies within the limits.
    """
    search = _Search(lengths, scores, limits)
    search.run()
    if search.best is None:
        raise RowError(f"no segmentation: no cut gives blocks within {limits}")
    certificate = Certificate(
        objective=search.value,
        bound=search.bound,
        slopes=search.passes,
        **{name: getattr(limits, name) for name in ("spread_weight", "min_tokens", "max_tokens")},
        **{name: getattr(limits, name) for name in ("min_blocks", "max_blocks")},
    )
    return search.best.starts, certificate


def objective(lengths: Sequence[int], boundary_scores: Sequence[float], spread_weight: float) -> float:
    """Return the objective of given blocks.

    Args:
        lengths: tokens of each of K blocks.
        boundary_scores: scores of the K - 1 boundaries between them.
        spread_weight: lambda.
    """
    blocks, total = len(lengths), sum(lengths)
    spread = (blocks * sum(length * length for length in lengths) - total * total) / (total * total)
    return sum(boundary_scores) / blocks - spread_weight * math.sqrt(spread)


class _Search:
    """Best-first search over the edges of the convex hulls, one hull for each number of blocks.

    Attributes:
        best, value: the best segmentation so far and its objective.
        bound: upper bound of all others when the search ends.
        passes: number of penalties tried.
    """

    def __init__(self, lengths: Sequence[int], scores: Sequence[float], limits: BlockLimits) -> None:
        fractions = [Fraction(score).limit_denominator(MAX_SCORE_DENOMINATOR) for score in scores]
        self.scale = math.lcm(*(fraction.denominator for fraction in fractions))
        integers = tuple(int(fraction * self.scale) for fraction in fractions)
        self.total = sum(lengths)
        shortest = min(max(limits.min_tokens, 1), self.total)
        self.limits = limits
        self.problem = CutProblem(tuple(lengths), integers, shortest, limits.max_tokens or self.total)
        highest = sorted(integers, reverse=True)
        most = min(len(lengths), self.total // max(shortest, 1), limits.max_blocks or len(lengths))
        self.most_blocks = most
        self.highest_sums = [0, *accumulate(highest)][: max(most, 1)]
        self.hulls: dict[int, list[Vertex]] = {}
        self.edges: list[tuple[float, int, int, Vertex, Vertex]] = []
        self.best: Sums | None = None
        self.value = self.bound = -math.inf
        self.passes = 0
        self.counter = count()

    def run(self) -> None:
        """Search until no edge can hide a better segmentation."""
        usual = max(2, self.total // USUAL_BLOCK_TOKENS)
        weight = Fraction(self.limits.spread_weight).limit_denominator(1000)
        penalty = weight * self.scale * usual**2 / self.total**2
        self._maximise(penalty)  # a good value early leaves fewer numbers of blocks to search
        if penalty:
            self._drop_hopeless(lambda blocks: self._first_bound(blocks, penalty))
        self._maximise(Fraction(0))
        self._maximise(None)
        for blocks, hull in self.hulls.items():
            for left, right in pairwise(hull):
                self._push(blocks, left, right)
        while self.edges and -self.edges[0][0] > self.value + TOLERANCE:
            _, _, blocks, left, right = heapq.heappop(self.edges)
            if (left, right) in pairwise(self.hulls[blocks]):  # else a pass for other numbers of blocks has split it
                gained, paid = (a - b for a, b in zip(left.point, right.point, strict=True))
                alive = [edge[2] for edge in self.edges if -edge[0] > self.value + TOLERANCE]
                self.most_blocks = max([blocks, *alive])
                self._maximise(Fraction(gained, paid))
        self.bound = max(self.value, -self.edges[0][0]) if self.edges else self.value

    def _highest(self, blocks: int) -> float:
        """Return an upper bound of the objective: the mean of the highest scores."""
        return self.highest_sums[blocks - 1] / self.scale / blocks

    def _drop_hopeless(self, bound: Callable[[int], float]) -> None:
        """Leave out the largest numbers of blocks as long as their upper bound does not exceed the best value."""
        while self.most_blocks in self.hulls and bound(self.most_blocks) <= self.value:
            self.most_blocks -= 1

    def _first_bound(self, blocks: int, penalty: Fraction) -> float:
        """Return an upper bound of the objective from one vertex, the highest scores, and equal lengths."""
        vertex = self.hulls[blocks][0].sums
        offset = vertex.score - penalty * vertex.squares
        most, least = Fraction(self.highest_sums[blocks - 1]), Fraction(self.total**2, blocks)
        return max(
            self._objective(blocks, most, max(least, (most - offset) / penalty)),
            self._objective(blocks, min(most, offset + penalty * least), least),
        )

    def _maximise(self, penalty: Fraction | None) -> None:
        """Find the best segmentations for a penalty on unevenness and every number of blocks that can still win."""
        self.passes += 1
        weights = (0, 1) if penalty is None else (penalty.denominator, penalty.numerator)
        for blocks, sums in self.problem.best_cuts(*weights):
            while self.most_blocks and self._highest(self.most_blocks) <= self.value:
                self.most_blocks -= 1
            if blocks > self.most_blocks:
                break
            if blocks < self.limits.min_blocks:
                continue
            value = self._objective(blocks, sums.score, sums.squares)
            if value > self.value:
                self.best, self.value = sums, value
            self._insert(blocks, Vertex(penalty, sums))

    def _insert(self, blocks: int, vertex: Vertex) -> None:
        """Insert a vertex into its hull in the order of penalties, and queue the two edges that it makes of one."""
        hull = self.hulls.setdefault(blocks, [])
        index = sum(known.order < vertex.order for known in hull)
        if index < len(hull) and hull[index].order == vertex.order:
            return
        hull.insert(index, vertex)
        if 0 < index < len(hull) - 1:
            left, right = hull[index - 1], hull[index + 1]
            self._push(blocks, left, vertex)
            self._push(blocks, vertex, right)

    def _push(self, blocks: int, left: Vertex, right: Vertex) -> None:
        """Queue an edge with the upper bound of what it hides: the objective where its two support lines meet."""
        if left.point[0] == right.point[0] or left.point[1] == right.point[1]:
            return
        assert left.penalty is not None
        offset = left.sums.score - left.penalty * left.sums.squares
        if right.penalty is None:
            squares = Fraction(right.sums.squares)
        else:
            squares = (right.sums.score - right.penalty * right.sums.squares - offset) / (left.penalty - right.penalty)
        bound = self._objective(blocks, offset + left.penalty * squares, squares)
        heapq.heappush(self.edges, (-bound, next(self.counter), blocks, left, right))

    def _objective(self, blocks: int, score: Fraction | int, squares: Fraction | int) -> float:
        spread = (blocks * squares - self.total**2) / self.total**2
        return float(score) / self.scale / blocks - self.limits.spread_weight * math.sqrt(max(0.0, float(spread)))
