"""What a probe is: from features to the log-posterior of each target."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.split import Split


@dataclass(frozen=True)
class Probe(ABC):
    """A probe that `probe(probes=[...])` fits at the best site of each hop.

    Its rows carry `name` in the column `probe`. It is fitted under every condition, and its posteriors are
    used only where they gain more than one standard error over the text on the validation set, as those of
    every probe (see `ghosttrace.probing.evidence.believed`).

    Attributes:
        name: in the results.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        """Fit on the training samples, choose on the validation samples, and predict all samples.

        Args:
            features: float32[N, d] on the CPU.
            targets: T of them. `labels` are -1 where a target does not apply, and for all test samples; `text` is
                the log-posterior before any features, which a probe may start from.
            split: which samples are for what.
            seed: of whatever is drawn.
            device: where to compute.

        Returns:
            For each target float64[N, C], natural logarithms of its posterior given text and features.
        """


def stack_targets(targets: Sequence[ProbeTarget]) -> tuple[Tensor, Tensor, list[int]]:
    """Labels int64[T, N], offsets float32[T, N, C], filled up with -inf, and the classes of each target."""
    n_classes = [one.text.shape[1] for one in targets]
    offset = np.full((len(targets), len(targets[0].labels), max(n_classes)), -np.inf, dtype=np.float32)
    for number, one in enumerate(targets):
        offset[number, :, : n_classes[number]] = one.text
    return torch.from_numpy(np.stack([one.labels for one in targets])), torch.from_numpy(offset), n_classes


def split_by_target(posteriors: np.ndarray, targets: Sequence[ProbeTarget]) -> list[np.ndarray]:
    """Posteriors float[T, N, C], each cut to the classes of its target."""
    return [part[:, : one.text.shape[1]] for part, one in zip(posteriors, targets, strict=True)]
