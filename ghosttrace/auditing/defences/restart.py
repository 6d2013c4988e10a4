"""Everything retained recomputed without the erased blocks, under both position rules."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm, Restart, RestartRenumbered
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class RestartDefence(Defence):
    """The channel closed by construction, but for how long each block was."""

    name = "restart"
    summary = "retained tokens recomputed without the blocks, positions kept: only block lengths still show"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Restart()


@dataclass(frozen=True)
class RestartRenumberedDefence(Defence):
    """The channel closed by construction, lengths included."""

    name = "restart-renumbered"
    summary = "retained tokens recomputed without the blocks, positions closed up: nothing but the text is left"

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return RestartRenumbered()
