"""`restart`: all retained tokens recomputed without the erased blocks, absolute positions kept."""

from dataclasses import dataclass, field

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.part import Part
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.law import Law
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
    any_law = True
    options = ("part",)
    part: Part = field(default_factory=Part)

    def adapt_law(self, law: Law) -> Law:
        if self.part.carrier is not None and not isinstance(law, MementoLaw):
            raise UserError(f"the law {law.spec} has no {self.part.carrier} to seal: leave out the carrier of the part")
        return super().adapt_law(law)

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, self.part)
