"""Fits the probes of a sweep on train, chooses them on validation, and scores them on test."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.probing.evidence import ProbeTarget, Scores, fall_back_to_text, score
from ghosttrace.probing.linear_grid import fit_path, select_penalty
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.probes.probe import split_by_target, stack_targets
from ghosttrace.probing.split import Split

PENALTIES = (1.0, 0.1, 0.01, 0.001)
TOLERANCE = 1e-5  # nats that one more solver step would gain
SUM_TOLERANCE = 1e-3  # maximum difference of a posterior's sum from 1
FIRST_PORTION_DIVISOR = 64  # the online code begins with a 64th of the training set, and doubles


def linear_scores(
    features: Tensor, targets: Sequence[ProbeTarget], split: Split, device: torch.device
) -> list[list[Scores]]:
    """Fit and score a linear probe for every feature set and target.

    Each probe takes the penalty with the lowest cross-entropy on validation. Its logits are scaled by the
    factor with the lowest cross-entropy there, which is 0, the text baseline alone, if the features add nothing.

    Args:
        features: float[F, N, d], F feature sets of N samples.
        targets: T targets.
        split: Train, validation and test samples.
        device: Device to fit on.

    Returns:
        The scores on test, for each feature set a list with one entry per target.
    """
    posteriors = linear_posteriors(features, targets, split.train, split.validation, split.cluster, device)
    return [
        [score(target, posterior, split) for target, posterior in zip(targets, of_set, strict=True)]
        for of_set in posteriors
    ]


def linear_posteriors(
    features: Tensor,
    targets: Sequence[ProbeTarget],
    train: np.ndarray,
    validation: np.ndarray,
    cluster: np.ndarray,
    device: torch.device,
    penalties: Sequence[float] = PENALTIES,
) -> list[list[np.ndarray]]:
    """Fit linear probes and return their posteriors for all samples.

    Args:
        features: float[F, N, d], F feature sets of N samples.
        targets: T targets.
        train: int64, samples to fit on.
        validation: int64, samples to choose the penalty and the scale on.
        cluster: int64[N]; samples with the same number are not independent.
        device: Device to fit on.
        penalties: Penalties to choose from, from large to small.

    Returns:
        For each feature set and target float64[N, C], log-probabilities; the text baseline where the probe gains
        too little on validation (see `fall_back_to_text`).
    """
    labels, offset, n_classes = stack_targets(targets)
    features, labels, offset = features.to(device), labels.to(device), offset.to(device)
    path = fit_path(features[:, train], labels[:, train], n_classes, penalties, offset[:, train], TOLERANCE)
    probe = select_penalty(path, features[:, validation], labels[:, validation], offset[:, validation])
    posteriors = probe.log_probabilities(features, offset).cpu().double().numpy()
    return [_fall_back_to_text(split_by_target(of_set, targets), targets, validation, cluster) for of_set in posteriors]


def _fall_back_to_text(
    posteriors: Sequence[np.ndarray], targets: Sequence[ProbeTarget], validation: np.ndarray, cluster: np.ndarray
) -> list[np.ndarray]:
    """Apply `fall_back_to_text` to the posterior of every target."""
    return [
        fall_back_to_text(posterior, target, validation, cluster)
        for posterior, target in zip(posteriors, targets, strict=True)
    ]


def probe_scores(
    probe: Probe, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
) -> list[Scores]:
    """Fit and score any probe on one feature set; the test labels are hidden from it.

    Args:
        probe: The probe.
        features: float[N, d].
        targets: T targets.
        split: Train, validation and test samples.
        seed: Random seed passed to the probe.
        device: Device passed to the probe.

    Returns:
        The scores on test, one per target.

    Raises:
        UserError: The probe returns arrays that are not log-probabilities.
    """
    kept = probe_posteriors(probe, features, targets, split, seed, device)
    return [score(target, posterior, split) for target, posterior in zip(targets, kept, strict=True)]


def probe_posteriors(
    probe: Probe, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
) -> list[np.ndarray]:
    """Fit any probe and return its posteriors for all samples, or the text baseline, as in `linear_posteriors`.

    The arguments and errors are those of `probe_scores`.

    Returns:
        For each target float64[N, C], log-probabilities.
    """
    visible = [replace(target, labels=target.labels.copy()) for target in targets]
    for target in visible:
        target.labels[split.test] = -1
    posteriors = probe.fit(features, visible, split, seed, device)
    _check(probe, posteriors, targets)
    return _fall_back_to_text(posteriors, targets, split.validation, split.cluster)


def _check(probe: Probe, posteriors: Sequence[np.ndarray], targets: Sequence[ProbeTarget]) -> None:
    """Raise UserError if a probe's output is not one array of log-probabilities per target."""
    shapes = [posterior.shape for posterior in posteriors]
    if shapes != [target.text.shape for target in targets]:
        wanted = [list(target.text.shape) for target in targets]
        returned = [list(shape) for shape in shapes]
        raise UserError(
            f"probe {probe.name} returned arrays of shapes {returned}: return {wanted}, one for each target"
        )
    for posterior, target in zip(posteriors, targets, strict=True):
        if not (np.isfinite(posterior).all() and np.allclose(np.exp(posterior).sum(axis=1), 1, atol=SUM_TOLERANCE)):
            raise UserError(
                f"probe {probe.name} returned no log-posterior of {target.name}: return natural logarithms of "
                "probabilities above 0 that sum to 1 for each sample"
            )


