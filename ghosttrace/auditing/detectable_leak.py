"""The smallest leak that the probes of a run can detect, measured with leaks of known size in sealed caches.

Random labels, uniform and independent of everything else, are written into the states of a sealed cache along random
directions. The true label is written with a given probability, and a random label otherwise, so that the information
in the code is known. A leak is detectable if a probe fitted on as many traces as in the run finds it. Such a code is
the easiest kind of leak: it is linear and strong, and it lies at a single site that the attacker knows. It is tried in
two forms, in the first part of the secret only and spread over all parts, and both must be detected.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import entropy
from torch import Tensor

from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import LabelLogProbs, total_bits
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.sweep import ProbeSite

N_TRIALS = 10
MIN_DETECTIONS = 8  # trials that must detect a leak for it to count as detectable
CODE_STRENGTH = 3.0  # length scale of the code's directions, relative to the spread of the states
MIN_RELATIVE_SPREAD = 1e-3  # minimum spread that a code is scaled by, relative to the size of the states
LEAK_LIMIT_MULTIPLES = (1.0, 2.0, 5.0, 10.0)  # sizes of the leaks that are tried, relative to the gate's limit


def smallest_detectable_leak(context: AuditContext, secret: str, site: ProbeSite) -> float | None:
    """Return the smallest leak, in bits per secret, that 8 of 10 trials detect.

    The leaks that are tried are multiples of `context.max_leak`.

    Args:
        context: Context with features of the sealed cache, into which the leaks are written.
        secret: Name of the secret that leaks, through one part only and through all parts evenly.
        site: Site of the leak and of the probe.

    Returns:
        The leak, or None if no leak was detected or the parts have too few classes to hold one.
    """
    parts = context.parts(secret)
    states = site.read(context.features["sealed"])
    capacity = np.log2(parts[0].text.shape[1])
    for leak in (context.max_leak * multiple for multiple in LEAK_LIMIT_MULTIPLES):
        first_part_only = (leak, *[0.0] * (len(parts) - 1))
        spread_evenly = (leak / len(parts),) * len(parts)
        codes = dict.fromkeys((first_part_only, spread_evenly))  # equal if the secret has a single part
        if leak < capacity and all(enough_detections(detection_trials(context, parts, states, bits)) for bits in codes):
            return float(leak)
    return None


def enough_detections(detections: Iterable[bool]) -> bool:
    """Return whether 8 of 10 trials detect the leak; stop as soon as the answer is known."""
    counts = {True: 0, False: 0}
    for detected in detections:
        counts[detected] += 1
        if counts[True] == MIN_DETECTIONS or counts[False] > N_TRIALS - MIN_DETECTIONS:
            break
    return counts[True] >= MIN_DETECTIONS


def detection_trials(
    context: AuditContext, parts: Sequence[ProbeTarget], states: Tensor, bits: Sequence[float]
) -> Iterator[bool]:
    """Yield for each trial whether a probe detects the leak.

    Args:
        context: Context of the audit.
        parts: Targets of the secret's parts.
        states: float[N, d], states of the sealed cache at one site.
        bits: Information of each part to write into the states.
    """
    for number in range(N_TRIALS):
        rng = np.random.default_rng([context.settings.seed, 0xDE7, number])
        random_targets = [with_random_labels(part, rng) for part in parts]
        leaking_states = inject(states, random_targets, bits, rng)
        (scores,) = linear_scores(leaking_states[None], random_targets, context.split, context.device)
        log_probs = [LabelLogProbs.from_scores(score) for score in scores]
        estimate, _ = total_bits(log_probs, context.split.cluster, context.alpha)
        yield estimate.low > 0


def with_random_labels(target: ProbeTarget, rng: np.random.Generator) -> ProbeTarget:
    """Return the target with uniform random labels where it applies, and with a uniform text posterior.

    The real labels cannot be used: their class frequencies may differ, and a probe would gain bits by learning the
    frequencies, independently of the states.
    """
    n, n_classes = target.text.shape
    labels = np.where(target.labels >= 0, rng.integers(0, n_classes, n), -1)
    return replace(target, labels=labels, text=np.full((n, n_classes), -np.log(n_classes)))


def inject(states: Tensor, parts: Sequence[ProbeTarget], bits: Sequence[float], rng: np.random.Generator) -> Tensor:
    """Write a linear code of known information into states, one code per part of the secret.

    Args:
        states: float[N, d], states at one site.
        parts: Targets with uniform labels.
        bits: Information of each part to write.
        rng: Generator of random numbers.

    Returns:
        float[N, d], a changed copy of the states.
    """
    n = len(states)
    spread = states.std(0, correction=0).mean()
    # States can be constant, as those of a delimiter in the first layer.
    min_spread = MIN_RELATIVE_SPREAD * states.square().mean().sqrt()
    leaking_states = states.clone()
    for target, part_bits in [pair for pair in zip(parts, bits, strict=True) if pair[1] > 0]:
        n_classes = target.text.shape[1]
        writes_true_label = (rng.random(n) < label_fidelity(part_bits, n_classes)) & (target.labels >= 0)
        written = np.where(writes_true_label, target.labels, rng.integers(0, n_classes, n))
        directions = torch.from_numpy(rng.standard_normal((n_classes, states.shape[1]))).to(states)
        leaking_states += CODE_STRENGTH * torch.maximum(spread, min_spread) * directions[torch.from_numpy(written)]
    return leaking_states


def label_fidelity(bits: float, n_classes: int) -> float:
    """Return the probability of writing the true label with which a code holds this many bits per label."""

    def information(fidelity: float) -> float:
        posterior = np.full(n_classes, (1 - fidelity) / n_classes)
        posterior[0] += fidelity
        return float(np.log2(n_classes) - entropy(posterior, base=2))

    return float(brentq(lambda fidelity: information(fidelity) - bits, 0.0, 1.0))
