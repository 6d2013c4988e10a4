"""`placebo`: recomputation on the schedule of `restart`, with the blocks visible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.model.session import Eraser, RowErasures, Session


class PlaceboEraser(Eraser):
    """Eraser that recomputes the same tokens as `restart`, but before anything is erased.

    Its effect is that of floating-point differences alone. Tokens from before the last erasure are not recomputed,
    because some tokens that they attended to have been erased; under Memento's law there are such tokens only with
    `keep_last_n_blocks` above 0.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._last_erasure = [0] * len(session.rows)  # tokens processed at the last erasure

    def select(self, rows: Sequence[int]) -> None:
        self._last_erasure = [self._last_erasure[row] for row in rows]

    def join(self, other: Self) -> None:
        self._last_erasure += other._last_erasure

    def erase(self, erasures: list[RowErasures]) -> None:
        session, rows = self.session, [row_erasures.row for row_erasures in erasures]
        recomputed = session.cache.copy_rows(rows)
        indices = []
        for copy_row, row_erasures in enumerate(erasures):
            row, held = row_erasures.row, recomputed.held_indices(copy_row)
            retained = held[(held >= row_erasures.carriers_start) & ~np.isin(held, row_erasures.keys)]
            first = int(retained[retained >= self._last_erasure[row]].min())
            indices.append(held[held >= first].copy())
            recomputed.truncate(copy_row, first)
            self._last_erasure[row] = session.rows[row].num_processed
        runs = [[session.rows[row].tokens[k] for k in index] for row, index in zip(rows, indices, strict=True)]
        logits = session.forward(recomputed, runs, indices, indices)
        session.cache.replace_rows(rows, recomputed)
        for copy_row, row in enumerate(rows):
            session.logits[row] = logits[copy_row][-1]
        super().erase(erasures)


@dataclass(frozen=True)
class PlaceboArm(Arm):
    """Control arm that recomputes the mementos with their block visible."""

    name = "placebo"
    summary = "mementos recomputed with their block visible, on restart's schedule: the effect of numerics alone"
    colour = "#57a773"
    control = True
    default = True
    any_law = True

    def eraser(self, session: Session) -> Eraser:
        return PlaceboEraser(session)
