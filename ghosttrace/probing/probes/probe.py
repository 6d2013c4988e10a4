"""The interface of probes: predicts the log-probabilities of each target from features."""

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

    It is fitted under every condition. As for all probes, its predictions are replaced by the text baseline if they
    gain at most one standard error on validation (see `ghosttrace.probing.evidence.fall_back_to_text`).

    Attributes:
        name: Value of the column `probe` in the results.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        """Fit on the training samples, select on the validation samples, and predict all samples.

        Args:
            features: float32[N, d] on the CPU.
            targets: T targets. `labels` are -1 where a target does not apply, and for all test samples. `text` holds
                the log-probabilities of the text baseline, which a probe may add to its logits.
            split: Train, validation and test samples.
            seed: Random seed.
            device: Device to compute on.

        Returns:
            For each target float64[N, C], natural log-probabilities of its classes given text and features.
        """


def stack_targets(targets: Sequence[ProbeTarget]) -> tuple[Tensor, Tensor, list[int]]:
    """Stack T targets of N samples into tensors.

    Returns:
        Labels, int64[T, N]; offsets, float32[T, N, C], the text baselines padded with -inf to the largest number of
        classes C; and the number of classes of each target.
    """
    n_classes = [target.text.shape[1] for target in targets]
    offset = np.full((len(targets), len(targets[0].labels), max(n_classes)), -np.inf, dtype=np.float32)
    for number, target in enumerate(targets):
        offset[number, :, : n_classes[number]] = target.text
    return torch.from_numpy(np.stack([target.labels for target in targets])), torch.from_numpy(offset), n_classes


def split_by_target(posteriors: np.ndarray, targets: Sequence[ProbeTarget]) -> list[np.ndarray]:
    """Split posteriors, float[T, N, C], into one array per target, without padded classes."""
    return [posterior[:, : target.text.shape[1]] for posterior, target in zip(posteriors, targets, strict=True)]
