"""`memento`: the law as it is, with the channel open; under Memento's law, as in the model's training."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class Memento(Arm):
    """Arm with normal erasure: what the law erases leaves, and what stays keeps the states computed from it."""

    name = "memento"
    summary = "normal memento attention, the reference for every effect"
    colour = "#1b6e53"
    default = True
    any_law = True

    def adapt_policy(self, policy: Policy) -> Policy:
        return policy
