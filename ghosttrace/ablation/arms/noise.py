"""`noise`: the carriers' keys and values with Gaussian noise."""

from dataclasses import dataclass

import numpy as np
import torch

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.memento import Memento
from ghosttrace.law.markup import Block
from ghosttrace.model.sampling import random_stream
from ghosttrace.model.session import Eraser, RowErasures, Session


class Perturber(Eraser):
    """Eraser that adds Gaussian noise to the retained tokens of each block and its memento when the block expires."""

    def __init__(self, session: Session, size: float) -> None:
        super().__init__(session)
        self.size = size

    def erase(self, erasures: list[RowErasures]) -> None:
        """Erase as usual, then add noise to the retained tokens of each erased block and its memento."""
        super().erase(erasures)
        for row_erasures in erasures:
            for block in row_erasures.blocks:
                self._perturb(row_erasures.row, block)

    def _perturb(self, row: int, block: Block) -> None:
        held = self.session.cache.held_indices(row)
        slots = torch.from_numpy(np.flatnonzero((held >= block.start) & (held <= block.memento_end)))
        rng = random_stream(*self.session.rows[row].key, block.start)
        for layer in self.session.cache.layers:
            for states in (layer.keys, layer.values):
                part = states[row, :, slots]
                noise = torch.from_numpy(rng.standard_normal(part.shape)).to(part)
                states[row, :, slots] = part + self.size * part.square().mean().sqrt() * noise


@dataclass(frozen=True)
class Noise(Arm):
    """Arm that adds Gaussian noise to the retained keys and values of each erased block and its memento.

    Attributes:
        size: Standard deviation of the noise, relative to the root mean square of the states.
    """

    name = "noise"
    summary = "Gaussian noise on the carriers' keys and values"
    headline = "Adding noise to retained states"
    colour = "#555555"
    priority = 2
    options = ("size",)
    size: float = 0.5

    def without_noise(self) -> Arm:
        return Memento()

    def eraser(self, session: Session) -> Eraser:
        return Perturber(session, self.size)
