"""Block delimiters evicted with their block."""

from dataclasses import dataclass

from ghosttrace.audit.defences.defence import Defence
from ghosttrace.channel import Arm
from ghosttrace.channel.drop_delimiters import DropDelimiters
from ghosttrace.checkpoint import Checkpoint
from ghosttrace.errors import UserError


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
