"""The defence `drop-delimiters`: block delimiters are erased with their block."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm
from ghosttrace.ablation.arms.drop_delimiters import DropDelimiters
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class DropDelimitersDefence(Defence):
    """Defence for policies that keep delimiters, whose keys and values were computed while the block was visible."""

    name = "drop-delimiters"
    summary = "delimiters that the policy keeps are evicted with their block; mementos are unchanged"

    def check(self, checkpoint: Checkpoint) -> None:
        if checkpoint.policy.mask_delimiters:
            raise UserError("drop-delimiters has no effect here, as the policy already erases delimiters: give none")
        super().check(checkpoint)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return DropDelimiters()
