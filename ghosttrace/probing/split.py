"""Splits that share neither a secret nor a base trace."""

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
MIN_SPLIT_GROUPS = 34  # groups, so that 5 go to the test: with fewer its intervals and its controls say next to nothing


@dataclass(frozen=True)
class Split:
    """Which samples a probe is fitted on, chosen on, and reported on.

    Attributes:
        train, validation, test: int64 each, ascending.
        cluster: int64[N], samples that are not independent of each other: one base trace, or one secret
            where traces are shared.
        shares: what no two of the sets share, in words.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cluster: np.ndarray
    shares: str

    def split_names(self) -> np.ndarray:
        """str[N]: train, validation or test."""
        found = np.full(len(self.cluster), "train", dtype=object)
        found[self.validation], found[self.test] = "validation", "test"
        return found

    def describe(self) -> dict[str, Any]:
        """The split as run.json records it: what its sets do not share, their sizes, and a digest."""
        sizes = {name: len(getattr(self, name)) for name in ("train", "validation", "test")}
        return {"shares no": self.shares, **sizes, "sha256": sha256(" ".join(self.split_names()).encode()).hexdigest()}


def split(samples: Sequence[Sample], seed: int = 0, within_traces: bool = False) -> Split:
    """Split samples so that whatever two of them share stays on one side.

    Args:
        samples: N of them.
        seed: of the assignment.
        within_traces: let the sets share base traces, so that only secrets are new to the test: it
            then says how well a probe made for these very traces reads them.

    Raises:
        UserError: the samples hang together in too few groups.
    """
    _, base = np.unique([sample.base for sample in samples], return_inverse=True)
    # Where the secret is its own class, traces that are alike token for token are one.
    named = [sample.secret or f"\0{hash(tuple(map(int, sample.ids)))}" for sample in samples]
    _, secret = np.unique(named, return_inverse=True)
    cluster = secret if within_traces else base
    group = secret if within_traces else _components(base, secret)
    count = int(group.max()) + 1
    if count < MIN_SPLIT_GROUPS:
        raise UserError(
            f"the samples hang together in {count} groups by {'secret' if within_traces else 'base trace and secret'}, "
            f"and a split takes {MIN_SPLIT_GROUPS}: give more traces, or --within-traces if the claim is about these alone"
        )
    side = _assign(np.bincount(group), np.random.default_rng([seed, 0x5B117]))[group]
    train, validation, test = (np.flatnonzero(side == number) for number in range(3))
    shared = "base traces and secrets"
    if within_traces:
        shared = "secrets" if all(sample.secret for sample in samples) else "traces alike token for token"
    return Split(train, validation, test, cluster, shared)


def _components(base: np.ndarray, secret: np.ndarray) -> np.ndarray:
    """int64[N]: samples linked by a base trace or a secret, directly or through others."""
    nodes = int(base.max() + secret.max()) + 2
    edges = coo_array((np.ones(len(base)), (base, base.max() + 1 + secret)), shape=(nodes, nodes))
    _, label = connected_components(edges, directed=False)
    return np.unique(label[base], return_inverse=True)[1]


def _assign(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64[groups]: 0, 1 or 2; in random order, each where most is lacking."""
    side = np.zeros(len(sizes), dtype=np.int64)
    lacking = np.array(SPLIT_FRACTIONS) * sizes.sum()
    for group in rng.permutation(len(sizes)):
        side[group] = int(np.argmax(lacking / np.array(SPLIT_FRACTIONS)))
        lacking[side[group]] -= sizes[group]
    return side
