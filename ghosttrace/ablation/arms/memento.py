"""`memento`: normal memento attention with the channel open, as in the model's training."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class Memento(Arm):
    """Arm with normal memento attention: blocks are erased, and mementos keep the states computed from them."""

    name = "memento"
    summary = "normal memento attention, the reference for every effect"
    colour = "#1b6e53"
    default = True

    def adapt_policy(self, policy: Policy) -> Policy:
        return policy
