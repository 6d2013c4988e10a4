"""What an attack works on: traces with secrets, and the caches that a defence leaves of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.auditing.prompts import SecretPrompt, secret_name_of
from ghosttrace.auditing.sites import Row, best_probe
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.evidence import ALPHA, PROBE_RECORDS, ProbeTarget, summarise
from ghosttrace.probing.features import Features
from ghosttrace.probing.fit_and_score import linear_posteriors
from ghosttrace.probing.split import Split
from ghosttrace.probing.sweep import ProbeSettings, ProbeSite, site_groups
from ghosttrace.probing.text_baseline import log_marginals
from ghosttrace.runs.records import Records

Posteriors = list[np.ndarray]
"""Of each part of a secret, float[N, C], natural logarithms."""


@dataclass(frozen=True, eq=False)
class AuditContext:
    """Everything an attack may use.

    Before any cache is read the context has neither targets, features nor records: `Attack.obstacle` and
    `Attack.check` are called with it.

    Attributes:
        checkpoint: the model and its law.
        task: traces with secrets.
        split: attackers learn on train, choose and set thresholds on validation, and are judged on test.
        arm: the defence, fitted.
        settings: where probes look.
        targets: the parts of the secrets, with what the text says of each.
        features: of the `open` cache, which is the defended one, of the `sealed` one, and of `unerased` secrets.
        alpha: intervals of gated findings miss with this probability each, so that all hold together at 95 %.
        records: of the finished sweep, one row per probe and target.
        prompts: for each secret, what a user types to get it; secrets without one are not asked for.
        fpr: target false-positive rate of `membership`; None: 1 %, if there are traces enough.
        max_leak: bits a secret that are allowed.
    """

    checkpoint: Checkpoint
    task: Task
    split: Split
    arm: Arm
    settings: ProbeSettings
    targets: list[ProbeTarget] = field(default_factory=list)
    features: Mapping[str, Features] = field(default_factory=dict)
    alpha: float = ALPHA
    records: Records = field(default_factory=lambda: Records(PROBE_RECORDS))
    prompts: Mapping[str, SecretPrompt] = field(default_factory=dict)
    fpr: float | None = None
    max_leak: float = 0.1
    _posteriors: dict[tuple[str, ProbeSite, str, bool], Posteriors] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def secrets(self) -> dict[str, list[int]]:
        """The numbers of the targets of each secret: of `note-*` those of `note-0` and so on; others are all one."""
        found: dict[str, list[int]] = {}
        for number, target in enumerate(self.task.targets):
            found.setdefault(secret_name_of(target.name, self.task), []).append(number)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model is, and probes are fitted."""
        return self.checkpoint.model.device

    @cached_property
    def sweep_rows(self) -> list[Row]:
        """The rows of the sweep, in the order in which they were recorded."""
        return [self.records.get(key) for key in self.records.keys()]  # noqa: SIM118

    @cached_property
    def sites(self) -> pd.DataFrame:
        """The sweep's own table, see `ghosttrace.probing.evidence.summarise`."""
        return summarise(map(self.records.get, sorted(self.records.keys())), self.task, self.split)

    def parts(self, secret: str) -> list[ProbeTarget]:
        """The targets that make up a secret."""
        return [self.targets[number] for number in self.secrets[secret]]

    def sweep_rows_of(self, secret: str) -> list[Row]:
        """The rows of the sweep about the parts of a secret."""
        names = {self.task.targets[number].name for number in self.secrets[secret]}
        return [row for row in self.sweep_rows if row["target"] in names]

    def labels(self, secret: str, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of some traces to which all targets of a secret apply, int64[n]; their labels, int64[n, parts]."""
        found = np.stack([self.task.labels(number)[part] for number in self.secrets[secret]], axis=1)
        known = (found >= 0).all(axis=1)
        return part[known], found[known]

    def labelled_rows(self, secret: str, part: np.ndarray) -> np.ndarray:
        """int64: those of some traces to which every target of a secret applies."""
        return self.labels(secret, part)[0]

    def unknown_bits(self, secret: str) -> float:
        """Bits of a secret that the text leaves open, on the test."""
        rows = self.labelled_rows(secret, self.split.test)
        return float(sum(-one.text[rows, one.labels[rows]].mean() for one in self.parts(secret)) / np.log(2))

    def best_site(self, secret: str) -> ProbeSite:
        """The site whose linear probe of a secret did best on validation."""
        best = best_probe(row for row in self.sweep_rows_of(secret) if row["probe"] == "linear")
        every = (
            site
            for carrier in self.settings.carriers
            for group in site_groups(self.checkpoint, self.settings, carrier)
            for site in group
        )
        return next(site for site in every if site.result_columns == {name: best[name] for name in site.result_columns})

    def posteriors(
        self, secret: str, site: ProbeSite, condition: str = "open", without_text: bool = False
    ) -> Posteriors:
        """What a linear probe at a site says of each part of a secret; fitted once, however many attacks ask.

        Args:
            secret: which secret.
            site: where.
            condition: which cache.
            without_text: without the text: on top of how often each class occurs.
        """
        key = (secret, site, condition, without_text)
        if key not in self._posteriors:
            asked = self.parts(secret)
            if without_text:
                asked = [replace(one, text=self._base(one)) for one in asked]
            states = site.read(self.features[condition])[None]
            split = self.split
            (self._posteriors[key],) = linear_posteriors(
                states, asked, split.train, split.validation, split.cluster, self.device
            )
        return self._posteriors[key]

    def _base(self, one: ProbeTarget) -> np.ndarray:
        """float[N, C]: how often each class of a target occurs."""
        return np.tile(log_marginals(one.labels, one.text.shape[1], self.split.train), (len(one.labels), 1))
