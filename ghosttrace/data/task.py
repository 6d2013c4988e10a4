"""What a probe is asked: traces with something hidden in one of their blocks, and the questions about it."""

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
        ids: int[T], prompt and response.
        base: which trace it was made from; samples of one base are one cluster.
        secret: what was hidden, as far as two samples could share it; no split separates equal ones.
            Empty where the secret is itself the class (a word of a list).
        block: which finished pair holds the secret, counted from 0.
        secret_indices: places in `ids` of the tokens that spell it.
        labels: int, one per target of the task; -1 where a target does not apply.
    """

    ids: Sequence[int]
    base: str
    secret: str
    block: int
    secret_indices: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One question: which of these classes?"""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Samples and what is asked about them.

    Attributes:
        name: as in the results.
        samples: N of them.
        targets: the questions.
        exact_log_posteriors: for targets whose posterior given the retained text is known exactly, float[N, C],
            its natural logarithm (-inf for what the text excludes).
    """

    name: str
    samples: tuple[Sample, ...]
    targets: tuple[Target, ...]
    exact_log_posteriors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def select_targets(self, patterns: Sequence[str]) -> "Task":
        """The same samples, asked for some of the targets.

        Args:
            patterns: of names, as a shell matches them: `note-*`.

        Raises:
            UserError: a pattern matches no target.
        """
        names = [target.name for target in self.targets]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"{self.name} has no target {pattern!r}: it has {', '.join(names)}")
        kept = [place for place, name in enumerate(names) if any(fnmatch.fnmatch(name, one) for one in patterns)]
        samples = tuple(replace(one, labels=tuple(one.labels[place] for place in kept)) for one in self.samples)
        return replace(self, samples=samples, targets=tuple(self.targets[place] for place in kept))

    def labels(self, target: int) -> np.ndarray:
        """int[N], of one target."""
        return np.array([sample.labels[target] for sample in self.samples])

    def describe(self) -> dict[str, Any]:
        """The task as run.json records it: name, size, a digest of all samples, and the targets with their classes."""
        digest = sha256()
        for sample in self.samples:
            ids = list(map(int, sample.ids))
            digest.update(repr((ids, sample.base, sample.secret, sample.block, sample.labels)).encode())
        return {
            "task": {"name": self.name, "samples": len(self.samples), "sha256": digest.hexdigest()},
            "targets": {target.name: list(target.classes) for target in self.targets},
        }

    def check(self) -> None:
        """Refuse labels that nothing can be learned from.

        Raises:
            UserError: a target has fewer samples than classes, or a class that occurs once or never varies.
        """
        for number, target in enumerate(self.targets):
            labels = self.labels(number)
            counts = np.bincount(labels[labels >= 0], minlength=len(target.classes))
            if counts.sum() < len(target.classes):
                raise UserError(
                    f"{self.name}: {target.name} has {counts.sum()} samples for {len(target.classes)} classes: "
                    "give more samples, or fewer classes"
                )
            if (counts > 0).sum() < 2:
                raise UserError(f"{self.name}: {target.name} has the same label everywhere: there is nothing to tell")
            if (counts == 1).any():
                once = target.classes[int(np.argmax(counts == 1))]
                raise UserError(
                    f"{self.name}: {target.name} is {once!r} in one sample alone: leave it out, or give more samples"
                )
