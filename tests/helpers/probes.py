"""Simulated features that encode known labels, and an example of a user-defined probe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.split import Split


@dataclass(frozen=True)
class ClassMeans(Probe):
    """Probe that models each class as a Gaussian around its mean, added to the text baseline."""

    spread: float = 1.0
    name = "class-means"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        x = features.double().numpy()
        x = (x - x[split.train].mean(0)) / x[split.train].std(0).clip(min=1e-6)
        return [self._posterior(x, target, split.train) for target in targets]

    def _posterior(self, x: np.ndarray, target: ProbeTarget, train: np.ndarray) -> np.ndarray:
        log_p = target.text.copy()
        for label in range(log_p.shape[1]):
            class_features = x[train[target.labels[train] == label]]
            if len(class_features):
                log_p[:, label] -= ((x - class_features.mean(0)) ** 2).sum(1) / (2 * self.spread * x.shape[1] ** 0.5)
        return np.asarray(log_softmax(log_p, axis=1))


def planted(
    sets: int,
    n: int,
    d: int,
    classes: tuple[int, ...],
    signal: float,
    seed: int = 0,
    decay: float = 0.0,
    skew: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return simulated features [F, N, d] that encode every target, and labels [T, N].

    Args:
        sets: Number of feature sets, F.
        n: Number of samples, N.
        d: Number of features.
        classes: Number of classes of each target.
        signal: Strength of the code.
        seed: Random seed.
        decay: Logarithm of the condition number of the covariance.
        skew: Imbalance of the classes; 0 for equal shares.
    """
    rng = np.random.default_rng(seed)
    shares = [np.exp(-skew * np.arange(count)) for count in classes]
    labels = np.stack([rng.choice(count, n, p=p / p.sum()) for count, p in zip(classes, shares, strict=True)])
    features = []
    for _ in range(sets):
        codes = sum(rng.normal(size=(count, d))[row] for count, row in zip(classes, labels, strict=True))
        mix = np.linalg.qr(rng.normal(size=(d, d)))[0]
        axes = np.exp(-decay / 2 * np.arange(d) / d)
        features.append(((rng.normal(size=(n, d)) + signal * codes) * axes) @ mix * 3 + rng.normal(size=d))
    return torch.from_numpy(np.stack(features)).float(), torch.from_numpy(labels)


def some_offset(labels: Tensor, classes: int, seed: int = 5) -> Tensor:
    """Return log-probabilities [T, N, C] that are weakly informative about the labels."""
    logits = torch.randn(*labels.shape, classes, generator=torch.Generator().manual_seed(seed))
    return (logits + 0.7 * torch.nn.functional.one_hot(labels.clamp(min=0), classes)).log_softmax(-1)
