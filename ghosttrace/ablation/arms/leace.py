"""`leace`: directions removed from the mementos' keys and values.

The caller fits the directions. For `leace` they are the directions from which a linear probe can predict a concept
(Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819). Tokens outside the
mementos, kept delimiters included, are unchanged, and nonlinear information remains.

The last token is processed again before the next one is predicted, because its hidden state has seen the block.
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
    """Affine map that removes directions: x - left @ right @ (x - mean), one map per offset in a memento.

    Attributes:
        left: float[P, d, r] for P offsets, with d the dimensions of all heads concatenated. P is 1 if all tokens of a
            memento share one map.
        right: float[P, r, d].
        mean: float[P, d].
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    @property
    def ranks(self) -> list[int]:
        """Number of directions removed at each offset, P integers."""
        return [int((right.abs().amax(1) > 0).sum()) for right in self.right]

    def __call__(self, states: Tensor, offsets: Tensor) -> Tensor:
        """Return the states without the directions.

        Args:
            states: Keys or values of n memento tokens, float[n, d].
            offsets: Offset of each token from its `<|summary_start|>`, int64[n]. Offsets of P or more use the last map.

        Returns:
            float[n, d].
        """
        offsets = offsets.clamp(max=len(self.mean) - 1)
        left, right, mean = (each.to(states.device) for each in (self.left, self.right, self.mean))
        cleaned = states.to(mean, copy=True)
        for offset in offsets.unique().tolist():
            selected = offsets == offset
            coefficients = (cleaned[selected] - mean[offset]) @ right[offset].T
            cleaned[selected] = cleaned[selected] - coefficients @ left[offset].T
        return cleaned.to(states)


LayerRemovals = tuple[tuple[DirectionRemoval, DirectionRemoval], ...]
"""For each layer, the removal from keys and the removal from values."""


class DirectionRemover(Eraser):
    """Eraser that removes directions from the keys and values of selected mementos when their blocks expire."""

    def __init__(self, session: Session, removals: LayerRemovals, block_indices: tuple[int, ...]) -> None:
        super().__init__(session)
        self.removals, self.block_indices = removals, block_indices

    def erase(self, erasures: list[RowErasures]) -> None:
        super().erase(erasures)
        cache = self.session.cache
        memento_tokens = []  # (row, slot, offset in the memento)
        for row_erasures in erasures:
            row = row_erasures.row
            held, blocks = cache.held_indices(row), self.session.rows[row].tracker.blocks
            for block in row_erasures.blocks:
                if blocks.index(block) in self.block_indices:
                    slots = np.flatnonzero((held >= block.memento_start) & (held <= block.memento_end))
                    memento_tokens += [(row, int(slot), int(held[slot]) - block.memento_start) for slot in slots]
        if not memento_tokens:
            return
        rows, slots, offsets = torch.tensor(memento_tokens, device=self.session.model.device).T
        for layer, removals in zip(cache.layers, self.removals, strict=True):
            for states, removal in zip((layer.keys, layer.values), removals, strict=True):
                before = states[rows, :, slots]  # [n, H, D]
                states[rows, :, slots] = removal(before.flatten(1), offsets).reshape(before.shape)
        recompute_last_tokens(self.session, rows.unique().tolist())


@dataclass(frozen=True, eq=False)
class Leace(Arm):
    """Arm that removes the directions of a concept from the mementos' keys and values.

    Attributes:
        removals: Fitted removals for each layer of the model; see `ghosttrace.auditing.defences.leace`.
        block_indices: 0-based numbers of the blocks whose mementos are cleaned.
    """

    name = "leace"
    summary = "directions that linearly predict a concept removed from the mementos' keys and values"
    removals: LayerRemovals = field(default=(), repr=False)
    block_indices: tuple[int, ...] = ()

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.keep_last_n_blocks != 0:
            raise UserError(
                f"{self.name} must clean mementos before later tokens attend to them: give keep_last_n_blocks 0"
            )
        return policy

    def eraser(self, session: Session) -> Eraser:
        return DirectionRemover(session, self.removals, self.block_indices)
