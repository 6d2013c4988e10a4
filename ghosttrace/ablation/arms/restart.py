"""`restart`: all retained tokens recomputed without the erased blocks, absolute positions kept."""

from dataclasses import dataclass, field

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class Restart(Arm):
    """Arm that closes the channel: retained keys and values are recomputed from the retained text.

    The gaps in the positions still reveal the lengths of the erased blocks.

    Attributes:
        part: The part of the cache that is recomputed; the whole cache by default.
    """

    name = "restart"
    summary = "retained tokens recomputed without the erased blocks, positions kept: the channel is closed"
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
