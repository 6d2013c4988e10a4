"""The defence `none`: the cache is left unchanged."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm, Memento
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class NoDefence(Defence):
    """Defence that only evicts expired blocks, as in normal memento attention."""

    name = "none"
    summary = "no defence: the cache as the model leaves it"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Memento()
