"""A linear probe of unusual traces, for secrets that stand in a few traces only.

If a cache holds a secret in 1 % of traces, a probe fitted on all traces sees mostly traces without it and learns
nothing. States with something written into them are further from the mean than others, so this probe is fitted on the
most unusual traces alone and predicts those alone; for all others it returns the text baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fitter_utils import moments, standardised
from ghosttrace.probing.linear_grid import fit_path, select_penalty
from ghosttrace.probing.probes.probe import Probe, split_by_target, stack_targets
from ghosttrace.probing.split import Split

SHARES = (0.01, 0.02, 0.05)  # of the training traces that count as unusual; chosen on validation
MIN_TRACES = 10  # unusual traces with a label, for each target, both in train and in validation
MAX_DIRECTIONS = 32  # principal directions of the unusual traces; they are too few for more
RIDGE = 0.01  # added to the variances of standardised features, so that constant directions are not amplified
MIN_LEFT_OUT_SHARE = 1e-3  # bounds the distance of a sample that alone determines a direction
PENALTIES = (1.0, 0.1, 0.01)
TOLERANCE = 1e-4  # nats that one more solver step would gain


@dataclass(frozen=True)
class UnusualTraces(Probe):
    """Linear probe fitted on the traces whose states have the largest Mahalanobis distance from the mean."""

    name = "unusual"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        """Fit one linear probe for all targets, on the share of unusual traces that is best on validation.

        See `Probe.fit`. The text baseline is returned for all other traces, and for all if no share adds bits.
        """
        white = _whitened(features.to(device), split.train)
        distance = _distances(white, split.train)
        best, most = [target.text for target in targets], 0.0
        for share in SHARES:
            unusual = distance > np.quantile(distance[split.train], 1 - share)
            train, validation = (rows[unusual[rows]] for rows in (split.train, split.validation))
            if _n_labelled(targets, train, validation) < MIN_TRACES:
                continue
            directions = torch.linalg.svd(white[train], full_matrices=False).Vh[:MAX_DIRECTIONS]
            posteriors = _fit_on(white @ directions.T, targets, train, validation, np.flatnonzero(unusual))
            gain = sum(_gain(p, target, split.validation) for p, target in zip(posteriors, targets, strict=True))
            if gain > most:
                best, most = posteriors, gain
        return best


def _whitened(features: Tensor, train: np.ndarray) -> Tensor:
    """Return features, float[N, d], with mean 0 and about unit covariance over the training samples."""
    standard = standardised(features, *moments(features[train]))
    variances, directions = torch.linalg.eigh(standard[train].T @ standard[train] / len(train))
    return standard @ (directions / (variances.clamp(min=0) + RIDGE).sqrt())


def _distances(white: Tensor, train: np.ndarray) -> np.ndarray:
    """Return the squared Mahalanobis distances of all samples, float[N]; those of `train` as if left out of the fit.

    A covariance fitted on few samples makes these very samples look usual, and all others unusual.
    """
    distance = white.square().sum(1).cpu().double().numpy()
    distance[train] /= np.maximum(1 - distance[train] / len(train), MIN_LEFT_OUT_SHARE)
    return distance


def _n_labelled(targets: Sequence[ProbeTarget], *parts: np.ndarray) -> int:
    """Return the smallest number of labelled samples over targets and parts."""
    return min(int((target.labels[part] >= 0).sum()) for target in targets for part in parts)


def _fit_on(
    features: Tensor, targets: Sequence[ProbeTarget], train: np.ndarray, validation: np.ndarray, predicted: np.ndarray
) -> list[np.ndarray]:
    """Fit a linear probe on some samples; return its posteriors for the predicted samples and the text elsewhere."""
    labels, offset, n_classes = stack_targets(targets)
    offset = offset.to(features.device)
    path = fit_path(features[None, train], labels[:, train], n_classes, PENALTIES, offset[:, train], TOLERANCE)
    probe = select_penalty(path, features[None, validation], labels[:, validation], offset[:, validation])
    (fitted,) = probe.log_probabilities(features[None, predicted], offset[:, predicted]).cpu().double().numpy()
    posteriors = [target.text.copy() for target in targets]
    for posterior, of_target in zip(posteriors, split_by_target(fitted, targets), strict=True):
        posterior[predicted] = of_target
    return posteriors


def _gain(posterior: np.ndarray, target: ProbeTarget, rows: np.ndarray) -> float:
    """Return the natural-log probability that a posterior adds to the labels of some samples, summed."""
    rows = rows[target.labels[rows] >= 0]
    return float((posterior - target.text)[rows, target.labels[rows]].sum())
