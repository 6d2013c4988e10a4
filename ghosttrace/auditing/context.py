"""What the attackers work on: traces with secrets, and the caches that a defence leaves of them."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.auditing.evidence import Site as Where
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.cells import linear_posteriors
from ghosttrace.probing.evidence import Asked, family
from ghosttrace.probing.features import Features
from ghosttrace.probing.split import Split
from ghosttrace.probing.sweep import Settings, Site
from ghosttrace.probing.text import marginals


@dataclass(frozen=True)
class Exhibit:
    """Everything an attack may use.

    Attributes:
        checkpoint: the model and its law.
        task: traces with secrets.
        split: attackers learn on train, choose and set thresholds on validation, and are judged on test.
        arm: the defence.
        settings: where to look.
        asked: the targets, with what the text says of each.
        features: of the `open` cache, which is the defended one, of the `sealed` one, and of `unerased` secrets.
        alpha: intervals of gated findings miss with this probability each, so that all hold together.
    """

    checkpoint: Checkpoint
    task: Task
    split: Split
    arm: Arm
    settings: Settings
    asked: list[Asked]
    features: dict[str, Features]
    alpha: float

    @property
    def secrets(self) -> dict[str, list[int]]:
        """The targets that make up each secret: `note-*` of `note-0` and so on; else they are all one."""
        found: dict[str, list[int]] = {}
        for number, one in enumerate(self.asked):
            stem = family(one.name)
            found.setdefault(stem if stem.endswith("*") else self.task.name, []).append(number)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model is, and probes are fitted."""
        return self.checkpoint.model.device

    def parts(self, secret: str) -> list[Asked]:
        """The targets that make up a secret."""
        return [self.asked[number] for number in self.secrets[secret]]

    def known(self, secret: str, part: np.ndarray) -> np.ndarray:
        """int64: those of some traces to which every target of a secret applies."""
        labels = np.stack([one.labels[part] for one in self.parts(secret)])
        return part[(labels >= 0).all(axis=0)]

    def unknown(self, secret: str) -> float:
        """Bits of a secret that the text leaves open, on the test."""
        rows = self.known(secret, self.split.test)
        asked = self.parts(secret)
        return float(sum(-one.text[rows, one.labels[rows]].mean() for one in asked) / np.log(2))

    def posteriors(self, secret: str, site: Site, condition: str = "open", flat: bool = False) -> list[np.ndarray]:
        """What a linear probe at a site says of each part of a secret, float[N, C], natural logarithms.

        Args:
            secret: which secret.
            site: where.
            condition: which cache.
            flat: without the text: on top of how often each class occurs.
        """
        asked = self.parts(secret)
        if flat:
            asked = [replace(one, text=self._base(one)) for one in asked]
        states = site.read(self.features[condition])[None]
        split = self.split
        (said,) = linear_posteriors(states, asked, split.train, split.validation, split.cluster, self.device)
        return said

    def _base(self, one: Asked) -> np.ndarray:
        """float[N, C]: how often each class of a target occurs."""
        return np.tile(marginals(one.labels, one.text.shape[1], self.split.train), (len(one.labels), 1))


def where(site: Site, probe: str = "linear") -> Where:
    """A site of a sweep, as in the results."""
    return Where(**site.names, probe=probe)
