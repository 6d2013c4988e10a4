"""Made-up features with known labels in them, and a probe as a user would write it."""

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
    """Each class a Gaussian around its mean, on top of the text."""

    spread: float = 1.0
    name = "class-means"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        x = features.double().numpy()
        x = (x - x[split.train].mean(0)) / x[split.train].std(0).clip(min=1e-6)
        return [self._posterior(x, one, split.train) for one in targets]

    def _posterior(self, x: np.ndarray, target: ProbeTarget, train: np.ndarray) -> np.ndarray:
        found = target.text.copy()
        for label in range(found.shape[1]):
            mine = x[train[target.labels[train] == label]]
            if len(mine):
                found[:, label] -= ((x - mine.mean(0)) ** 2).sum(1) / (2 * self.spread * x.shape[1] ** 0.5)
        return np.asarray(log_softmax(found, axis=1))


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
    """Features [F, N, d] with a code of every target in them, and labels [T, N].

    `decay` is the logarithm of the condition number of the covariance, `skew` how unevenly classes occur.
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
    """Log probabilities [T, N, C] that know a little about the labels."""
    logits = torch.randn(*labels.shape, classes, generator=torch.Generator().manual_seed(seed))
    return (logits + 0.7 * torch.nn.functional.one_hot(labels.clamp(min=0), classes)).log_softmax(-1)