def online_scores(
    features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
) -> list[Scores]:
    """Score the online code of the training labels: a probe fitted on all earlier portions predicts the next one.

    Its bits beyond the text are the reduction of the labels' description length by the features, the cost of
    learning included (Voita and Titov 2020, arXiv 2003.12298, section 3.2). The text baseline alone predicts the
    first portion. A fifth of the earlier portions serves as validation. Portions consist of whole clusters.

    Args:
        features: float[N, d].
        targets: T targets.
        split: Its training samples are encoded.
        seed: Random seed of the order of clusters.
        device: Device to fit on.

    Returns:
        The scores on the training samples, one per target.
    """
    rng = np.random.default_rng([seed, 0x0D1])
    clusters = rng.permutation(np.unique(split.cluster[split.train]))
    rank = np.argsort(clusters)[np.searchsorted(np.sort(clusters), split.cluster[split.train])]  # int64[train]
    posteriors = [target.text.copy() for target in targets]
    ends = [
        len(clusters) * 2**power // FIRST_PORTION_DIVISOR for power in range(int(np.log2(FIRST_PORTION_DIVISOR)) + 1)
    ]
    for start, end in pairwise(ends):
        before = rank < start
        check = before & (rank % 5 == 0)
        train, validation = split.train[before & ~check], split.train[check]
        if not len(train) or not len(validation) or not _learnable(targets, train, validation):
            continue
        predicted = split.train[(rank >= start) & (rank < end)]
        used = np.concatenate([train, validation, predicted])
        used_targets = [replace(target, labels=target.labels[used], text=target.text[used]) for target in targets]
        a, b = len(train), len(train) + len(validation)
        cluster = split.cluster[used]
        (fitted,) = linear_posteriors(
            features[None, used], used_targets, np.arange(a), np.arange(a, b), cluster, device
        )
        for number, posterior in enumerate(fitted):
            posteriors[number][predicted] = posterior[b:]
    train_as_test = replace(split, test=split.train)
    return [score(target, posterior, train_as_test) for target, posterior in zip(targets, posteriors, strict=True)]


def _learnable(targets: Sequence[ProbeTarget], *parts: np.ndarray) -> bool:
    """Return whether every target has a label in every part."""
    return all(bool((target.labels[part] >= 0).any()) for target in targets for part in parts)
