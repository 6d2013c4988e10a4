"""Probe sweeps: probes and controls for every site of a task.

A sweep first fits linear probes at all sites, layer by layer. It then selects the best site of each hop on validation
and measures there the online code length, open and sealed, and the MLP and other probes under every condition. An audit
fits these probes at the sites of `ghosttrace.probing.nonlinear_sites` instead, and their controls at the best of them.
Each result is recorded immediately, so that an interrupted run can be resumed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from ghosttrace.data.task import Task
from ghosttrace.errors import UserError, check_method
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.probing.carriers import CARRIERS, Carrier, CarrierKind, Pooling, check_carriers
from ghosttrace.probing.evidence import ProbeTarget, record, score
from ghosttrace.probing.features import Features, StateSelection, resolve_layers
from ghosttrace.probing.fit_and_score import linear_scores, online_scores, probe_scores
from ghosttrace.probing.label_controls import control_tasks, shuffled_targets
from ghosttrace.probing.nonlinear_sites import nonlinear_sites, reduce_width, width_limit
from ghosttrace.probing.probes import MLP, Probe
from ghosttrace.probing.site import Kv, ProbeSite
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import fit_text_posterior, log_marginals, task_text_features
from ghosttrace.runs.folder import stable_repr
from ghosttrace.runs.records import Records

MIN_LOG_POSTERIOR = -1e4  # replaces -inf in an exact posterior
RESERVED_PROBE_NAMES = ("linear", "online", "text", "exact")  # probes that are always fitted


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a sweep.

    Attributes:
        kinds: Carriers to probe at `hops`, of those that the law knows; each is also probed at hop -1, as the causal
            control.
        hops: Hops from the secret, 0 or more; see `Carrier`.
        layers: Layers of the model, ascending; None for all.
        kv: Kinds of states: keys, values, keys and values concatenated, hidden states.
        by_head: Also probe each key-value head separately.
        joint: Also probe all layers concatenated.
        pool: Pooling of a carrier's tokens, see `Carrier`.
        mlp: Also fit an MLP at the best site of each hop; in an audit, at all `nonlinear_sites`.
        probes: Other probes to fit where the MLP is fitted.
        describe: Also measure selectivity and the online code length, which affect no verdict. Audits skip them.
        within_traces: Let train, validation and test share base traces, see `split`.
        seed: Random seed of splits, control tasks and probes.
    """

    kinds: tuple[CarrierKind, ...] = ("memento",)
    hops: tuple[int, ...] = (0, 1, 2)
    layers: tuple[int, ...] | None = None
    kv: tuple[Kv, ...] = ("k", "v")
    by_head: bool = False
    joint: bool = False
    pool: Pooling = "all"
    mlp: bool = True
    probes: tuple[Probe, ...] = ()
    describe: bool = True
    within_traces: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, chosen, known in (("carriers", self.kinds, CARRIERS), ("kv", self.kv, get_args(Kv))):
            if not chosen or not set(chosen) <= set(known):
                raise UserError(f"--{name} must be a list of {', '.join(known)}, not {','.join(chosen)!r}")
        if not (self.pool in ("all", "mean") or (isinstance(self.pool, int) and self.pool > 0)):
            raise UserError(f"--pool must be all, mean or a number of tokens, not {self.pool!r}")
        for probe in self.probes:
            check_method(probe, Probe, "name")
        names = [*RESERVED_PROBE_NAMES, *(probe.name for probe in self.best_site_probes)]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate or self.seed < 0:
            raise UserError(
                f"two probes are called {duplicate!r}: rename yours" if duplicate else "--seed must be 0 or more"
            )

    @property
    def best_site_probes(self) -> tuple[Probe, ...]:
        """The probes fitted at the best site of each hop, under every condition."""
        return (*((MLP(),) if self.mlp else ()), *self.probes)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as recorded in run.json; probes by their `repr`."""
        return asdict(replace(self, probes=())) | {"probes": list(map(stable_repr, self.probes))}

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """Every carrier at every hop, for each kind the causal control first."""
        carriers = [Carrier(kind, hop, self.pool) for kind in self.kinds for hop in (-1, *self.hops)]
        # The secret's own block contains it until it is erased, so it is the control `unerased` and no carrier; and a
        # trace has one last token, at hop 0.
        left_out = {("block", 0), *(("last", hop) for hop in self.hops if hop)}
        return tuple(carrier for carrier in carriers if (carrier.kind, carrier.hop) not in left_out)

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that the settings fit a checkpoint.

        Raises:
            UserError: A layer is out of range, the law does not know or retain a carrier, or the hops are empty,
                negative or include no carrier.
        """
        check_carriers(self.kinds, checkpoint)
        resolve_layers(checkpoint, self.layers)
        if not self.hops or min(self.hops) < 0:
            raise UserError("--hops must be 0 (the secret's own memento) or more: hop -1 is always probed as a control")
        if all(carrier.hop < 0 for carrier in self.carriers):
            if "last" in self.kinds:
                raise UserError("the last token is a carrier at hop 0 only: add 0 to --hops")
            raise UserError("the block at hop 0 contains the secret and is no carrier: give --hops 1 or later")


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
class Sweep:
    """A sweep, ready to run.

    Attributes:
        features: States by condition, `open` and `sealed`; other conditions default to `open`.
        targets: Targets to probe, see `probe_targets`.
        secret: Carrier of the secret's own tokens.
        device: Device to fit probes on.
        secrets: In an audit, the numbers of the targets that make up each secret.
        best_site_conditions: Conditions of the probes at the best sites; the first two also have an online code.
    """

    checkpoint: Checkpoint
    settings: ProbeSettings
    split: Split
    features: dict[str, Features]
    targets: list[ProbeTarget]
    secret: Carrier
    device: torch.device
    secrets: tuple[tuple[int, ...], ...] = ()
    best_site_conditions: ClassVar[tuple[str, ...]] = ("open", "sealed", "shuffled", "causal")

    def run(self, records: Records, progress: Callable[[int, int], None] | None = None) -> None:
        """Fit all probes that have no record yet: linear ones at every site, then the others at the best sites."""
        jobs = [
            (condition, group)
            for carrier in self._carriers()
            for group in site_groups(self.checkpoint, self.settings, carrier)
            for condition in self._conditions(group[0])
        ]
        for done, (condition, group) in enumerate(jobs):
            self._linear(records, condition, group)
            if progress:
                progress(done + 1, len(jobs))
        if not self.settings.describe:
            self._nonlinear(records, progress)
            return
        for site in self.best(records):
            for condition in self.best_site_conditions[:2]:
                self._online(records, condition, site)
            for condition in self.best_site_conditions:
                self._fit(records, self.settings.best_site_probes, condition, site)

    def best(self, records: Records) -> list[ProbeSite]:
        """Return, for each carrier at hop 0 or more, the site whose linear probe gains most bits on validation.

        Ties, such as 0 bits at all sites after a linear defence, go to the highest layer, then to values.
        """
        sites = []
        for carrier in self._carriers():
            if carrier.hop < 0 or carrier.kind == "secret":
                continue
            candidates = [site for group in site_groups(self.checkpoint, self.settings, carrier) for site in group]
            gains = [(self._gain(records, site), site.layers[-1], site.kv != "k") for site in candidates]
            sites.append(candidates[max(range(len(gains)), key=gains.__getitem__)])
        return sites

    def _gain(
        self, records: Records, site: ProbeSite, probe: str = "linear", numbers: Sequence[int] | None = None
    ) -> float:
        """Return the validation bits of a probe at a site, summed over the targets of these numbers or over all."""
        targets = self.targets if numbers is None else [self.targets[number] for number in numbers]
        return float(sum(records.get(_key("open", site, probe, t.name))["validation_bits"] for t in targets))

    def _nonlinear(self, records: Records, progress: Callable[[int, int], None] | None) -> None:
        """Fit nonlinear probes at all their sites, and the controls at the best site of each secret and carrier."""
        layers, kv = resolve_layers(self.checkpoint, self.settings.layers), self.settings.kv
        sites = [nonlinear_sites(carrier, layers, kv) for carrier in self.settings.carriers if carrier.hop >= 0]
        for done, site in enumerate(chain(*sites)):
            self._fit(records, self.settings.best_site_probes, "open", site)
            if progress:
                progress(done + 1, sum(map(len, sites)))
        secrets = self.secrets or (tuple(range(len(self.targets))),)
        for probe, of_one in product(self.settings.best_site_probes, sites):
            gains = [[self._gain(records, site, probe.name, numbers) for site in of_one] for numbers in secrets]
            for number in dict.fromkeys(int(np.argmax(of_secret)) for of_secret in gains):
                for condition in self.best_site_conditions[1:]:
                    self._fit(records, (probe,), condition, of_one[number])

    def _carriers(self) -> tuple[Carrier, ...]:
        return (*self.settings.carriers, self.secret)

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

    def _linear(self, records: Records, condition: str, group: Sequence[ProbeSite]) -> None:
        """Fit linear probes at sites of one shape; under `open` also control tasks and shuffled labels."""
        if all(self._is_recorded(records, condition, site, "linear") for site in group):
            return
        variants = {condition: self._targets(condition, group[0])}
        if condition == "open":
            tasks = {"control-task": control_tasks(self.targets, self.settings.seed)} if self.settings.describe else {}
            # `open` is recorded last: its records mark the group as complete.
            variants = tasks | {"shuffled": self._targets("shuffled", group[0])} | variants
        conditions = [name for name, variant in variants.items() for _ in variant]
        targets = [target for variant in variants.values() for target in variant]
        features = torch.stack([self._read(condition, site) for site in group])
        for site, scores in zip(group, linear_scores(features, targets, self.split, self.device), strict=True):
            for name, target_scores in zip(conditions, scores, strict=True):
                records.add(record(target_scores, condition=name, probe="linear", **site.result_columns))

    def _fit(self, records: Records, probes: Sequence[Probe], condition: str, site: ProbeSite) -> None:
        """Fit probes under one condition; `causal` and `earlier` read the same kind of states at hop -1."""
        if condition in ("causal", "earlier"):
            site = replace(site, carrier=replace(site.carrier, hop=-1))
        missing = [probe for probe in probes if not self._is_recorded(records, condition, site, probe.name)]
        if not missing:
            return
        features = self._read(condition, site)
        if not self.settings.describe:
            features = reduce_width(features, width_limit(site), self.split.train, self.settings.seed)
        for probe in missing:
            targets = self._targets(condition, site, probe)
            for scores in probe_scores(probe, features, targets, self.split, self.settings.seed, self.device):
                records.add(record(scores, condition=condition, probe=probe.name, **site.result_columns))

    def _is_recorded(self, records: Records, condition: str, site: ProbeSite, probe: str) -> bool:
        return all(_key(condition, site, probe, target.name) in records for target in self.targets)

    def _online(self, records: Records, condition: str, site: ProbeSite) -> None:
        if not self._is_recorded(records, condition, site, "online"):
            features, targets = self._read(condition, site), self._targets(condition, site)
            for scores in online_scores(features, targets, self.split, self.settings.seed, self.device):
                records.add(record(scores, condition=condition, probe="online", **site.result_columns))


def _key(condition: str, site: ProbeSite, probe: str, target: str) -> tuple[Any, ...]:
    return (condition, *site.result_columns.values(), probe, target)
