"""The input of attacks: traces with secrets, their defended and sealed caches, and the sweep of probes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.auditing.prompts import SecretPrompt, secret_name_of
from ghosttrace.auditing.sites import Row, group_by_site, validation_bits
from ghosttrace.auditing.verdict import Limits
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.evidence import CONDITIONS, PROBE_RECORDS, SITE_COLUMNS, ProbeTarget, summarise
from ghosttrace.probing.features import Features, resolve_layers
from ghosttrace.probing.fit_and_score import linear_posteriors
from ghosttrace.probing.nonlinear_sites import nonlinear_sites
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import Split
from ghosttrace.probing.sweep import site_groups
from ghosttrace.probing.text_baseline import log_marginals
from ghosttrace.runs.records import Records
from ghosttrace.stats import ALPHA

Posteriors = list[np.ndarray]
"""For each part of a secret, float[N, C] natural log-probabilities."""


@dataclass(frozen=True, eq=False)
class AuditContext:
    """Input of the attacks.

    Before any cache is read, the context has no targets, features or records. `Attack.skip_reason` and `Attack.check`
    are called with such a context.

    Attributes:
        checkpoint: Model, tokenizer, markup and policy.
        task: Traces with secrets.
        split: Attacks are fitted on train, select sites and set thresholds on validation, and are evaluated on test.
        arm: Arm of the fitted defence.
        settings: Sites and settings of the probes.
        targets: Parts of the secrets, with their text baselines.
        features: Features of the `open` cache, which is the defended one, of the `sealed` cache, and of the `unerased`
            tokens of the secrets.
        alpha: Error rate of the interval of each gated finding, chosen so that all of them hold together at 95 %.
        records: Records of the finished sweep, one row per probe and target.
        prompts: For each secret, the prompt that a user types to get it. Secrets without a prompt are not prompted for.
        fpr: Target false-positive rate of `membership`. None: 1 %, if validation has enough traces.
        limits: Limits of the leak.
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
    limits: Limits = field(default_factory=Limits)
    _posteriors: dict[tuple[str, ProbeSite, str, bool], Posteriors] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def secrets(self) -> dict[str, list[int]]:
        """For each secret, the numbers of its targets.

        Numbered targets such as `note-0` and `note-1` form the secret `note-*`; all other targets form one secret.
        """
        numbers: dict[str, list[int]] = {}
        for number, target in enumerate(self.task.targets):
            numbers.setdefault(secret_name_of(target.name, self.task), []).append(number)
        return numbers

    @property
    def device(self) -> torch.device:
        """Device of the model, on which probes are fitted."""
        return self.checkpoint.model.device

    @cached_property
    def sweep_rows(self) -> list[Row]:
        """Rows of the sweep in the order of its sites, in whatever order they were fitted."""
        layers, kv, carriers = (
            resolve_layers(self.checkpoint, self.settings.layers),
            self.settings.kv,
            self.settings.carriers,
        )
        linear = [group for carrier in carriers for group in site_groups(self.checkpoint, self.settings, carrier)]
        sites = {True: list(chain(*linear)), False: [s for each in carriers for s in nonlinear_sites(each, layers, kv)]}
        places = {
            (is_linear, *site.result_columns.values()): number
            for is_linear, of_kind in sites.items()
            for number, site in enumerate(of_kind)
        }
        probes = [probe.name for probe in self.settings.best_site_probes]
        targets = [target.name for target in self.targets]

        def place(row: Row) -> tuple[int, ...]:
            is_linear, site = row["probe"] not in probes, tuple(row[name] for name in SITE_COLUMNS)
            probe = 0 if is_linear else probes.index(row["probe"])
            place = places.get((is_linear, *site), -1)  # the text has no site
            return not is_linear, place, probe, CONDITIONS.index(row["condition"]), targets.index(row["target"])

        return sorted((self.records.get(key) for key in self.records.keys()), key=place)  # noqa: SIM118

    @cached_property
    def sites(self) -> pd.DataFrame:
        """Summary table of the sweep, see `ghosttrace.probing.evidence.summarise`."""
        return summarise(map(self.records.get, sorted(self.records.keys())), self.task, self.split)

    def parts(self, secret: str) -> list[ProbeTarget]:
        """Return the targets that make up a secret."""
        return [self.targets[number] for number in self.secrets[secret]]

    def sweep_rows_of(self, secret: str) -> list[Row]:
        """Return the rows of the sweep for the parts of a secret."""
        names = {self.task.targets[number].name for number in self.secrets[secret]}
        return [row for row in self.sweep_rows if row["target"] in names]

    def labels(self, secret: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Select the rows to which all targets of a secret apply.

        Args:
            secret: Name of the secret.
            rows: int64, row numbers of traces.

        Returns:
            The selected rows, int64[n], and their labels, int64[n, parts].
        """
        labels = np.stack([self.task.labels(number)[rows] for number in self.secrets[secret]], axis=1)
        labelled = (labels >= 0).all(axis=1)
        return rows[labelled], labels[labelled]

    def labelled_rows(self, secret: str, rows: np.ndarray) -> np.ndarray:
        """Return the rows, int64, to which all targets of a secret apply."""
        return self.labels(secret, rows)[0]

    def unknown_bits(self, secret: str) -> float:
        """Return the bits of a secret that the text does not determine: the text's cross-entropy on test."""
        rows = self.labelled_rows(secret, self.split.test)
        return float(sum(-part.text[rows, part.labels[rows]].mean() for part in self.parts(secret)) / np.log(2))

    def best_site(self, secret: str) -> ProbeSite:
        """Return the site whose linear probe of a secret gains the most bits on validation.

        Ties, such as 0 bits at all sites of a cache without a leak, go to the highest layer, then to values, whose
        states vary most between traces.
        """
        rows = [row for row in self.sweep_rows_of(secret) if row["probe"] == "linear" and row["condition"] == "open"]
        gains = {tuple(of_site[0][name] for name in SITE_COLUMNS): of_site for of_site in group_by_site(rows)}
        sites = [
            site
            for carrier in self.settings.carriers
            for group in site_groups(self.checkpoint, self.settings, carrier)
            for site in group
            if tuple(site.result_columns.values()) in gains
        ]

        def rank(site: ProbeSite) -> tuple[float, int, bool]:
            return validation_bits(gains[tuple(site.result_columns.values())]), site.layers[-1], site.kv != "k"

        return max(sites, key=rank)

    def posteriors(
        self, secret: str, site: ProbeSite, condition: str = "open", without_text: bool = False
    ) -> Posteriors:
        """Return the posteriors of a linear probe for each part of a secret, for all traces, fitted once and stored.

        Args:
            secret: Name of the secret.
            site: Site of the probe.
            condition: Which KV cache the probe reads: `open` (as the defence leaves it) or `sealed`.
            without_text: Start the probe from the class frequencies, not from the text baseline.
        """
        key = (secret, site, condition, without_text)
        if key not in self._posteriors:
            targets = self.parts(secret)
            if without_text:
                targets = [replace(target, text=self._class_frequencies(target)) for target in targets]
            states = site.read(self.features[condition])[None]
            split = self.split
            (self._posteriors[key],) = linear_posteriors(
                states, targets, split.train, split.validation, split.cluster, self.device
            )
        return self._posteriors[key]

    def _class_frequencies(self, target: ProbeTarget) -> np.ndarray:
        """Return the log-frequencies of a target's classes, repeated for every trace, float[N, C]."""
        return np.tile(log_marginals(target.labels, target.text.shape[1], self.split.train), (len(target.labels), 1))
