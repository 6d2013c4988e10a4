"""`random-direction`: the placebo of `leace`, which removes as many directions at random."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.leace import Leace


@dataclass(frozen=True, eq=False)
class RandomDirection(Leace):
    """As many random directions removed: what removing costs, whatever is removed."""

    name = "random-direction"
    summary = "placebo of leace: as many random directions removed from the mementos' keys and values"
