"""The defences `restart` and `restart-renumbered`: retained tokens are recomputed without the erased blocks."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm, Restart, RestartRenumbered
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class RestartDefence(Defence):
    """Defence that closes the ghost channel by construction, except for the length of each block."""

    name = "restart"
    summary = "retained tokens recomputed without the blocks, positions kept: only block lengths remain visible"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Restart()


@dataclass(frozen=True)
class RestartRenumberedDefence(Defence):
    """Defence that closes the ghost channel by construction, block lengths included."""

    name = "restart-renumbered"
    summary = "retained tokens recomputed without the blocks, positions closed up: only the text remains"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return RestartRenumbered()
