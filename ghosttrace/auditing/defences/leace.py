"""LEACE: what tells the secrets linearly is removed from the mementos' keys and values.

Fitted on every other trace of the train side, in each layer, on keys and on values, at each place of the
memento where all mementos are of one length, else on all their tokens together. Cleaned are the mementos
of those blocks in which a secret of the train side stands: what a memento holds, and where, depends on its
number, and the maps of one ruin another (on `toy-open` the answers).

The guarantee is about linear probes of keys and values as cached, and exact on the traces it was fitted
on. A probe that is not linear, fresh traces, kept delimiters, and a memento that was computed over
cleaned ones are for the attackers to try. Belrose et al. 2023, arXiv 2306.03819, theorem 4.3.
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
SINGULAR_VALUE_TOLERANCE = 1e-6  # singular values below this are rounding


@dataclass(frozen=True)
class LeaceDefence(Defence):
    """Linear erasure of all targets of a task.

    In the traces that it was fitted on nothing linear is left to learn from, whatever fresh ones still show.
    So attackers, who learn on the whole train side, also get as many traces that it was not fitted on.

    Attributes:
        tolerance: singular values of the whitened cross-covariance that are left alone. Few traces
            correlate with any label by chance; erasing that too costs states without need.
    """

    name = "leace"
    summary = "what tells the secrets linearly removed from the mementos' keys and values; fitted on train traces"
    usage = "leace or leace:TOLERANCE, such as leace:0.1"
    tolerance: float = SINGULAR_VALUE_TOLERANCE

    @classmethod
    def of(cls, options: str) -> Self:
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
    """float64[N, C]: the classes of all targets side by side; zeros where a target does not apply."""
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
    """LEACE for every layer, of keys and of values, on the mementos of the blocks that hold the secrets.

    Args:
        checkpoint: the model and its law.
        task: traces with secrets.
        rows: int64[N], which samples to fit on.
        tolerance: see `LeaceDefence`.
        batch_tokens: traces read together, padding included.

    Returns:
        The maps, and the numbers of those blocks.
    """
    samples, section = [task.samples[row] for row in rows], checkpoint.policy.require_assistant_section
    blocks = [find_blocks(sample.ids, checkpoint.markup, section) for sample in samples]
    secret = [pairs[sample.block] for sample, pairs in zip(samples, blocks, strict=True)]
    lengths = {block.memento_end + 1 - block.memento_start for block in secret}
    places = lengths.pop() if len(lengths) == 1 else 1
    fitters = _fitters(checkpoint, places, sum(len(target.classes) for target in task.targets), tolerance)
    labels, step = one_hot(task, rows), max(1, batch_tokens // (1 + max(block.memento_end for block in secret)))
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        _update(fitters, _read(checkpoint, samples[part], secret[part]), secret[part], labels[part])
    removals = tuple((_removal(keys), _removal(values)) for keys, values in fitters)
    return removals, tuple(sorted({sample.block for sample in samples}))


Fitters = list[tuple[list[LeaceFitter], list[LeaceFitter]]]
"""For each layer, of keys and of values, one a place."""


def _fitters(checkpoint: Checkpoint, places: int, classes: int, tolerance: float) -> Fitters:
    geometry, device = CacheGeometry.from_config(checkpoint.model.config), checkpoint.model.device

    def one() -> LeaceFitter:
        width = geometry.kv_heads * geometry.head_dim
        # With the covariance's own whitening the trace cannot grow; holding it there only adds rounding.
        return LeaceFitter(
            width, classes, constrain_cov_trace=False, svd_tol=tolerance, dtype=torch.float64, device=device
        )

    return [([one() for _ in range(places)], [one() for _ in range(places)]) for _ in range(geometry.layers)]


def _read(checkpoint: Checkpoint, samples: Sequence[Sample], secret: Sequence[Block]) -> States:
    """The states of each memento, padded with the last state of a shorter one."""
    layouts = [
        open_layout(sample.ids[: block.memento_end + 1], checkpoint.markup, checkpoint.policy)
        for sample, block in zip(samples, secret, strict=True)
    ]
    width = max(block.memento_end + 1 - block.memento_start for block in secret)
    at = [np.minimum(block.memento_start + np.arange(width), block.memento_end) for block in secret]
    return read_states(checkpoint.model, layouts, at)


def _update(fitters: Fitters, states: States, secret: Sequence[Block], labels: Tensor) -> None:
    """Show a batch to all fitters."""
    for layer, both in enumerate(fitters):
        for cached, places in zip((states.keys[layer], states.values[layer]), both, strict=True):
            tokens = cached.transpose(1, 2).flatten(2)  # [N, P, d]
            if len(places) > 1:
                for place, fitter in enumerate(places):
                    fitter.update(tokens[:, place], labels)
                continue
            for row, block in enumerate(secret):
                mine = tokens[row, : block.memento_end + 1 - block.memento_start]
                places[0].update(mine, labels[row].expand(len(mine), -1))


def _removal(places: Sequence[LeaceFitter]) -> DirectionRemoval:
    erasers = [fitter.eraser for fitter in places]
    return DirectionRemoval(
        *(torch.stack([getattr(eraser, name) for eraser in erasers]) for name in ("proj_left", "proj_right", "bias"))
    )
