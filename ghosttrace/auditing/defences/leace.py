"""The defence `leace`: linearly predictive directions of the secrets are removed from the mementos' keys and values.

LEACE is fitted on every other training trace, for each layer, and for keys and values separately. If all mementos have
the same length, it is fitted for each token of the memento separately, and otherwise for all tokens together. Only the
mementos of blocks that hold a secret in a training trace are changed: the states of a memento depend on its number,
and the maps fitted for one memento damage another (on `toy-open` they damage the answers).

The guarantee covers linear probes of the cached keys and values, and is exact only on the traces that LEACE was fitted
on. It does not cover nonlinear probes, new traces, kept delimiters, or mementos that were computed from changed ones.
The attacks of an audit test those. See Belrose et al. 2023, arXiv 2306.03819, theorem 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from concept_erasure import LeaceFitter
from torch import Tensor

from ghosttrace.ablation.arms import Arm
from ghosttrace.ablation.arms.leace import DirectionRemoval, LayerRemovals, Leace
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.data.task import Sample, Task
from ghosttrace.law.layout import open_layout
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.states import States, read_states
from ghosttrace.probing.split import Split

BATCH_TOKENS = 16_384
SINGULAR_VALUE_TOLERANCE = 1e-6  # smaller singular values are rounding errors


@dataclass(frozen=True)
class LeaceDefence(Defence):
    """Defence that applies linear concept erasure for all targets of a task.

    The traces that it was fitted on hold nothing that a linear probe can learn from, while new traces may. The defence
    is therefore fitted on half of the training traces, and attackers train on all of them.

    Attributes:
        tolerance: Singular values of the whitened cross-covariance up to this size are not removed. With few traces,
            some directions correlate with the labels by chance, and removing them damages the states without need.
    """

    name = "leace"
    summary = "directions that predict the secrets removed from the mementos' keys and values; fitted on train traces"
    usage = "leace or leace:TOLERANCE, such as leace:0.1"
    tolerance: float = SINGULAR_VALUE_TOLERANCE

    @classmethod
    def from_options(cls, options: str) -> Self:
        try:
            tolerance = float(options)
        except ValueError as error:
            raise cls.option_error(options) from error
        if not 0 < tolerance < 1:
            raise cls.option_error(options)
        return cls(tolerance)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Leace()

    def fit(self, checkpoint: Checkpoint, task: Task, split: Split) -> Arm:
        self.check(checkpoint)
        return Leace(*fit_removals(checkpoint, task, split.train[::2], self.tolerance))


def one_hot(task: Task, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Return one-hot labels of all targets side by side, float64[N, C]; zeros where a target does not apply."""
    parts = []
    for number, target in enumerate(task.targets):
        labels = torch.from_numpy(task.labels(number)[rows])
        parts.append((labels[:, None] == torch.arange(len(target.classes))).double())
    return torch.cat(parts, dim=1)


def fit_removals(
    checkpoint: Checkpoint,
    task: Task,
    rows: np.ndarray,
    tolerance: float = SINGULAR_VALUE_TOLERANCE,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[LayerRemovals, tuple[int, ...]]:
    """Fit LEACE for the keys and the values of every layer, on the mementos of the blocks that hold the secrets.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        task: Traces with secrets.
        rows: int64[N], samples to fit on.
        tolerance: See `LeaceDefence`.
        batch_tokens: Tokens per batch, padding included.

    Returns:
        The fitted maps of each layer, and the numbers of the blocks that hold the secrets.
    """
    samples, section = [task.samples[row] for row in rows], checkpoint.policy.require_assistant_section
    blocks = [find_blocks(sample.ids, checkpoint.markup, section) for sample in samples]
    secret_blocks = [pairs[sample.block] for sample, pairs in zip(samples, blocks, strict=True)]
    lengths = {block.memento_end + 1 - block.memento_start for block in secret_blocks}
    n_tokens = lengths.pop() if len(lengths) == 1 else 1
    fitters = _make_fitters(checkpoint, n_tokens, sum(len(target.classes) for target in task.targets), tolerance)
    max_length = 1 + max(block.memento_end for block in secret_blocks)
    labels, batch_size = one_hot(task, rows), max(1, batch_tokens // max_length)
    for begin in range(0, len(rows), batch_size):
        batch = slice(begin, begin + batch_size)
        states = _read_mementos(checkpoint, samples[batch], secret_blocks[batch])
        _update(fitters, states, secret_blocks[batch], labels[batch])
    removals = tuple((_removal(keys), _removal(values)) for keys, values in fitters)
    return removals, tuple(sorted({sample.block for sample in samples}))


Fitters = list[tuple[list[LeaceFitter], list[LeaceFitter]]]
"""For each layer, the fitters of its keys and of its values: one per memento token, or a single one for all tokens."""


def _make_fitters(checkpoint: Checkpoint, n_tokens: int, n_classes: int, tolerance: float) -> Fitters:
    geometry, device = CacheGeometry.from_config(checkpoint.model.config), checkpoint.model.device

    def make_fitter() -> LeaceFitter:
        width = geometry.kv_heads * geometry.head_dim
        # With the covariance's own whitening the trace cannot grow, so constraining it only adds rounding errors.
        return LeaceFitter(
            width, n_classes, constrain_cov_trace=False, svd_tol=tolerance, dtype=torch.float64, device=device
        )

    return [
        ([make_fitter() for _ in range(n_tokens)], [make_fitter() for _ in range(n_tokens)])
        for _ in range(geometry.layers)
    ]


def _read_mementos(checkpoint: Checkpoint, samples: Sequence[Sample], blocks: Sequence[Block]) -> States:
    """Return the states of the memento of each block; shorter mementos are padded with their last state."""
    layouts = [
        open_layout(sample.ids[: block.memento_end + 1], checkpoint.markup, checkpoint.policy)
        for sample, block in zip(samples, blocks, strict=True)
    ]
    width = max(block.memento_end + 1 - block.memento_start for block in blocks)
    indices = [np.minimum(block.memento_start + np.arange(width), block.memento_end) for block in blocks]
    return read_states(checkpoint.model, layouts, indices)


def _update(fitters: Fitters, states: States, blocks: Sequence[Block], labels: Tensor) -> None:
    """Update all fitters with the mementos of a batch."""
    for layer, layer_fitters in enumerate(fitters):
        for cached, token_fitters in zip((states.keys[layer], states.values[layer]), layer_fitters, strict=True):
            tokens = cached.transpose(1, 2).flatten(2)  # [N, P, d]
            if len(token_fitters) > 1:
                for number, fitter in enumerate(token_fitters):
                    fitter.update(tokens[:, number], labels)
                continue
            for row, block in enumerate(blocks):
                memento = tokens[row, : block.memento_end + 1 - block.memento_start]
                token_fitters[0].update(memento, labels[row].expand(len(memento), -1))


def _removal(token_fitters: Sequence[LeaceFitter]) -> DirectionRemoval:
    """Return the fitted maps of all memento tokens, stacked."""
    erasers = [fitter.eraser for fitter in token_fitters]
    return DirectionRemoval(
        *(torch.stack([getattr(eraser, name) for eraser in erasers]) for name in ("proj_left", "proj_right", "bias"))
    )
