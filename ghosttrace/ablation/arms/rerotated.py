"""`rerotated`: the effect of closed-up positions alone."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.model.rotary import check_rotary, rerotate
from ghosttrace.model.session import Eraser, RowErasures, Session


class Rerotator(Eraser):
    """Eraser that re-rotates the retained keys to closed-up positions and changes nothing else."""

    def erase(self, erasures: list[RowErasures]) -> None:
        super().erase(erasures)
        session = self.session
        for row_erasures in erasures:
            row = row_erasures.row
            length = int(session.cache.slots.length[row])
            rerotate(session.model, session.cache, row, np.arange(length))
            session.rows[row].position_shift = session.rows[row].num_processed - length


@dataclass(frozen=True)
class Rerotated(Arm):
    """Arm with normal keys and values, the keys re-rotated to closed-up positions."""

    name = "rerotated"
    summary = "normal keys and values at closed-up positions: the position effect alone"
    headline = "Closing up positions"
    colour = "#d8a24a"
    priority = 3
    default = True
    any_law = True

    def check(self, model: PreTrainedModel) -> None:
        check_rotary(model)

    def eraser(self, session: Session) -> Eraser:
        return Rerotator(session)
