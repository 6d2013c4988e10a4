"""`restart-renumbered`: restart as one fresh prefill of the retained text, positions closed up."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class RestartRenumbered(Arm):
    """The channel closed, the lengths of the erased blocks included."""

    name = "restart-renumbered"
    summary = "the same with positions closed up, as one fresh prefill of the retained text"
    headline = "Closing the channel and its gaps"
    colour = "#d77a61"
    priority = 7
    sealed = True
    caches = 2
    default = True

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, Part(), renumber=True)
