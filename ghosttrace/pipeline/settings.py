"""Settings of the pipeline."""

import math
from dataclasses import dataclass

from ghosttrace.errors import UserError
from ghosttrace.pipeline.rows import Memento

MIN_BUDGET = 40  # tokens that any memento may have


@dataclass(frozen=True)
class Quality:
    """When a memento is accepted.

    Attributes:
        threshold: points of the judge, of 10.
        rounds: how often a memento is rewritten that was not accepted.
        max_share: tokens of a memento, as a share of its block's; at least 40 tokens are allowed.
    """

    threshold: int = 8
    rounds: int = 2
    max_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 10 or self.rounds < 0 or not 0 < self.max_share <= 1:
            raise UserError(
                "--threshold must be from 0 to 10, --rounds at least 0, and --max-share more than 0 and at most 1"
            )

    def accepts(self, memento: Memento) -> bool:
        """Return whether the judge's points suffice and code found no problem."""
        return memento.score >= self.threshold and not memento.problems

    def budget(self, block_tokens: int) -> int:
        """Return the number of tokens that the memento of a block may have."""
        return max(MIN_BUDGET, math.ceil(self.max_share * block_tokens))
