"""The same targets with other labels: shuffled, and a control task that only memorising can answer."""

from collections.abc import Sequence

import numpy as np

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import log_marginals


def control_tasks(asked: Sequence[ProbeTarget], seed: int) -> list[ProbeTarget]:
    """For each target one over pairs of its labels and the next target's; none where there is one target alone."""
    pairs = zip(asked, [*asked[1:], asked[0]], strict=True)
    return [control_task(one, other, seed) for one, other in pairs] if len(asked) > 1 else []


def shuffled_targets(asked: Sequence[ProbeTarget], split: Split, seed: int) -> list[ProbeTarget]:
    """Every target with its labels shuffled; what is known of them is how often each class occurs."""
    shares = [log_marginals(one.labels, one.text.shape[1], split.train) for one in asked]
    return [shuffle_labels(one, share, seed) for one, share in zip(asked, shares, strict=True)]


def control_task(asked: ProbeTarget, other: ProbeTarget, seed: int) -> ProbeTarget:
    """A target that only memorising can answer: a random label for every pair of two targets' labels.

    Pairs recur between train and test. A probe that reads a code knows the digits, not these labels:
    what it scores less here is its selectivity (Hewitt and Liang 2019, arXiv 1909.03368, section 2).
    """
    classes = asked.text.shape[1]
    table = np.random.default_rng([seed, 0xC0]).integers(0, classes, (classes, other.text.shape[1]))
    known = (asked.labels >= 0) & (other.labels >= 0)
    labels = np.where(known, table[asked.labels, other.labels], -1)
    return ProbeTarget(asked.name, labels, np.full(asked.text.shape, -np.log(classes)))


def shuffle_labels(asked: ProbeTarget, base: np.ndarray, seed: int) -> ProbeTarget:
    """The target with its labels shuffled; `base` float[C] is what is known of them without features."""
    known = np.flatnonzero(asked.labels >= 0)
    labels = asked.labels.copy()
    labels[known] = labels[np.random.default_rng([seed, 0x5F]).permutation(known)]
    return ProbeTarget(asked.name, labels, np.tile(base, (len(labels), 1)))
