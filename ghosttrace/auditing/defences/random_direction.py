"""The defence `random-direction`, the placebo of `leace`: as many random directions are removed at the same sites."""

from dataclasses import dataclass
from typing import Self

import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.ablation.arms.leace import DirectionRemoval
from ghosttrace.ablation.arms.random_direction import RandomDirection
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.auditing.defences.leace import fit_removals
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split

STREAM = 0xD12EC7  # separates these random numbers from all others


@dataclass(frozen=True)
class RandomDirectionDefence(Defence):
    """Defence that measures the effect of removing directions that were not fitted to the secrets.

    Attributes:
        seed: Random seed of the directions.
    """

    name = "random-direction"
    summary = "placebo of leace: as many random directions removed at the same tokens and layers"
    usage = "random-direction or random-direction:SEED"
    seed: int = 0

    @classmethod
    def from_options(cls, options: str) -> Self:
        values = cls.parse_integers(options)
        if len(values) > 1:
            raise cls.option_error(options)
        return cls(*values)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return RandomDirection()

    def fit(self, checkpoint: Checkpoint, task: Task, split: Split) -> Arm:
        self.check(checkpoint)
        generator = torch.Generator().manual_seed(STREAM + self.seed)
        removals, block_numbers = fit_removals(checkpoint, task, split.train)
        random_removals = tuple(
            (_random_removal(keys, generator), _random_removal(values, generator)) for keys, values in removals
        )
        return RandomDirection(random_removals, block_numbers)


def _random_removal(removal: DirectionRemoval, generator: torch.Generator) -> DirectionRemoval:
    """Return random orthogonal projections with the same means and ranks."""
    left = torch.zeros_like(removal.left)
    for number, rank in enumerate(removal.ranks):
        directions = torch.randn(left.shape[1], rank, generator=generator, dtype=left.dtype)
        left[number, :, :rank] = torch.linalg.qr(directions)[0].to(left)
    return DirectionRemoval(left, left.transpose(1, 2), removal.mean)
