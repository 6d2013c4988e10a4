"""`restart-renumbered`: `restart` as one prefill of the retained text, with closed-up positions."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class RestartRenumbered(Arm):
    """Arm that closes the channel and also hides the lengths of the erased blocks."""

    name = "restart-renumbered"
    summary = "restart as one prefill of the retained text, with closed-up positions"
    headline = "Closing the channel and its gaps"
    colour = "#d77a61"
    priority = 7
    sealed = True
    caches = 2
    default = True
    any_law = True

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, Part(), renumber=True)
