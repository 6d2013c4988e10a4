"""`noise`: the carriers' keys and values perturbed."""

from dataclasses import dataclass

import numpy as np
import torch

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.memento import Memento
from ghosttrace.law.markup import Block
from ghosttrace.model.sampling import random_stream
from ghosttrace.model.session import Eraser, RowErasures, Session


class Perturber(Eraser):
    """Adds Gaussian noise to what is retained of each block and memento when the block expires."""

    def __init__(self, session: Session, size: float) -> None:
        super().__init__(session)
        self.size = size

    def erase(self, hits: list[RowErasures]) -> None:
        super().erase(hits)
        for hit in hits:
            for block in hit.blocks:
                self._perturb(hit.row, block)

    def _perturb(self, row: int, block: Block) -> None:
        held = self.session.cache.held_indices(row)
        slots = torch.from_numpy(np.flatnonzero((held >= block.start) & (held <= block.memento_end)))
        draws = random_stream(*self.session.rows[row].key, block.start)
        for layer in self.session.cache.layers:
            for states in (layer.keys, layer.values):
                part = states[row, :, slots]
                drawn = torch.from_numpy(draws.standard_normal(part.shape)).to(part)
                states[row, :, slots] = part + self.size * part.square().mean().sqrt() * drawn


@dataclass(frozen=True)
class Noise(Arm):
    """Gaussian noise on the retained keys and values of each erased block and its memento.

    Attributes:
        size: standard deviation, relative to the root mean square of the states it is added to.
    """

    name = "noise"
    summary = "Gaussian noise on the carriers' keys and values"
    headline = "Adding noise to what is retained"
    colour = "#555555"
    priority = 2
    options = ("size",)
    size: float = 0.5

    def without_noise(self) -> Arm:
        return Memento()

    def eraser(self, session: Session) -> Eraser:
        return Perturber(session, self.size)
