"""Train, validation and test splits that share neither a secret nor a base trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ghosttrace.data.task import Sample
from ghosttrace.errors import UserError

SPLIT_FRACTIONS = (0.7, 0.15, 0.15)
MIN_SPLIT_GROUPS = 34  # puts 5 groups in the test set; with fewer, intervals and controls are uninformative


@dataclass(frozen=True)
class Split:
    """A split of N samples into train, validation and test.

    Attributes:
        train, validation, test: int64, sample indices, ascending.
        cluster: int64[N]; samples with the same number are not independent. A cluster is a base trace, or a secret
            if the sets share base traces.
        shares: Description of what no two of the sets share.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cluster: np.ndarray
    shares: str

    def split_names(self) -> np.ndarray:
        """Return the set of each sample, str[N]: `train`, `validation` or `test`."""
        names = np.full(len(self.cluster), "train", dtype=object)
        names[self.validation], names[self.test] = "validation", "test"
        return names

    def describe(self) -> dict[str, Any]:
        """Return the split as recorded in run.json: what no two of its sets have in common, sizes, and a digest."""
        sizes = {name: len(getattr(self, name)) for name in ("train", "validation", "test")}
        return {"shares no": self.shares, **sizes, "sha256": sha256(" ".join(self.split_names()).encode()).hexdigest()}


def split(samples: Sequence[Sample], seed: int = 0, within_traces: bool = False) -> Split:
    """Split samples so that no two sets share a base trace or a secret.

    Args:
        samples: N samples.
        seed: Random seed of the assignment.
        within_traces: Allow the sets to share base traces, so that only the secrets of the test set are new. The
            results then hold for these traces only.

    Raises:
        UserError: Shared base traces and secrets link the samples into fewer than `MIN_SPLIT_GROUPS` groups.
    """
    _, base = np.unique([sample.base for sample in samples], return_inverse=True)
    # Samples without a `secret` are grouped by their tokens, so that no two sets share an identical trace.
    identities = [sample.secret or f"\0{hash(tuple(map(int, sample.ids)))}" for sample in samples]
    _, secret = np.unique(identities, return_inverse=True)
    cluster = secret if within_traces else base
    group = secret if within_traces else _components(base, secret)
    count = int(group.max()) + 1
    if count < MIN_SPLIT_GROUPS:
        raise UserError(
            f"the samples form {count} groups that share no {'secret' if within_traces else 'base trace or secret'} "
            f"and a split needs {MIN_SPLIT_GROUPS}: give at least {MIN_SPLIT_GROUPS - count} more traces, or "
            "--within-traces for claims about these only"
        )
    assignment = _assign(np.bincount(group), np.random.default_rng([seed, 0x5B117]))[group]
    train, validation, test = (np.flatnonzero(assignment == number) for number in range(3))
    shared = "base traces and secrets"
    if within_traces:
        shared = "secrets" if all(sample.secret for sample in samples) else "traces alike token for token"
    return Split(train, validation, test, cluster, shared)


def _components(base: np.ndarray, secret: np.ndarray) -> np.ndarray:
    """Return the group of each sample, int64[N]; samples linked by base traces or secrets form one group."""
    nodes = int(base.max() + secret.max()) + 2
    edges = coo_array((np.ones(len(base)), (base, base.max() + 1 + secret)), shape=(nodes, nodes))
    _, label = connected_components(edges, directed=False)
    return np.unique(label[base], return_inverse=True)[1]


def _assign(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 0 (train), 1 (validation) or 2 (test) per group, int64[groups].

    Groups are assigned in random order, each to the set that misses the largest fraction of its intended size.
    """
    assignment = np.zeros(len(sizes), dtype=np.int64)
    missing = np.array(SPLIT_FRACTIONS) * sizes.sum()
    for group in rng.permutation(len(sizes)):
        assignment[group] = int(np.argmax(missing / np.array(SPLIT_FRACTIONS)))
        missing[assignment[group]] -= sizes[group]
    return assignment
