"""`placebo`: recomputation by the schedule of `restart`, with the blocks visible."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.model.session import Eraser, RowErasures, Session


class PlaceboEraser(Eraser):
    """Recomputes what `restart` recomputes, before the block leaves: what numerics alone do.

    With `keep_last_n_blocks` above 0, tokens from before the last erasure are left alone: what they
    saw is no longer there to be seen again.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._since = [0] * len(session.rows)

    def select(self, rows: Sequence[int]) -> None:
        self._since = [self._since[row] for row in rows]

    def erase(self, hits: list[RowErasures]) -> None:
        session, rows = self.session, [hit.row for hit in hits]
        again = session.cache.copy_rows(rows)
        index = []
        for place, hit in enumerate(hits):
            held, keys = again.held_indices(place), hit.keys
            stays = held[(held > hit.erasures[0].block.start) & ~np.isin(held, keys)]
            first = int(stays[stays >= self._since[hit.row]].min())
            index.append(held[held >= first].copy())
            again.truncate(place, first)
            self._since[hit.row] = session.rows[hit.row].num_processed
        runs = [[session.rows[row].tokens[k] for k in places] for row, places in zip(rows, index, strict=True)]
        logits = session.forward(again, runs, index, index)
        session.cache.replace_rows(rows, again)
        for place, row in enumerate(rows):
            session.logits[row] = logits[place][-1]
        super().erase(hits)


@dataclass(frozen=True)
class PlaceboArm(Arm):
    """The mementos recomputed with their block visible."""

    name = "placebo"
    summary = "mementos recomputed with their block visible, by restart's schedule: numerics alone"
    colour = "#57a773"
    control = True
    default = True

    def eraser(self, session: Session) -> Eraser:
        return PlaceboEraser(session)
