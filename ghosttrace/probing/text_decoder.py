"""Strong decoders of the retained text: probes of sealed states, started from the n-gram text baseline.

A sealed cache is a function of the retained text alone, so a probe of its states is a decoder of the text. It knows
what the model knows about words that the n-grams have seen once or never. Training samples are predicted by
cross-fitting, so that a probe of the open cache can be fitted on top of the decoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fit_and_score import PENALTIES, linear_posteriors, probe_posteriors
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import N_FOLDS

DECODER_PENALTIES = (*PENALTIES, 1e-4, 1e-5)  # a text may determine a label, so that classes are separable
Fit = Callable[[Tensor, Sequence[ProbeTarget], Split], list[np.ndarray]]
"""Fits probes on features float[N, d] and returns one posterior float[N, C] per target, or its text baseline."""


def linear_fit(device: torch.device) -> Fit:
    """Return the fit of linear probes on a device."""

    def fit(features: Tensor, targets: Sequence[ProbeTarget], split: Split) -> list[np.ndarray]:
        rows = (split.train, split.validation, split.cluster)
        return linear_posteriors(features[None], targets, *rows, device, DECODER_PENALTIES)[0]

    return fit


def probe_fit(probe: Probe, seed: int, device: torch.device) -> Fit:
    """Return the fit of any probe with a random seed on a device."""

    def fit(features: Tensor, targets: Sequence[ProbeTarget], split: Split) -> list[np.ndarray]:
        return probe_posteriors(probe, features, targets, split, seed, device)

    return fit


def with_decoder(fit: Fit, states: Tensor, targets: Sequence[ProbeTarget], split: Split) -> list[ProbeTarget]:
    """Replace the text baseline of targets by a decoder that is fitted on sealed states and starts from it.

    Args:
        fit: The probe to fit.
        states: float[N, d], states of the sealed cache.
        targets: T targets with a text baseline.
        split: Train, validation and test samples.

    Returns:
        The targets; `text` is unchanged where the decoder gains at most one standard error on validation.
    """
    posteriors = fit(states, targets, split)
    gained = [not np.array_equal(log_p, target.text) for log_p, target in zip(posteriors, targets, strict=True)]
    if not any(gained):
        return list(targets)
    posteriors = [log_p.copy() for log_p in posteriors]
    groups = split.cluster[split.train]
    for rest, held_out in GroupKFold(min(N_FOLDS, len(np.unique(groups)))).split(groups, groups=groups):
        rows = split.train[held_out]
        of_fold = fit(states, targets, replace(split, train=split.train[rest]))
        for posterior, without_rows in zip(posteriors, of_fold, strict=True):
            posterior[rows] = without_rows[rows]
    return [
        replace(target, text=posterior) if better else target
        for target, posterior, better in zip(targets, posteriors, gained, strict=True)
    ]


def half_of_train(split: Split, seed: int) -> Split:
    """Return the split with half of its training clusters, drawn at random."""
    clusters = np.unique(split.cluster[split.train])
    drawn = np.random.default_rng([seed, 0x4A1F]).permutation(clusters)[: max(1, len(clusters) // 2)]
    return replace(split, train=split.train[np.isin(split.cluster[split.train], drawn)])
