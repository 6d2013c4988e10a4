"""`rerotated`: the position effect alone."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.model.rotary import check_rotary, rerotate
from ghosttrace.model.session import Eraser, RowErasures, Session


class Rerotator(Eraser):
    """Rotates what is left to closed-up positions, contents untouched."""

    def erase(self, hits: list[RowErasures]) -> None:
        super().erase(hits)
        session = self.session
        for hit in hits:
            length = int(session.cache.slots.length[hit.row])
            rerotate(session.model, session.cache, hit.row, np.arange(length))
            session.rows[hit.row].position_shift = session.rows[hit.row].num_processed - length


@dataclass(frozen=True)
class Rerotated(Arm):
    """Normal keys and values, the keys re-rotated to closed-up positions."""

    name = "rerotated"
    summary = "normal keys and values at closed-up positions: what moving alone does"
    headline = "Closing up positions"
    colour = "#d8a24a"
    priority = 3
    default = True

    def check(self, model: PreTrainedModel) -> None:
        check_rotary(model)

    def eraser(self, session: Session) -> Eraser:
        return Rerotator(session)
