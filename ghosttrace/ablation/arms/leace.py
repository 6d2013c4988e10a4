"""`leace`: directions removed from the mementos' keys and values.

Which directions is up to whoever makes the arm: for `leace` those in which a linear probe can tell a
concept (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819).
The tokens of the text and the kept delimiters are left alone, and so is what is not linear.

The next token is then predicted by reading the last one again: its hidden state saw the block.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ghosttrace.ablation.arms.arm import Arm
from ghosttrace.ablation.arms.sealer import recompute_last_tokens
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.session import Eraser, RowErasures, Session


@dataclass(frozen=True, eq=False)
class DirectionRemoval:
    """An affine map that removes directions: x - left @ right @ (x - mean), at each place of a memento.

    Attributes:
        left: float[P, d, r], with d the heads' dimensions side by side; P is 1 if all tokens are treated alike.
        right: float[P, r, d].
        mean: float[P, d].
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    @property
    def ranks(self) -> list[int]:
        """How many directions are removed at each place."""
        return [int((right.abs().amax(1) > 0).sum()) for right in self.right]

    def __call__(self, states: Tensor, places: Tensor) -> Tensor:
        """The states, float[n, d], without the directions.

        Args:
            states: of n memento tokens.
            places: int64[n], counted from `<|summary_start|>`; those beyond the last are treated as the last.
        """
        places = places.clamp(max=len(self.mean) - 1)
        cleaned = states.to(self.mean, copy=True)
        for place in places.unique().tolist():
            here = places == place
            along = (cleaned[here] - self.mean[place]) @ self.right[place].T
            cleaned[here] = cleaned[here] - along @ self.left[place].T
        return cleaned.to(states)


LayerRemovals = tuple[tuple[DirectionRemoval, DirectionRemoval], ...]
"""For each layer, of keys and of values."""


class DirectionRemover(Eraser):
    """Removes directions from the keys and values of chosen mementos when their blocks expire."""

    def __init__(self, session: Session, removals: LayerRemovals, block_indices: tuple[int, ...]) -> None:
        super().__init__(session)
        self.removals, self.block_indices = removals, block_indices

    def erase(self, hits: list[RowErasures]) -> None:
        super().erase(hits)
        cache = self.session.cache
        found = []  # (row, slot, place in the memento) of every token to be cleaned
        for hit in hits:
            held, blocks = cache.held_indices(hit.row), self.session.rows[hit.row].tracker.blocks
            for block in hit.blocks:
                if blocks.index(block) in self.block_indices:
                    slots = np.flatnonzero((held >= block.memento_start) & (held <= block.memento_end))
                    found += [(hit.row, int(slot), int(held[slot]) - block.memento_start) for slot in slots]
        if not found:
            return
        rows, slots, places = torch.tensor(found, device=self.session.model.device).T
        for layer, removals in zip(cache.layers, self.removals, strict=True):
            for states, removal in zip((layer.keys, layer.values), removals, strict=True):
                before = states[rows, :, slots]  # [n, H, D]
                states[rows, :, slots] = removal(before.flatten(1), places).reshape(before.shape)
        recompute_last_tokens(self.session, rows.unique().tolist())


@dataclass(frozen=True, eq=False)
class Leace(Arm):
    """The directions of a concept removed from the mementos' keys and values.

    Attributes:
        removals: fitted beforehand, for each layer of the model; see `ghosttrace.auditing.defences.leace`.
        block_indices: of which blocks the mementos are cleaned, counted from 0.
    """

    name = "leace"
    summary = "what tells a concept linearly removed from the mementos' keys and values"
    removals: LayerRemovals = field(default=(), repr=False)
    block_indices: tuple[int, ...] = ()

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.keep_last_n_blocks != 0:
            raise UserError(f"{self.name} cleans mementos at their end, before others read them: keep_last_n_blocks 0")
        return policy

    def eraser(self, session: Session) -> Eraser:
        return DirectionRemover(session, self.removals, self.block_indices)
