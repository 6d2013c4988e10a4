"""Probe sweeps: probes and controls for every site of a task.

A sweep first fits linear probes at all sites, layer by layer. It then selects the best site of each hop on validation
and measures there the online code length, open and sealed, and the MLP and other probes under every condition. An audit
fits these probes at the sites of `ghosttrace.probing.nonlinear_sites` instead, and their controls at the best of them.
Each result is recorded immediately, so that an interrupted run can be resumed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.pool import ModelPool, map_units
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import ProbeTarget, record, score
from ghosttrace.probing.features import Features, StateSelection, resolve_layers
from ghosttrace.probing.fit_and_score import linear_scores, online_scores, probe_scores
from ghosttrace.probing.label_controls import control_tasks, shuffled_targets
from ghosttrace.probing.nonlinear_sites import nonlinear_sites, reduce_width, width_limit
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import fit_text_posterior, log_marginals, task_text_features
from ghosttrace.runs.records import Records

MIN_LOG_POSTERIOR = -1e4  # replaces -inf in an exact posterior


def state_selections(
    checkpoint: Checkpoint, settings: ProbeSettings, secret: Carrier
) -> tuple[StateSelection, StateSelection]:
    """Return the states that a sweep reads from the open and from the sealed cache; `secret` only from the open one."""
    layers, hidden = resolve_layers(checkpoint, settings.layers), "hidden" in settings.kv
    sealed = tuple(carrier for carrier in settings.carriers if carrier.hop >= 0)
    opened = (*settings.carriers, secret)
    return StateSelection("open", opened, layers, hidden), StateSelection("sealed", sealed, layers, hidden)


def probe_targets(checkpoint: Checkpoint, task: Task, split: Split) -> tuple[list[ProbeTarget], list[ProbeTarget]]:
    """Return the targets with the exact posterior as text baseline where known, and all with the fitted baseline."""
    texts = task_text_features(checkpoint, task, split.train)
    targets, text_targets = [], []
    for number, target in enumerate(task.targets):
        labels = task.labels(number)
        fitted = ProbeTarget(target.name, labels, fit_text_posterior(texts, labels, len(target.classes), split))
        exact = task.exact_log_posteriors.get(target.name)
        text_targets.append(fitted)
        targets.append(fitted if exact is None else replace(fitted, text=np.maximum(exact, MIN_LOG_POSTERIOR)))
    return targets, text_targets


def text_baseline_rows(
    task: Task, targets: Sequence[ProbeTarget], text_targets: Sequence[ProbeTarget], split: Split
) -> Iterator[dict[str, Any]]:
    """Yield records of the text baselines, relative to the class frequencies, for the output of `probe_targets`."""
    site = {"carrier": "text", "hop": 0, "layer": "", "kv": "", "head": ""}
    for target, text_target in zip(targets, text_targets, strict=True):
        base = log_marginals(target.labels, target.text.shape[1], split.train)
        marginal = replace(target, text=np.tile(base, (len(target.labels), 1)))
        yield record(score(marginal, text_target.text, split), condition="text", probe="text", **site)
        if target.name in task.exact_log_posteriors:
            yield record(score(marginal, target.text, split), condition="exact", probe="exact", **site)


def site_groups(checkpoint: Checkpoint, settings: ProbeSettings, carrier: Carrier) -> list[list[ProbeSite]]:
    """Return every site of one carrier, grouped by the shape of the features; a group is fitted together."""
    layers = resolve_layers(checkpoint, settings.layers)
    groups = [[ProbeSite(carrier, (layer,), kv)] for layer in layers for kv in settings.kv]
    if settings.by_head:
        heads = range(CacheGeometry.from_config(checkpoint.model.config).kv_heads)
        cached = [kv for kv in settings.kv if kv != "hidden"]
        groups += [[ProbeSite(carrier, (layer,), kv, head) for head in heads] for layer in layers for kv in cached]
    if settings.joint and len(layers) > 1:
        groups += [[ProbeSite(carrier, layers, kv)] for kv in settings.kv]
    return groups


@dataclass(frozen=True)
class Fit:
    """Probes that are fitted together, independently of all other fits of their stage.

    Attributes:
        kind: Linear probes; the online code of linear probes; or other probes.
        condition: Which states and labels they get.
        sites: Their sites, whose features have one shape; a single one unless the probes are linear.
        probes: The other probes.
    """

    kind: Literal["linear", "online", "other"]
    condition: str
    sites: tuple[ProbeSite, ...]
    probes: tuple[Probe, ...] = ()

    @property
    def probe_names(self) -> tuple[str, ...]:
        """Names of the probes in the records."""
        return tuple(probe.name for probe in self.probes) if self.kind == "other" else (self.kind,)


@dataclass(frozen=True)
class Sweep:
    """A sweep, ready to run.

    Attributes:
        checkpoint: The model. Probes are fitted on its device.
        features: States by condition, `open` and `sealed`; other conditions default to `open`.
        targets: Targets to probe, see `probe_targets`.
        secret: Carrier of the secret's own tokens.
        secrets: In an audit, the numbers of the targets that make up each secret.
        best_site_conditions: Conditions of the probes at the best sites; the first two also have an online code.
    """

    checkpoint: Checkpoint
    settings: ProbeSettings
    split: Split
    features: dict[str, Features]
    targets: list[ProbeTarget]
    secret: Carrier
    secrets: tuple[tuple[int, ...], ...] = ()
    best_site_conditions: ClassVar[tuple[str, ...]] = ("open", "sealed", "shuffled", "causal")

    @property
    def device(self) -> torch.device:
        """Device on which probes are fitted."""
        return self.checkpoint.model.device

    def run(
        self,
        records: Records,
        progress: Callable[[int, int], None] | None = None,
        pool: ModelPool | None = None,
    ) -> None:
        """Fit all probes that have no record yet: linear ones at every site, then the others at the best sites.

        Args:
            records: Records with layout `PROBE_RECORDS`; extended in place.
            progress: Called with (fits done, fits of this stage).
            pool: Workers that fit; None fits here.
        """
        linear = [
            Fit("linear", condition, tuple(group))
            for carrier in (*self.settings.carriers, self.secret)
            for group in self._groups(carrier)
            for condition in self._conditions(group[0])
        ]
        self._fit_all(linear, records, progress, pool)
        if not self.settings.describe:
            self._nonlinear(records, progress, pool)
            return
        at_best = []
        for site in self.best(records):
            at_best += [Fit("online", condition, (site,)) for condition in self.best_site_conditions[:2]]
            at_best += [self._other(condition, site) for condition in self.best_site_conditions]
        self._fit_all(at_best, records, None, pool)

    def best(self, records: Records) -> list[ProbeSite]:
        """Return, for each carrier at hop 0 or more, the site whose linear probe gains most bits on validation.

        Ties, such as 0 bits at all sites after a linear defence, go to the highest layer, then to values.
        """
        sites = []
        for carrier in self.settings.carriers:
            if carrier.hop < 0 or carrier.kind == "secret":
                continue
            candidates = [site for group in self._groups(carrier) for site in group]
            gains = [(self._gain(records, site), site.layers[-1], site.kv != "k") for site in candidates]
            sites.append(candidates[max(range(len(gains)), key=gains.__getitem__)])
        return sites

    def fit(self, job: Fit) -> Iterator[dict[str, Any]]:
        """Fit probes and yield their records."""
        if job.kind == "linear":
            yield from self._linear(job.condition, job.sites)
            return
        (site,) = job.sites
        features = self._read(job.condition, site)
        if job.kind == "online":
            targets = self._targets(job.condition, site)
            for scores in online_scores(features, targets, self.split, self.settings.seed, self.device):
                yield record(scores, condition=job.condition, probe="online", **site.result_columns)
            return
        if not self.settings.describe:
            features = reduce_width(features, width_limit(site), self.split.train, self.settings.seed)
        for probe in job.probes:
            targets = self._targets(job.condition, site, probe)
            for scores in probe_scores(probe, features, targets, self.split, self.settings.seed, self.device):
                yield record(scores, condition=job.condition, probe=probe.name, **site.result_columns)

    def _fit_all(
        self,
        jobs: Sequence[Fit],
        records: Records,
        progress: Callable[[int, int], None] | None,
        pool: ModelPool | None,
    ) -> None:
        """Fit what is not recorded yet, and record each fit as soon as it is finished."""
        planned: set[tuple[str, tuple[ProbeSite, ...], str]] = set()
        missing = [left for job in jobs if (left := self._without_recorded(job, records, planned))]
        done = len(jobs) - len(missing)
        for _, rows in map_units(self.fit, missing, pool):
            for row in rows:
                records.add(row)
            done += 1
            if progress:
                progress(done, len(jobs))

    def _without_recorded(
        self, job: Fit, records: Records, planned: set[tuple[str, tuple[ProbeSite, ...], str]]
    ) -> Fit | None:
        """Return a fit without the other probes that are recorded or planned already; None if nothing is left to fit.

        The fit's probes are added to `planned`. Hops share their control at hop -1, which is fitted once.
        """

        def is_known(name: str) -> bool:
            keys = (_key(job.condition, site, name, target.name) for site in job.sites for target in self.targets)
            return (job.condition, job.sites, name) in planned or all(key in records for key in keys)

        missing = [name for name in job.probe_names if not is_known(name)]
        planned.update((job.condition, job.sites, name) for name in missing)
        probes = tuple(probe for probe in job.probes if probe.name in missing)
        return replace(job, probes=probes) if missing else None

    def _gain(
        self, records: Records, site: ProbeSite, probe: str = "linear", numbers: Sequence[int] | None = None
    ) -> float:
        """Return the validation bits of a probe at a site, summed over the targets of these numbers or over all."""
        targets = self.targets if numbers is None else [self.targets[number] for number in numbers]
        return float(sum(records.get(_key("open", site, probe, t.name))["validation_bits"] for t in targets))

    def _nonlinear(self, records: Records, progress: Callable[[int, int], None] | None, pool: ModelPool | None) -> None:
        """Fit nonlinear probes at all their sites, and the controls at the best site of each secret and carrier."""
        probes = self.settings.best_site_probes
        layers, kv = resolve_layers(self.checkpoint, self.settings.layers), self.settings.kv
        sites = [nonlinear_sites(carrier, layers, kv) for carrier in self.settings.carriers if carrier.hop >= 0]
        self._fit_all([self._other("open", site) for site in chain(*sites)] if probes else [], records, progress, pool)
        secrets, controls = self.secrets or (tuple(range(len(self.targets))),), []
        for probe, of_one in product(probes, sites):
            gains = [[self._gain(records, site, probe.name, numbers) for site in of_one] for numbers in secrets]
            for number in dict.fromkeys(int(np.argmax(of_secret)) for of_secret in gains):
                controls += [self._other(name, of_one[number], probe) for name in self.best_site_conditions[1:]]
        self._fit_all(controls, records, None, pool)

    def _other(self, condition: str, site: ProbeSite, probe: Probe | None = None) -> Fit:
        """Return the fit of one or all other probes; `causal` and `earlier` read the same kind of states at hop -1."""
        if condition in ("causal", "earlier"):
            site = replace(site, carrier=replace(site.carrier, hop=-1))
        return Fit("other", condition, (site,), self.settings.best_site_probes if probe is None else (probe,))

    def _groups(self, carrier: Carrier) -> list[list[ProbeSite]]:
        """Return every site of one carrier, in groups that are fitted together."""
        return site_groups(self.checkpoint, self.settings, carrier)

    def _targets(self, condition: str, site: ProbeSite, probe: Probe | None = None) -> list[ProbeTarget]:
        """Return the targets of a condition with their text baseline at a site, for a probe or the linear ones."""
        shuffled = condition == "shuffled"
        return shuffled_targets(self.targets, self.split, self.settings.seed) if shuffled else self.targets

    def _conditions(self, site: ProbeSite) -> tuple[str, ...]:
        """Return the conditions of a site's linear probes."""
        if site.carrier.kind == "secret":
            lowest = resolve_layers(self.checkpoint, self.settings.layers)[:1]
            return ("unerased",) if site.layers == lowest and site.head is None else ()
        return ("causal",) if site.carrier.hop < 0 else ("open", "sealed")

    def _read(self, condition: str, site: ProbeSite) -> Tensor:
        return site.read(self.features[condition if condition in self.features else "open"])

    def _linear(self, condition: str, group: Sequence[ProbeSite]) -> Iterator[dict[str, Any]]:
        """Fit linear probes at sites of one shape; under `open` also control tasks and shuffled labels."""
        variants = {condition: self._targets(condition, group[0])}
        if condition == "open":
            tasks = {"control-task": control_tasks(self.targets, self.settings.seed)} if self.settings.describe else {}
            # `open` comes last: its records mark the group as complete.
            variants = tasks | {"shuffled": self._targets("shuffled", group[0])} | variants
        conditions = [name for name, variant in variants.items() for _ in variant]
        targets = [target for variant in variants.values() for target in variant]
        features = torch.stack([self._read(condition, site) for site in group])
        for site, scores in zip(group, linear_scores(features, targets, self.split, self.device), strict=True):
            for name, target_scores in zip(conditions, scores, strict=True):
                yield record(target_scores, condition=name, probe="linear", **site.result_columns)


def _key(condition: str, site: ProbeSite, probe: str, target: str) -> tuple[Any, ...]:
    return (condition, *site.result_columns.values(), probe, target)
