"""A sweep: every site of a task probed, and every control along with it.

First all sites by linear probes, layer by layer; then, at each hop, the site that did best on the validation set (the
highest layer's, where none did anything) again: its online code length, open and sealed, and an MLP and other probes
under every condition. Every result is on record at once, so that a run that died goes on after it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ghosttrace.data.task import Task
from ghosttrace.errors import UserError, check_method
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.probing.carriers import CARRIERS, Carrier, CarrierKind, Pooling
from ghosttrace.probing.evidence import ProbeTarget, record, score
from ghosttrace.probing.features import Features, StateKind, StateSelection, resolve_layers
from ghosttrace.probing.fit_and_score import linear_scores, online_scores, probe_scores
from ghosttrace.probing.label_controls import control_tasks, shuffled_targets
from ghosttrace.probing.probes import MLP, Probe
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import fit_text_posterior, log_marginals, retained_tokens, text_features
from ghosttrace.runs.folder import stable_repr
from ghosttrace.runs.records import Records

Kv = Literal["k", "v", "kv", "hidden"]
MIN_LOG_POSTERIOR = -1e4  # logarithm of what an exact posterior excludes
RESERVED_PROBE_NAMES = ("linear", "online", "text", "exact")  # names of probes that are always fitted


@dataclass(frozen=True)
class ProbeSettings:
    """What to probe, and how.

    Attributes:
        kinds: carriers at hops 0 and later; each is probed at hop -1 too, as the causal control.
        hops: blocks after the one that holds the secret.
        layers: of the model, ascending; all of them if None.
        kv: keys, values, both side by side, or hidden states.
        by_head: each key-value head alone as well.
        joint: all layers side by side as well.
        pool: see `Carrier`.
        mlp: probe the best site of each hop by an MLP too, and every layer of an audit in which no site shows anything.
        probes: others that are fitted where the MLP is.
        describe: measure selectivity and the online code length too, on which no verdict depends; an audit does not.
        within_traces: see `split`.
        seed: of splits, control tasks and the MLP.
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
                raise UserError(f"--{name} is a list of {', '.join(known)}, not {','.join(chosen)!r}")
        if not (self.pool in ("all", "mean") or (isinstance(self.pool, int) and self.pool > 0)):
            raise UserError(f"--pool is all, mean, or how many of a carrier's last tokens to take, not {self.pool!r}")
        for probe in self.probes:
            check_method(probe, Probe, "name")
        names = [*RESERVED_PROBE_NAMES, *(probe.name for probe in self.best_site_probes)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice or self.seed < 0:
            raise UserError(f"two probes are called {twice!r}: rename yours" if twice else "--seed is not negative")

    @property
    def best_site_probes(self) -> tuple[Probe, ...]:
        """What is fitted at the best site of each hop, under every condition."""
        return (*((MLP(),) if self.mlp else ()), *self.probes)

    def to_dict(self) -> dict[str, Any]:
        """As run.json holds it; probes as their `repr`."""
        return asdict(replace(self, probes=())) | {"probes": list(map(stable_repr, self.probes))}

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """Every carrier at every hop, the causal control's first."""
        found = [Carrier(kind, hop, self.pool) for kind in self.kinds for hop in (-1, *self.hops)]
        # The secret's own block shows it until it is erased: that is no carrier, but the control `unerased`.
        return tuple(carrier for carrier in found if (carrier.kind, carrier.hop) != ("block", 0))

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse what the model does not have.

        Raises:
            UserError: a layer out of range, or hops that are none.
        """
        resolve_layers(checkpoint, self.layers)
        if not self.hops or min(self.hops) < 0:
            raise UserError("--hops are 0 (the secret's own memento) and later; what comes before is always probed")
        if all(carrier.hop < 0 for carrier in self.carriers):
            raise UserError("blocks are probed from hop 1 on, as the secret's own holds it: give --hops 1 or later")


@dataclass(frozen=True)
class ProbeSite:
    """Where a probe looks: a carrier, some layers, one kind of state, and one head or all."""

    carrier: Carrier
    layers: tuple[int, ...]
    kv: Kv
    head: int | None = None

    @property
    def result_columns(self) -> dict[str, Any]:
        """As in the results."""
        layer = str(self.layers[0]) if len(self.layers) == 1 else "joint"
        head = "all" if self.head is None else str(self.head)
        return {"carrier": self.carrier.name, "hop": self.carrier.hop, "layer": layer, "kv": self.kv, "head": head}

    def read(self, features: Features) -> Tensor:
        """float32[N, d]."""
        kinds: tuple[StateKind, ...] = ("k", "v") if self.kv == "kv" else (self.kv,)
        heads = None if self.head is None else (self.head,)
        parts = [features.load(self.carrier, layer, kind, heads) for layer in self.layers for kind in kinds]
        return torch.cat(parts, dim=2).flatten(1)


def state_selections(
    checkpoint: Checkpoint, settings: ProbeSettings, secret: Carrier
) -> tuple[StateSelection, StateSelection]:
    """What a sweep reads of the open and of the sealed cache; `secret` holds the secret's own tokens."""
    layers, hidden = resolve_layers(checkpoint, settings.layers), "hidden" in settings.kv
    later = tuple(carrier for carrier in settings.carriers if carrier.hop >= 0)
    everything = (*settings.carriers, secret)
    return StateSelection("open", everything, layers, hidden), StateSelection("sealed", later, layers, hidden)


def probe_targets(checkpoint: Checkpoint, task: Task, split: Split) -> tuple[list[ProbeTarget], list[ProbeTarget]]:
    """The targets, with what the text says of each.

    Returns:
        The targets as they are asked, on top of the exact posterior where it is known and else of the
        text baseline; and the same on top of the text baseline alone.
    """
    texts = text_features(retained_tokens(checkpoint, task), [sample.block for sample in task.samples], split.train)
    asked, plain = [], []
    for number, target in enumerate(task.targets):
        labels = task.labels(number)
        said = ProbeTarget(target.name, labels, fit_text_posterior(texts, labels, len(target.classes), split))
        exact = task.exact_log_posteriors.get(target.name)
        plain.append(said)
        asked.append(said if exact is None else replace(said, text=np.maximum(exact, MIN_LOG_POSTERIOR)))
    return asked, plain


def text_baseline_rows(
    task: Task, asked: Sequence[ProbeTarget], plain: Sequence[ProbeTarget], split: Split
) -> Iterator[dict[str, Any]]:
    """What the text alone tells of each target, beyond how often each class occurs."""
    site = {"carrier": "text", "hop": 0, "layer": "", "kv": "", "head": ""}
    for one, said in zip(asked, plain, strict=True):
        base = log_marginals(one.labels, one.text.shape[1], split.train)
        nothing = replace(one, text=np.tile(base, (len(one.labels), 1)))
        yield record(score(nothing, said.text, split), condition="text", probe="text", **site)
        if one.name in task.exact_log_posteriors:
            yield record(score(nothing, one.text, split), condition="exact", probe="exact", **site)


def site_groups(checkpoint: Checkpoint, settings: ProbeSettings, carrier: Carrier) -> list[list[ProbeSite]]:
    """Every site of one carrier; sites whose features have the same shape, and are read together, in one list."""
    layers = resolve_layers(checkpoint, settings.layers)
    found = [[ProbeSite(carrier, (layer,), kv)] for layer in layers for kv in settings.kv]
    if settings.by_head:
        heads = range(CacheGeometry.from_config(checkpoint.model.config).kv_heads)
        cached = [kv for kv in settings.kv if kv != "hidden"]
        found += [[ProbeSite(carrier, (layer,), kv, head) for head in heads] for layer in layers for kv in cached]
    if settings.joint and len(layers) > 1:
        found += [[ProbeSite(carrier, layers, kv)] for kv in settings.kv]
    return found


@dataclass(frozen=True)
class Sweep:
    """All that a sweep needs, ready to run.

    Attributes:
        features: of the `open` and the `sealed` cache, and of the `unerased` secret.
        asked: see `probe_targets`.
        secret: the secret's own tokens.
        device: where probes are fitted.
    """

    checkpoint: Checkpoint
    settings: ProbeSettings
    split: Split
    features: dict[str, Features]
    asked: list[ProbeTarget]
    secret: Carrier
    device: torch.device

    def run(self, records: Records, progress: Callable[[int, int], None] | None = None) -> None:
        """Probe every site that is not on record yet, then the best of each hop more closely."""
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
        for site in self.best(records):
            for condition in ("open", "sealed") if self.settings.describe else ():
                self._online(records, condition, site)
            for one in self._closely(records, site) if self.settings.best_site_probes else ():
                for probe, condition in product(
                    self.settings.best_site_probes, ("open", "sealed", "shuffled", "causal")
                ):
                    self._fit(records, probe, condition, one)

    def best(self, records: Records) -> list[ProbeSite]:
        """For each carrier at hop 0 and later, the site whose linear probe did best on validation.

        Where none gained anything, as behind an erasure that is linear, all are tied: the highest layer then has
        seen most, and values say more than keys.
        """
        found = []
        for carrier in self._carriers():
            if carrier.hop < 0 or carrier.kind == "secret":
                continue
            candidates = [site for group in site_groups(self.checkpoint, self.settings, carrier) for site in group]
            gains = [(self._gain(records, site), site.layers[-1], site.kv != "k") for site in candidates]
            found.append(candidates[max(range(len(gains)), key=gains.__getitem__)])
        return found

    def _gain(self, records: Records, site: ProbeSite) -> float:
        """Bits on validation of a site's linear probe."""
        rows = (records.get(_key("open", site, "linear", one.name)) for one in self.asked)
        return float(sum(row["validation_bits"] for row in rows))

    def _closely(self, records: Records, best: ProbeSite) -> list[ProbeSite]:
        """Where to fit other probes: the best site; in an audit, where nothing linear shows, that of every layer."""
        if self.settings.describe or self._gain(records, best) > 0 or len(best.layers) > 1:
            return [best]
        return [replace(best, layers=(layer,)) for layer in resolve_layers(self.checkpoint, self.settings.layers)]

    def _carriers(self) -> tuple[Carrier, ...]:
        return (*self.settings.carriers, self.secret)

    def _conditions(self, site: ProbeSite) -> tuple[str, ...]:
        """The conditions a site is probed under."""
        if site.carrier.kind == "secret":
            lowest = resolve_layers(self.checkpoint, self.settings.layers)[:1]
            return ("unerased",) if site.layers == lowest and site.head is None else ()
        return ("causal",) if site.carrier.hop < 0 else ("open", "sealed")

    def _read(self, condition: str, site: ProbeSite) -> Tensor:
        return site.read(self.features[condition if condition in self.features else "open"])

    def _linear(self, records: Records, condition: str, group: Sequence[ProbeSite]) -> None:
        """Sites of one shape under one condition; with the open cache also control task and shuffled labels."""
        if all(_key(condition, site, "linear", one.name) in records for site in group for one in self.asked):
            return
        variants = {condition: self.asked}
        if condition == "open":
            tasks = {"control-task": control_tasks(self.asked, self.settings.seed)} if self.settings.describe else {}
            variants = tasks | {"shuffled": self._shuffled()} | variants  # itself is put last
        everything = [one for variant in variants.values() for one in variant]
        features = torch.stack([self._read(condition, site) for site in group])
        for site, scores in zip(group, linear_scores(features, everything, self.split, self.device), strict=True):
            told = iter(scores)
            for name, variant in variants.items():
                for _ in variant:
                    records.add(record(next(told), condition=name, probe="linear", **site.result_columns))

    def _fit(self, records: Records, probe: Probe, condition: str, site: ProbeSite) -> None:
        """A probe under one condition; before the secret, at the same layer and kind of state."""
        if condition == "causal":
            site = replace(site, carrier=replace(site.carrier, hop=-1))
        if not all(_key(condition, site, probe.name, one.name) in records for one in self.asked):
            features = self._read(condition, site)
            asked = self._shuffled() if condition == "shuffled" else self.asked
            for scores in probe_scores(probe, features, asked, self.split, self.settings.seed, self.device):
                records.add(record(scores, condition=condition, probe=probe.name, **site.result_columns))

    def _online(self, records: Records, condition: str, site: ProbeSite) -> None:
        if not all(_key(condition, site, "online", one.name) in records for one in self.asked):
            features = self._read(condition, site)
            for scores in online_scores(features, self.asked, self.split, self.settings.seed, self.device):
                records.add(record(scores, condition=condition, probe="online", **site.result_columns))

    def _shuffled(self) -> list[ProbeTarget]:
        return shuffled_targets(self.asked, self.split, self.settings.seed)


def _key(condition: str, site: ProbeSite, probe: str, target: str) -> tuple[Any, ...]:
    return (condition, *site.result_columns.values(), probe, target)
