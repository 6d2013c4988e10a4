"""Claim: an audit does not pass a cache in which a whole secret stands, or its verdict names what it cannot see.

Secrets are planted in sealed caches of `toy-mixed`, which contain nothing about the digits beyond the text: the last
three digits of a state of `ledger` (9.97 bits), or one bit that is 1 in 0.4 % of traces. Each plant writes the secret
into the memento of its block, at layers 1 and 3, in another form. The audit's own code then fits its probes at these
layers with 8,000 traces, and decides the verdict with the attribute attack alone.

Writes `experiments/results/audit_plants.parquet`. `python experiments/audit_plants.py`: about forty minutes on two
cores; resumes an interrupted run.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ghosttrace.ablation.arms import Restart
from ghosttrace.auditing.attacks.attribute import AttributeAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.detectable_leak import smallest_detectable_leak
from ghosttrace.auditing.evidence import EXPOSED
from ghosttrace.auditing.findings import failed_attack_controls, holm_adjusted
from ghosttrace.auditing.settings import AuditSettings, resolve_attacks, resolve_defence
from ghosttrace.auditing.token_codes import CODE_STRENGTH
from ghosttrace.auditing.verdict import DetectableLeak, decide_verdict, detectable_for_all_secrets
from ghosttrace.bench.ledger import ledger_task
from ghosttrace.data.task import Target, Task
from ghosttrace.model.checkpoint import load
from ghosttrace.probing.carriers import Carrier, secret_carrier
from ghosttrace.probing.evidence import PROBE_RECORDS, ProbeTarget, failed_controls
from ghosttrace.probing.features import Features, StateSelection, extract_features
from ghosttrace.probing.probes import UnusualTraces
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import Sweep
from ghosttrace.runs.records import Records
from ghosttrace.stats import ALPHA

ROOT = Path(__file__).parent.parent
SAMPLES, LAYERS, LEVEL, RARE_SHARE = 8000, (1, 3), 3, 0.004
CARRIER = Carrier("memento", 0)

Site = tuple[int, str]  # layer, and k for keys or v for values
Plant = Callable[["Writer"], None]


@dataclass(frozen=True)
class Writer:
    """Collects what a plant adds to the states of one carrier.

    Attributes:
        labels: int64[N, parts], the secrets.
        shape: Tokens and dimensions of the carrier's states.
        spread: Standard deviation of the states of each site.
        rng: Generator of random numbers.
        added: What has been written so far, float[N, tokens, d] by site.
    """

    labels: np.ndarray
    shape: tuple[int, int]
    spread: Mapping[Site, float]
    rng: np.random.Generator
    added: dict[Site, Tensor]

    def write(self, site: Site, token: int, codes: np.ndarray, scale: np.ndarray | None = None) -> None:
        """Add to a token of each trace the random direction of its code, times a factor; code -1 adds nothing."""
        directions = torch.from_numpy(self.rng.standard_normal((int(codes.max()) + 1, self.shape[1]))).float()
        amount = torch.from_numpy((codes >= 0) * (1.0 if scale is None else scale)).float()
        if site not in self.added:
            self.added[site] = torch.zeros(len(codes), *self.shape)
        length = CODE_STRENGTH * self.spread[site]
        self.added[site][:, token] += length * amount[:, None] * directions[torch.from_numpy(codes.clip(0))]

    def shares(self, digit: int, count: int) -> list[np.ndarray]:
        """Split a digit of the secret into random shares whose sum modulo 10 is the digit."""
        keys = [self.rng.integers(0, 10, len(self.labels)) for _ in range(count - 1)]
        return [*keys, (self.labels[:, digit] - sum(keys)) % 10]


@dataclass(frozen=True)
class PlantedFeatures:
    """Features with what a plant added to the states of one carrier."""

    features: Features
    added: Mapping[Site, Tensor]
    carrier: Carrier = CARRIER

    def load(self, carrier: Carrier, layer: int, kind: str, heads: Any = None) -> Tensor:
        """Load the states of one carrier and layer, see `Features.load`; heads are not selected."""
        states = self.features.load(carrier, layer, kind)  # type: ignore[arg-type]
        return states + self.added[layer, kind] if carrier == self.carrier and (layer, kind) in self.added else states


def nothing(writer: Writer) -> None:
    """Write nothing."""


def plain(writer: Writer, site: Site, traces: float = 1.0, digits: int = 3) -> None:
    """Write the digits into one token, in a share of the traces."""
    chosen = writer.rng.random(len(writer.labels)) < traces
    for digit in range(min(digits, writer.labels.shape[1])):
        writer.write(site, 2, np.where(chosen, writer.labels[:, digit], -1))


def pad(writer: Writer, *places: tuple[Site, int]) -> None:
    """Write one share of every digit to each place, a site and a token."""
    for digit in range(writer.labels.shape[1]):
        for (site, token), share in zip(places, writer.shares(digit, len(places)), strict=True):
            writer.write(site, token, share)


def signed(writer: Writer, site: Site) -> None:
    """Write every digit with a random sign, which hides it from any linear probe."""
    for digit in range(writer.labels.shape[1]):
        writer.write(site, 2, writer.labels[:, digit], writer.rng.choice([-1.0, 1.0], len(writer.labels)))


def rotated(writer: Writer, site: Site) -> None:
    """Write every digit as an angle, turned by a random angle that stands in another token."""
    for digit in range(writer.labels.shape[1]):
        turn = writer.rng.uniform(0, 2 * np.pi, len(writer.labels))
        angle = 2 * np.pi * writer.labels[:, digit] / 10 + turn
        for token, value in ((2, angle), (3, turn)):
            for wave in (np.cos(value), np.sin(value)):
                writer.write(site, token, np.zeros(len(value), dtype=np.int64), wave)


def by_position(writer: Writer, site: Site) -> None:
    """Mark one token of all: which one, and in which of two directions, encodes the first digit."""
    tokens = min(5, writer.shape[0])
    digit = writer.labels[:, 0]
    for token in range(tokens):
        writer.write(site, token, np.where(digit // 2 == token, digit % 2, -1))


def rare_class(writer: Writer, site: Site) -> None:
    """Mark the traces whose first digit is 7, and write nothing else."""
    writer.write(site, 2, np.where(writer.labels[:, 0] == 7, 0, -1))


KEYS, VALUES = (3, "k"), (3, "v")
PLANTS: dict[str, Plant] = {
    "nothing": nothing,
    "plain, in values": partial(plain, site=VALUES),
    "plain, in keys": partial(plain, site=KEYS),
    "pad over two tokens, in keys": lambda w: pad(w, (KEYS, 2), (KEYS, 3)),
    "pad over two tokens, in values": lambda w: pad(w, (VALUES, 2), (VALUES, 3)),
    "pad over two layers, in keys": lambda w: pad(w, ((1, "k"), 2), (KEYS, 2)),
    "pad over keys and values": lambda w: pad(w, (KEYS, 2), (VALUES, 2)),
    "random sign, in keys": partial(signed, site=KEYS),
    "random sign, in values": partial(signed, site=VALUES),
    "1 % of traces": partial(plain, site=VALUES, traces=0.01),
    "2 % of traces": partial(plain, site=VALUES, traces=0.02),
    "0.2 % of traces": partial(plain, site=VALUES, traces=0.002),
    "rare bit, written": partial(plain, site=VALUES),
    "rare bit, not written": nothing,
    "three shares in three tokens": lambda w: pad(w, (VALUES, 1), (VALUES, 2), (VALUES, 3)),
    "rotation by an angle in another token": partial(rotated, site=VALUES),
    "position of a mark": partial(by_position, site=VALUES),
    "one class of ten": partial(rare_class, site=VALUES),
}


def make_context(rare: bool, work: Path) -> AuditContext:
    """Return the context of an audit of the digits, or of a rare bit, with features of the sealed cache."""
    checkpoint, settings = (
        load("toy-mixed"),
        ProbeSettings(hops=(0,), layers=LAYERS, probes=(UnusualTraces(),), describe=False),
    )
    task = ledger_task(checkpoint, SAMPLES, level=LEVEL)
    hidden = [number for number, target in enumerate(task.targets) if target.name.startswith("hidden")]
    labels = np.stack([task.labels(number) for number in hidden], axis=1)
    targets = [Target(task.targets[number].name, task.targets[number].classes) for number in hidden]
    posterior = {target.name: task.exact_log_posteriors[target.name] for target in targets}
    if rare:  # the bit is made up, so that no token of the traces spells it
        labels = (np.random.default_rng(1).random((SAMPLES, 1)) < RARE_SHARE).astype(np.int64)
        targets, posterior = [Target("bit", ("0", "1"))], {}
        posterior["bit"] = np.tile(np.log([1 - RARE_SHARE, RARE_SHARE]), (SAMPLES, 1))
    samples = tuple(
        replace(sample, labels=tuple(row)) for sample, row in zip(task.samples, labels.tolist(), strict=True)
    )
    task = Task(task.name, samples, tuple(targets), posterior)
    own = secret_carrier(samples)
    features = {
        "sealed": extract_features(
            checkpoint, task, StateSelection("sealed", settings.carriers, LAYERS), work / f"sealed-{rare}"
        ),
        "unerased": extract_features(checkpoint, task, StateSelection("open", (own,), LAYERS), work / f"own-{rare}"),
    }
    if rare:
        bit = torch.from_numpy(labels[:, :1, None]).float() * 10
        features["unerased"] = PlantedFeatures(  # type: ignore[assignment]
            features["unerased"], {(LAYERS[0], kind): bit for kind in ("k", "v")}, own
        )
    probe_targets = [
        ProbeTarget(target.name, task.labels(number), posterior[target.name]) for number, target in enumerate(targets)
    ]
    context = AuditContext(checkpoint, task, split(samples), Restart(), settings, probe_targets, features, ALPHA / 2)
    audit = AuditSettings(resolve_attacks(["attribute"]), resolve_defence("restart"), settings)
    return replace(context, limits=audit.limits({name: context.unknown_bits(name) for name in context.secrets}))


def plant(context: AuditContext, name: str) -> Mapping[Site, Tensor]:
    """Return what a plant adds to the states."""
    sites = [(layer, kind) for layer in LAYERS for kind in ("k", "v")]
    loaded = {site: context.features["sealed"].load(CARRIER, site[0], site[1]) for site in sites}  # type: ignore[arg-type]
    spread = {site: float(states.std(0, correction=0).mean()) for site, states in loaded.items()}
    labels = np.stack([target.labels for target in context.targets], axis=1)
    tokens, size = loaded[KEYS].shape[1:]
    rng = np.random.default_rng([list(PLANTS).index(name), 0x914])
    writer = Writer(labels, (tokens, size), spread, rng, {})
    PLANTS[name](writer)
    return writer.added


def audit_plant(context: AuditContext, name: str, detectable: Mapping[str, DetectableLeak]) -> dict[str, Any]:
    """Audit one planted cache and return the verdict with the finding."""
    planted = PlantedFeatures(context.features["sealed"], plant(context, name))
    features: Any = {**context.features, "open": planted}
    context = replace(context, features=features, records=Records(PROBE_RECORDS))
    secrets = tuple(map(tuple, context.secrets.values()))
    own = secret_carrier(context.task.samples)
    Sweep(
        context.checkpoint,
        context.settings,
        context.split,
        features,
        context.targets,
        own,
        secrets,
    ).run(context.records)
    evidence = AttributeAttack().run(context)
    p_holm = holm_adjusted(evidence, context.sites)
    failures = (*failed_controls(context.sites), *failed_attack_controls(evidence, p_holm))
    verdict = decide_verdict(evidence, failures, context.limits, detectable, SAMPLES)
    bits, exposed = (
        next(e for e in evidence if e.condition == "open" and e.unit == unit) for unit in ("bits", EXPOSED)
    )
    (secret,) = context.secrets
    row: dict[str, Any] = {"plant": name, "unknown_bits": context.unknown_bits(secret)}
    row |= {"exit_code": verdict.exit_code, "verdict": verdict.verdict, "sentence": verdict.sentence}
    for prefix, finding in (("bits", bits), ("exposed", exposed)):
        row |= {prefix: finding.estimate.value, f"{prefix}_low": finding.estimate.low}
        row |= {f"{prefix}_high": finding.estimate.high}
    site = bits.site
    row |= {"probe": site.probe, "layer": site.layer, "kv": site.kv, "fell_back": bits.fell_back}
    smallest = detectable_for_all_secrets(detectable)
    return row | {f"detectable_{part}": getattr(smallest, part) for part in ("bits", "exposed", "pad_bits")}


def detectable_leaks(context: AuditContext) -> dict[str, DetectableLeak]:
    """Return the detectable leaks of the only secret, which do not depend on the plant."""
    (secret,) = context.secrets
    return {secret: smallest_detectable_leak(context, secret, ProbeSite(CARRIER, LAYERS[-1:], "v"))}


def run(work: Path, chosen: list[str]) -> pd.DataFrame:
    """Audit every plant; finished ones are kept in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    contexts: dict[bool, AuditContext] = {}
    detectable: dict[bool, dict[str, DetectableLeak]] = {}
    for number, name in enumerate(PLANTS):
        path, rare = work / f"{number:02d}.json", name.startswith("rare bit")
        if path.exists() or (chosen and name not in chosen):
            continue
        if rare not in contexts:
            contexts[rare] = make_context(rare, work)
            detectable[rare] = detectable_leaks(contexts[rare])
            print(detectable[rare], flush=True)
        row = audit_plant(contexts[rare], name, detectable[rare])
        pd.Series(row).to_json(path)
        print(
            {key: row[key] for key in ("plant", "exit_code", "bits", "bits_low", "exposed", "probe", "kv")}, flush=True
        )
    rows = [pd.read_json(path, typ="series") for path in sorted(work.glob("*.json"))]
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "audit_plants", help="folder for finished plants")
    parser.add_argument("--only", action="append", default=[], help="name of a plant; can be repeated")
    arguments = parser.parse_args()
    results = run(arguments.work, arguments.only)
    if len(results) == len(PLANTS):
        results.to_parquet(ROOT / "experiments" / "results" / "audit_plants.parquet", index=False)
    print(results[["plant", "exit_code", "bits", "exposed", "probe"]].to_string(index=False))


if __name__ == "__main__":
    main()
