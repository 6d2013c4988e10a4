"""Fitting the probes of a sweep: on train, chosen on validation, reported once on test."""

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
TOLERANCE = 1e-5  # nats that a further step would still gain
SUM_TOLERANCE = 1e-3  # by which a posterior's sum may miss 1
FIRST_PORTION_DIVISOR = 64  # the online code begins with a 64th of the training set, and doubles


def linear_scores(
    features: Tensor, asked: Sequence[ProbeTarget], split: Split, device: torch.device
) -> list[list[Scores]]:
    """Linear probes of several feature sets.

    Of a path of penalties each cell takes the one that does best on validation, its logits scaled by
    the factor that does best there: 0, the text alone, where the features say nothing.

    Args:
        features: float[F, N, d].
        asked: T targets.
        split: which samples are for what.
        device: where to fit.

    Returns:
        For each feature set, for each target.
    """
    posteriors = linear_posteriors(features, asked, split.train, split.validation, split.cluster, device)
    return [
        [score(one, posterior, split) for one, posterior in zip(asked, of_set, strict=True)] for of_set in posteriors
    ]


def linear_posteriors(
    features: Tensor,
    asked: Sequence[ProbeTarget],
    train: np.ndarray,
    validation: np.ndarray,
    cluster: np.ndarray,
    device: torch.device,
) -> list[list[np.ndarray]]:
    """For each feature set and target float[N, C], natural logarithms; arguments as `linear_scores`."""
    labels, offset, n_classes = stack_targets(asked)
    features, labels, offset = features.to(device), labels.to(device), offset.to(device)
    path = fit_path(features[:, train], labels[:, train], n_classes, PENALTIES, offset[:, train], TOLERANCE)
    probe = select_penalty(path, features[:, validation], labels[:, validation], offset[:, validation])
    said = probe.log_probabilities(features, offset).cpu().double().numpy()
    return [_fall_back_to_text(split_by_target(of_set, asked), asked, validation, cluster) for of_set in said]


def _fall_back_to_text(
    said: Sequence[np.ndarray], asked: Sequence[ProbeTarget], validation: np.ndarray, cluster: np.ndarray
) -> list[np.ndarray]:
    """A probe's posteriors, for each target float[N, C], as far as they are believed."""
    return [fall_back_to_text(part, one, validation, cluster) for part, one in zip(said, asked, strict=True)]


def probe_scores(
    probe: Probe, features: Tensor, asked: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
) -> list[Scores]:
    """Another probe of one feature set, float[N, d], for all targets; it is not shown the labels of the test.

    Raises:
        UserError: the probe returns something other than log-posteriors.
    """
    shown = [replace(one, labels=one.labels.copy()) for one in asked]
    for one in shown:
        one.labels[split.test] = -1
    said = probe.fit(features, shown, split, seed, device)
    _check(probe, said, asked)
    told = _fall_back_to_text(said, asked, split.validation, split.cluster)
    return [score(one, posterior, split) for one, posterior in zip(asked, told, strict=True)]


def _check(probe: Probe, said: Sequence[np.ndarray], asked: Sequence[ProbeTarget]) -> None:
    """Refuse what are no log-posteriors: bits of them would mean nothing."""
    shapes = [part.shape for part in said]
    if shapes != [one.text.shape for one in asked]:
        wanted = [list(one.text.shape) for one in asked]
        found = [list(shape) for shape in shapes]
        raise UserError(f"probe {probe.name} returned arrays of shapes {found}: return {wanted}, one for each target")
    for part, one in zip(said, asked, strict=True):
        if not (np.isfinite(part).all() and np.allclose(np.exp(part).sum(axis=1), 1, atol=SUM_TOLERANCE)):
            raise UserError(
                f"probe {probe.name} returned no log-posterior of {one.name}: return natural logarithms of "
                "probabilities above 0 that sum to 1 for each sample"
            )


def online_scores(
    features: Tensor, asked: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
) -> list[Scores]:
    """The online code of the training labels: each portion told by a probe fitted on those before it.

    Its bits beyond the text are what the features save of the labels' description length, the cost of
    learning included (Voita and Titov 2020, arXiv 2003.12298, section 3.2). The first portion is told
    by the text alone; a fifth of what is known serves as validation. Clusters are never cut.

    Args:
        features: float[N, d].
        asked, split, device: as `linear_scores`.
        seed: of the order.

    Returns:
        For each target, over the training samples.
    """
    rng = np.random.default_rng([seed, 0x0D1])
    clusters = rng.permutation(np.unique(split.cluster[split.train]))
    rank = np.argsort(clusters)[np.searchsorted(np.sort(clusters), split.cluster[split.train])]  # int64[train]
    said = [one.text.copy() for one in asked]
    ends = [
        len(clusters) * 2**power // FIRST_PORTION_DIVISOR for power in range(int(np.log2(FIRST_PORTION_DIVISOR)) + 1)
    ]
    for known, until in pairwise(ends):
        before = rank < known
        check = before & (rank % 5 == 0)
        fitted, chosen = split.train[before & ~check], split.train[check]
        if not len(fitted) or not len(chosen) or not _learnable(asked, fitted, chosen):
            continue
        next_up = split.train[(rank >= known) & (rank < until)]
        seen = np.concatenate([fitted, chosen, next_up])
        parts = [replace(one, labels=one.labels[seen], text=one.text[seen]) for one in asked]
        a, b = len(fitted), len(fitted) + len(chosen)
        cluster = split.cluster[seen]
        (told,) = linear_posteriors(features[None, seen], parts, np.arange(a), np.arange(a, b), cluster, device)
        for number, posterior in enumerate(told):
            said[number][next_up] = posterior[b:]
    whole = replace(split, test=split.train)
    return [score(one, posterior, whole) for one, posterior in zip(asked, said, strict=True)]


def _learnable(asked: Sequence[ProbeTarget], *parts: np.ndarray) -> bool:
    """Whether every target has labels in every part."""
    return all(bool((one.labels[part] >= 0).any()) for one in asked for part in parts)
