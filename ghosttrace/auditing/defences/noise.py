"""The defence `noise`: Gaussian noise on the retained states of each block and its memento."""

from dataclasses import dataclass
from math import inf
from typing import Self

from ghosttrace.ablation.arms import Arm, Noise
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class NoiseDefence(Defence):
    """Defence that adds Gaussian noise. Its measured effect is no privacy guarantee: see the caveat.

    Attributes:
        size: Standard deviation of the noise, relative to the root mean square of the states.
    """

    name = "noise"
    summary = "Gaussian noise on the mementos' states; no privacy claim, as nothing is clipped or accounted for"
    caveat = "Noise without clipping and accounting carries no privacy guarantee, whatever was measured."
    usage = "noise:SIZE with a size of at least 0, such as noise:0.5"
    size: float = 0.5

    @classmethod
    def from_options(cls, options: str) -> Self:
        try:
            size = float(options)
        except ValueError as error:
            raise cls.option_error(options) from error
        if not 0 <= size < inf:
            raise cls.option_error(options)
        return cls(size)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Noise(self.size)
