"""The placebo of LEACE: as many directions removed at the same sites, at random."""

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

STREAM = 0xD12EC7  # apart from other draws


@dataclass(frozen=True)
class RandomDirectionDefence(Defence):
    """What LEACE's removal does to a model if it removes nothing in particular.

    Attributes:
        seed: of the directions.
    """

    name = "random-direction"
    summary = "placebo of leace: as many random directions removed at the same places"
    usage = "random-direction or random-direction:SEED"
    seed: int = 0

    @classmethod
    def of(cls, options: str) -> Self:
        found = cls.parse_integers(options)
        if len(found) > 1:
            raise cls.option_error(options)
        return cls(*found)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return RandomDirection()

    def fit(self, checkpoint: Checkpoint, task: Task, split: Split) -> Arm:
        self.check(checkpoint)
        draws = torch.Generator().manual_seed(STREAM + self.seed)
        removals, numbers = fit_removals(checkpoint, task, split.train)
        at_random = tuple((_at_random(keys, draws), _at_random(values, draws)) for keys, values in removals)
        return RandomDirection(at_random, numbers)


def _at_random(removal: DirectionRemoval, draws: torch.Generator) -> DirectionRemoval:
    """Orthogonal projections around the same means, of the same ranks."""
    left = torch.zeros_like(removal.left)
    for place, rank in enumerate(removal.ranks):
        directions = torch.randn(left.shape[1], rank, generator=draws, dtype=left.dtype)
        left[place, :, :rank] = torch.linalg.qr(directions)[0].to(left)
    return DirectionRemoval(left, left.transpose(1, 2), removal.mean)
