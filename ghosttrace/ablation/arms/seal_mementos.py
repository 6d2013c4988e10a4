"""`seal-mementos`: only the mementos are recomputed."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.restart import Restart
from ghosttrace.ablation.arms.sealer import Sealer
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class SealMementos(Restart):
    """Arm that recomputes only the mementos."""

    name = "seal-mementos"
    summary = "only the mementos recomputed"
    headline = "Sealing the mementos"
    colour = "#6a51a3"
    any_law = False
    priority = 5
    sealed = False
    default = False

    def eraser(self, session: Session) -> Eraser:
        return Sealer(session, self.part.of_carrier("mementos"))
