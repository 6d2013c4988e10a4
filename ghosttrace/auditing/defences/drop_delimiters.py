"""Block delimiters evicted with their block."""

from dataclasses import dataclass

from ghosttrace.ablation.arms import Arm
from ghosttrace.ablation.arms.drop_delimiters import DropDelimiters
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class DropDelimitersDefence(Defence):
    """For models that keep their delimiters, which have seen the block."""

    name = "drop-delimiters"
    summary = "delimiters that the policy keeps are evicted with their block; mementos stay as they are"

    def check(self, checkpoint: Checkpoint) -> None:
        if checkpoint.policy.mask_delimiters:
            raise UserError("drop-delimiters changes nothing here: this policy erases them already, so give none")
        super().check(checkpoint)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return DropDelimiters()
