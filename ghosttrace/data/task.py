"""Probe tasks: traces with a secret in one of their blocks, and the classification targets about it."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np

from ghosttrace.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A trace with a secret in one of its blocks.

    Attributes:
        ids: int[T], token ids of prompt and response.
        base: name of the base trace that the sample was made from; samples with the same base form one cluster.
        secret: the hidden content. Samples with the same secret go to the same split. Empty if the secret is itself
            the class (such as a word of a fixed list).
        block: number of the block-memento pair that holds the secret, 0-based.
        secret_indices: token indices in `ids` of the tokens that spell the secret.
        labels: class numbers, one per target of the task; -1 if a target does not apply.
    """

    ids: Sequence[int]
    base: str
    secret: str
    block: int
    secret_indices: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A classification problem.

    Attributes:
        name: as shown in the results.
        classes: names of the classes.
    """

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Samples and the targets to predict for them.

    Attributes:
        name: as shown in the results.
        samples: the N samples.
        targets: the classification targets.
        exact_log_posteriors: by target name, float[N, C], the natural logarithm of the class posterior given the
            retained text (-inf for classes that the text excludes). Only for targets whose posterior is known exactly.
    """

    name: str
    samples: tuple[Sample, ...]
    targets: tuple[Target, ...]
    exact_log_posteriors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def select_targets(self, patterns: Sequence[str]) -> "Task":
        """Return the task with the same samples and some of the targets.

        Args:
            patterns: shell-style patterns of target names, such as `note-*`.

        Raises:
            UserError: a pattern matches no target.
        """
        names = [target.name for target in self.targets]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"{self.name} has no target {pattern!r}: it has {', '.join(names)}")
        kept = [
            number for number, name in enumerate(names) if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        ]
        samples = tuple(
            replace(sample, labels=tuple(sample.labels[number] for number in kept)) for sample in self.samples
        )
        return replace(self, samples=samples, targets=tuple(self.targets[number] for number in kept))

    def labels(self, target: int) -> np.ndarray:
        """Return the labels of all samples, int[N], for the target with this number."""
        return np.array([sample.labels[target] for sample in self.samples])

    def describe(self) -> dict[str, Any]:
        """Return the entries of run.json: name, size, a digest of all samples, and the targets with their classes."""
        digest = sha256()
        for sample in self.samples:
            ids = list(map(int, sample.ids))
            digest.update(repr((ids, sample.base, sample.secret, sample.block, sample.labels)).encode())
        return {
            "task": {"name": self.name, "samples": len(self.samples), "sha256": digest.hexdigest()},
            "targets": {target.name: list(target.classes) for target in self.targets},
        }

    def check(self) -> None:
        """Check that a probe can be trained on the labels of every target.

        Raises:
            UserError: a target has fewer samples than classes, only one class, or a class that occurs once.
        """
        for number, target in enumerate(self.targets):
            labels = self.labels(number)
            counts = np.bincount(labels[labels >= 0], minlength=len(target.classes))
            if counts.sum() < len(target.classes):
                raise UserError(
                    f"{self.name}: {target.name} has {counts.sum()} samples for {len(target.classes)} classes: "
                    f"give at least {len(target.classes)} samples, or fewer classes"
                )
            if (counts > 0).sum() < 2:
                raise UserError(
                    f"{self.name}: {target.name} has the same label everywhere: give samples of at least two classes"
                )
            if (counts == 1).any():
                rare = target.classes[int(np.argmax(counts == 1))]
                raise UserError(
                    f"{self.name}: {target.name} is {rare!r} in one sample alone: remove it, or give at least "
                    f"one more sample of {rare!r}"
                )
