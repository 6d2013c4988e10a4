"""No defence: the cache as the model leaves it."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm, Memento
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class NoDefence(Defence):
    """Blocks are evicted and nothing else is done."""

    name = "none"
    summary = "no defence: the cache as the model leaves it"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Memento()
