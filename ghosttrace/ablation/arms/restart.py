"""`restart`: everything retained recomputed with every erased block absent, absolute positions kept."""

from dataclasses import dataclass, field

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class Restart(Arm):
    """The channel closed; only the lengths of the erased blocks still show, through the gaps in the positions.

    Attributes:
        part: what is recomputed; all of it by default.
    """

    name = "restart"
    summary = "retained tokens recomputed with every block absent, positions kept: the channel closed"
    headline = "Closing the channel"
    colour = "#b3392f"
    priority = 9
    sealed = True
    caches = 2
    default = True
    options = ("part",)
    part: Part = field(default_factory=Part)

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, self.part)
