"""The smallest leak that a run's probes could have seen: leaks of known size put into caches that have none.

Fresh labels, uniform and independent of everything, are written into a sealed cache's states along
random directions: with some probability the true label, else one drawn at random, so that the bits that
the code holds are known. Whether an attacker who learns on as many traces finds it shows what the run would
have seen. A code is the easiest kind of leak: linear, strong, at one place, and the attacker knows which. It
is put in twice, once into the secret's first part alone and once spread over all parts, and both must be seen.
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
MIN_DETECTIONS = 8  # of the trials, for a leak to count as one that would have been seen
CODE_STRENGTH = 3.0  # of the code's directions, relative to the states' spread
MIN_RELATIVE_SPREAD = 1e-3  # spread of the states that a code is written for, relative to their size
LEAK_LIMIT_MULTIPLES = (1.0, 2.0, 5.0, 10.0)  # times the leak that the gate allows


def smallest_detectable_leak(context: AuditContext, secret: str, site: ProbeSite) -> float | None:
    """The least of some leaks, in bits a secret, that 8 of 10 runs like this one detect.

    Args:
        context: whose sealed cache the leaks are put into.
        secret: which secret is leaked, one part alone and all parts evenly.
        site: where; the leaks tried are multiples of the context's `max_leak`.

    Returns:
        None if none of them is seen, or none is possible.
    """
    parts = context.parts(secret)
    states = site.read(context.features["sealed"])
    most = np.log2(parts[0].text.shape[1])
    for level in (context.max_leak * times for times in LEAK_LIMIT_MULTIPLES):
        alone = (level, *[0.0] * (len(parts) - 1))
        evenly = (level / len(parts),) * len(parts)
        codes = dict.fromkeys((alone, evenly))  # of a single part they are the same
        if level < most and all(enough_detections(detection_trials(context, parts, states, bits)) for bits in codes):
            return float(level)
    return None


def enough_detections(seen: Iterable[bool]) -> bool:
    """Return True once 8 of 10 trials detect the leak; stops early."""
    counts = {True: 0, False: 0}
    for one in seen:
        counts[one] += 1
        if counts[True] == MIN_DETECTIONS or counts[False] > N_TRIALS - MIN_DETECTIONS:
            break
    return counts[True] >= MIN_DETECTIONS


def detection_trials(
    context: AuditContext, parts: Sequence[ProbeTarget], states: Tensor, bits: Sequence[float]
) -> Iterator[bool]:
    """Whether each of the trials sees a leak of so many bits of each part."""
    for number in range(N_TRIALS):
        rng = np.random.default_rng([context.settings.seed, 0xDE7, number])
        fresh = [with_random_labels(one, rng) for one in parts]
        leaking = inject(states, fresh, bits, rng)
        (scores,) = linear_scores(leaking[None], fresh, context.split, context.device)
        found, _ = total_bits([LabelLogProbs.of(score) for score in scores], context.split.cluster, context.alpha)
        yield found.low > 0


def with_random_labels(asked: ProbeTarget, rng: np.random.Generator) -> ProbeTarget:
    """The target with uniform random labels wherever it applies, and a uniform text posterior.

    The real labels will not do: some may be commoner than others, and a probe would gain bits by learning
    that, whatever the states hold.
    """
    n, classes = asked.text.shape
    labels = np.where(asked.labels >= 0, rng.integers(0, classes, n), -1)
    return replace(asked, labels=labels, text=np.full((n, classes), -np.log(classes)))


def inject(states: Tensor, parts: Sequence[ProbeTarget], bits: Sequence[float], rng: np.random.Generator) -> Tensor:
    """States, float[N, d], with codes of so many bits of uniform labels written into them, one a part."""
    n = len(states)
    spread = states.std(0, correction=0).mean()
    least = MIN_RELATIVE_SPREAD * states.square().mean().sqrt()  # where nothing varies, as in a delimiter's first layer
    leaking = states.clone()
    for asked, held in [pair for pair in zip(parts, bits, strict=True) if pair[1] > 0]:
        classes = asked.text.shape[1]
        true = (rng.random(n) < label_fidelity(held, classes)) & (asked.labels >= 0)
        shown = np.where(true, asked.labels, rng.integers(0, classes, n))
        directions = torch.from_numpy(rng.standard_normal((classes, states.shape[1]))).to(states)
        leaking += CODE_STRENGTH * torch.maximum(spread, least) * directions[torch.from_numpy(shown)]
    return leaking


def label_fidelity(bits: float, classes: int) -> float:
    """The probability with which the true label must be written for the code to hold so many bits."""

    def held(share: float) -> float:
        said = np.full(classes, (1 - share) / classes)
        said[0] += share
        return float(np.log2(classes) - entropy(said, base=2))

    return float(brentq(lambda share: held(share) - bits, 0.0, 1.0))
