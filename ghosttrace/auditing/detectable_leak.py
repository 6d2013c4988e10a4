"""The smallest leaks that the probes of a run can detect, measured with leaks of known size in sealed caches.

Random labels, uniform and independent of everything else, are written into single tokens of a sealed cache, before
these are pooled, in keys in one trial and in values in the next. A leak is detectable if 8 of 10 trials detect it with
a probe fitted on as many traces as in the run. Three kinds of leaks are tried at the best site of the linear probes:

- a linear code of a small part of the information, in the first part of the secret only and spread over all parts;
- the whole secret, in a few traces only;
- a one-time pad over two tokens, each of which is independent of the secret.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.optimize import brentq
from scipy.stats import entropy

from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import LabelLogProbs, total_bits
from ghosttrace.auditing.exposure import exposed_traces
from ghosttrace.auditing.token_codes import CachedTokens, read_tokens
from ghosttrace.auditing.verdict import DetectableLeak
from ghosttrace.probing.evidence import ProbeTarget, Scores, record
from ghosttrace.probing.features import StateKind
from ghosttrace.probing.fit_and_score import linear_scores, probe_scores
from ghosttrace.probing.probes import MLP, UnusualTraces
from ghosttrace.probing.site import ProbeSite

N_TRIALS = 10
MIN_DETECTIONS = 8  # trials that must detect a leak for it to count as detectable
# Sizes that are tried, relative to the gate's limits, and for pads to the bits of the first part.
LIMIT_MULTIPLES, PAD_SHARES = (1.0, 2.0, 5.0, 10.0), (0.5, 1.0)

Trial = Callable[[CachedTokens, list[ProbeTarget], np.random.Generator], bool]
"""Writes a leak of random labels into the tokens, and returns whether a probe detects it."""


def smallest_detectable_leak(
    context: AuditContext, secret: str, site: ProbeSite, with_pads: bool = True
) -> DetectableLeak:
    """Return the smallest leaks of each kind that 8 of 10 trials detect.

    Args:
        context: Context with features of the sealed cache, into which the leaks are written.
        secret: Name of the secret that leaks.
        site: Site of the leaks and of the probes.
        with_pads: Whether to try one-time pads, which take a nonlinear probe each.
    """
    parts, limits = context.parts(secret), context.limits
    max_leak, max_exposed = limits.of("bits", secret), limits.exposed
    kinds: tuple[StateKind, ...] = ("k", "v")
    tokens = [read_tokens(context, site, kind) for kind in kinds if {kind, "kv"} & set(context.settings.kv)]
    capacity = float(np.log2(parts[0].text.shape[1]))
    trials = partial(detection_trials, context, parts, tokens)

    def linear_is_detected(bits: float) -> bool:
        first_part_only = (bits, *[0.0] * (len(parts) - 1))
        spread_evenly = (bits / len(parts),) * len(parts)
        codes = dict.fromkeys((first_part_only, spread_evenly))  # equal if the secret has a single part
        return bits < capacity and all(enough_detections(trials(partial(linear_trial, context, c))) for c in codes)

    def few_traces_are_detected(share: float) -> bool:
        return share < 1 and enough_detections(trials(partial(exposure_trial, context, share)))

    def pad_is_detected(bits: float) -> bool:
        return enough_detections(trials(partial(pad_trial, context, bits)))

    smallest_code = _smallest([max_leak * multiple for multiple in LIMIT_MULTIPLES], linear_is_detected)
    if smallest_code is None:  # nothing passes then, and what is harder to see is not tried
        return DetectableLeak()
    pads = [capacity * share for share in PAD_SHARES if with_pads and context.settings.mlp and tokens[0].count > 1]
    return DetectableLeak(
        smallest_code,
        _smallest([max_exposed * multiple for multiple in LIMIT_MULTIPLES], few_traces_are_detected),
        _smallest(pads, pad_is_detected),
    )


def _smallest(sizes: Sequence[float], is_detected: Callable[[float], bool]) -> float | None:
    return next((size for size in sizes if is_detected(size)), None)


def enough_detections(detections: Iterable[bool]) -> bool:
    """Return whether 8 of 10 trials detect the leak; stop as soon as the answer is known."""
    counts = {True: 0, False: 0}
    for detected in detections:
        counts[detected] += 1
        if counts[True] == MIN_DETECTIONS or counts[False] > N_TRIALS - MIN_DETECTIONS:
            break
    return counts[True] >= MIN_DETECTIONS


def detection_trials(
    context: AuditContext, parts: Sequence[ProbeTarget], tokens: Sequence[CachedTokens], trial: Trial
) -> Iterator[bool]:
    """Yield for each trial whether a probe detects the leak; trials take turns between keys and values.

    Args:
        context: Context of the audit.
        parts: Targets of the secret's parts.
        tokens: Tokens of the sealed cache, of each kind of states.
        trial: Writes and probes one leak.
    """
    for number in range(N_TRIALS):
        rng = np.random.default_rng([context.settings.seed, 0xDE7, number])
        random_targets = [with_random_labels(part, rng) for part in parts]
        yield trial(tokens[number % len(tokens)].copy(), random_targets, rng)


def linear_trial(
    context: AuditContext,
    bits: Sequence[float],
    tokens: CachedTokens,
    targets: list[ProbeTarget],
    rng: np.random.Generator,
) -> bool:
    """Write a linear code into one token and probe it, see `write_linear_code`."""
    write_linear_code(tokens, targets, bits, rng)
    (scores,) = linear_scores(tokens.features()[None], targets, context.split, context.device)
    return _bits_are_found(context, scores)


def write_linear_code(
    tokens: CachedTokens, targets: Sequence[ProbeTarget], bits: Sequence[float], rng: np.random.Generator
) -> None:
    """Write a code into one token: the true label with some probability, and a random label otherwise.

    Args:
        tokens: The tokens, whose states are changed.
        targets: Targets with uniform labels.
        bits: Information of each target's label to write.
        rng: Generator of random numbers.
    """
    offset = tokens.draw_offsets(1, rng)[0]
    for target, target_bits in [pair for pair in zip(targets, bits, strict=True) if pair[1] > 0]:
        n, n_classes = target.text.shape
        is_true = (rng.random(n) < label_fidelity(target_bits, n_classes)) & (target.labels >= 0)
        tokens.write(offset, np.where(is_true, target.labels, rng.integers(0, n_classes, n)), n_classes, rng)


def exposure_trial(
    context: AuditContext, share: float, tokens: CachedTokens, targets: list[ProbeTarget], rng: np.random.Generator
) -> bool:
    """Write all parts into one token of a share of the traces, and probe the unusual traces."""
    offset, cluster = tokens.draw_offsets(1, rng)[0], context.split.cluster
    chosen = (rng.random(int(cluster.max()) + 1) < share)[cluster]  # all copies of a base trace, or none
    for target in targets:
        rows = chosen & (target.labels >= 0)
        tokens.write(offset, target.labels.clip(min=0), target.text.shape[1], rng, rows)
    features, seed = tokens.features(), context.settings.seed
    scores = probe_scores(UnusualTraces(), features, targets, context.split, seed, context.device)
    return exposed_traces([record(score) for score in scores], cluster, context.alpha)[0].low > 0


def pad_trial(
    context: AuditContext, bits: float, tokens: CachedTokens, targets: list[ProbeTarget], rng: np.random.Generator
) -> bool:
    """Write a random key into one token, and the first part of the secret plus the key into another."""
    target, (first, second) = targets[0], tokens.draw_offsets(2, rng)
    n, n_classes = target.text.shape
    is_true = (rng.random(n) < label_fidelity(bits, n_classes)) & (target.labels >= 0)
    key = np.asarray(rng.integers(0, n_classes, n))
    written = np.where(is_true, target.labels, rng.integers(0, n_classes, n))
    tokens.write(first, key, n_classes, rng)
    tokens.write(second, (written + key) % n_classes, n_classes, rng)
    scores = probe_scores(MLP(), tokens.features(), [target], context.split, context.settings.seed, context.device)
    return _bits_are_found(context, scores)


def _bits_are_found(context: AuditContext, scores: Sequence[Scores]) -> bool:
    log_probs = [LabelLogProbs.from_scores(score) for score in scores]
    return total_bits(log_probs, context.split.cluster, context.alpha)[0].low > 0


def with_random_labels(target: ProbeTarget, rng: np.random.Generator) -> ProbeTarget:
    """Return the target with uniform random labels where it applies, and with a uniform text posterior.

    The real labels cannot be used: their class frequencies may differ, and a probe would gain bits by learning the
    frequencies, independently of the states.
    """
    n, n_classes = target.text.shape
    labels = np.where(target.labels >= 0, rng.integers(0, n_classes, n), -1)
    return replace(target, labels=labels, text=np.full((n, n_classes), -np.log(n_classes)))


def label_fidelity(bits: float, n_classes: int) -> float:
    """Return the probability of writing the true label with which a code holds this many bits per label."""
    if bits >= np.log2(n_classes):
        return 1.0

    def information(fidelity: float) -> float:
        posterior = np.full(n_classes, (1 - fidelity) / n_classes)
        posterior[0] += fidelity
        return float(np.log2(n_classes) - entropy(posterior, base=2))

    return float(brentq(lambda fidelity: information(fidelity) - bits, 0.0, 1.0))
