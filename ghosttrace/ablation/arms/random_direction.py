"""`random-direction`: the placebo of `leace`, which removes the same number of random directions."""

from dataclasses import dataclass

from ghosttrace.ablation.arms.leace import Leace


@dataclass(frozen=True, eq=False)
class RandomDirection(Leace):
    """Arm that removes random directions, which measures the cost of removal as such."""

    name = "random-direction"
    summary = "placebo of leace: the same number of random directions removed from the mementos' keys and values"
