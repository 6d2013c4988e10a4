"""`memento`: the channel open, as the model was trained to be used."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.law.expiry import Policy


@dataclass(frozen=True)
class Memento(Arm):
    """Normal memento attention: blocks leave the cache, mementos keep what they computed from them."""

    name = "memento"
    summary = "normal memento attention: the reference of every effect"
    colour = "#1b6e53"
    default = True

    def adapt_policy(self, policy: Policy) -> Policy:
        return policy
