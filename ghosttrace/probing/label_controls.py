"""Control targets: the same targets with shuffled labels, and a control task that requires memorisation."""

from collections.abc import Sequence

import numpy as np

from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import log_marginals


def control_tasks(targets: Sequence[ProbeTarget], seed: int) -> list[ProbeTarget]:
    """Return a control task for each target, paired with the next target; empty if there is only one target."""
    pairs = zip(targets, [*targets[1:], targets[0]], strict=True)
    return [control_task(target, other, seed) for target, other in pairs] if len(targets) > 1 else []


def shuffled_targets(targets: Sequence[ProbeTarget], split: Split, seed: int) -> list[ProbeTarget]:
    """Return every target with shuffled labels; its text baseline is the class frequencies of the training set."""
    marginals = [log_marginals(target.labels, target.text.shape[1], split.train) for target in targets]
    return [shuffle_labels(target, base, seed) for target, base in zip(targets, marginals, strict=True)]


def control_task(target: ProbeTarget, other: ProbeTarget, seed: int) -> ProbeTarget:
    """Return a target with a fixed random label for every pair of labels of two targets.

    Pairs recur in train and test, so a probe can solve the task only if it memorises them. The selectivity of
    a probe is its accuracy on the target minus its accuracy here (Hewitt and Liang 2019, arXiv 1909.03368,
    section 2).

    Args:
        target: Gives the name and the number of classes.
        other: The second target of each pair.
        seed: Random seed of the labels.
    """
    classes = target.text.shape[1]
    table = np.random.default_rng([seed, 0xC0]).integers(0, classes, (classes, other.text.shape[1]))
    known = (target.labels >= 0) & (other.labels >= 0)
    labels = np.where(known, table[target.labels, other.labels], -1)
    return ProbeTarget(target.name, labels, np.full(target.text.shape, -np.log(classes)))


def shuffle_labels(target: ProbeTarget, base: np.ndarray, seed: int) -> ProbeTarget:
    """Return the target with shuffled labels and `base`, float[C] log-probabilities, as its text baseline."""
    known = np.flatnonzero(target.labels >= 0)
    labels = target.labels.copy()
    labels[known] = labels[np.random.default_rng([seed, 0x5F]).permutation(known)]
    return ProbeTarget(target.name, labels, np.tile(base, (len(labels), 1)))
