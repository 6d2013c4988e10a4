"""`noise`: the carriers' keys and values with Gaussian noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.memento import Memento
from ghosttrace.law.expiry import BlockErasure
from ghosttrace.model.sampling import random_stream
from ghosttrace.model.session import Eraser, RowErasures, Session


class Perturber(Eraser):
    """Eraser that adds Gaussian noise to each carrier, once.

    Under Memento's law, the retained tokens of each erased block and its memento are perturbed when the block expires.
    Under another law, the carriers of an erasure are perturbed, except those that an earlier erasure has perturbed.
    """

    def __init__(self, session: Session, size: float) -> None:
        super().__init__(session)
        self.size = size
        self._perturbed = [0] * len(session.rows)  # tokens read at the last perturbation

    def select(self, rows: Sequence[int]) -> None:
        self._perturbed = [self._perturbed[row] for row in rows]

    def join(self, other: Self) -> None:
        self._perturbed += other._perturbed

    def erase(self, erasures: list[RowErasures]) -> None:
        """Erase as usual, then perturb the carriers."""
        super().erase(erasures)
        for row, row_erasures in erasures:
            others = [erasure.carriers for erasure in row_erasures if not isinstance(erasure, BlockErasure)]
            for erasure in row_erasures:
                if isinstance(erasure, BlockErasure):
                    block = erasure.block
                    self._perturb(row, range(block.start, block.memento_end + 1), block.start)
            if others:  # what leaves at one time has carriers in common, which are perturbed once
                fresh = range(max(min(each.start for each in others), self._perturbed[row]), others[0].stop)
                self._perturb(row, fresh, fresh.stop)
            self._perturbed[row] = self.session.rows[row].num_processed

    def _perturb(self, row: int, carriers: range, stream: int) -> None:
        """Add noise to the retained tokens of a range; the random stream has the row's key and a number."""
        held = self.session.cache.held_indices(row)
        slots = torch.from_numpy(np.flatnonzero((held >= carriers.start) & (held < carriers.stop)))
        rng = random_stream(*self.session.rows[row].key, stream)
        for layer in self.session.cache.layers:
            for states in (layer.keys, layer.values):
                part = states[row, :, slots]
                noise = torch.from_numpy(rng.standard_normal(part.shape)).to(part)
                states[row, :, slots] = part + self.size * part.square().mean().sqrt() * noise


@dataclass(frozen=True)
class Noise(Arm):
    """Arm that adds Gaussian noise to the carriers: the retained keys and values that could see what is erased.

    Attributes:
        size: Standard deviation of the noise, relative to the root mean square of the states.
    """

    name = "noise"
    summary = "Gaussian noise on the carriers' keys and values"
    headline = "Adding noise to retained states"
    colour = "#555555"
    priority = 2
    options = ("size",)
    any_law = True
    size: float = 0.5

    def without_noise(self) -> Arm:
        return Memento()

    def eraser(self, session: Session) -> Eraser:
        return Perturber(session, self.size)
