"""An audit: every attack on what a defence leaves, every control beside it, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pandas as pd

from ghosttrace.ablation.arms import Arm, Memento, Restart
from ghosttrace.auditing.attacks import attribute, behavioural, best_site, collision, membership, ranking, tenant
from ghosttrace.auditing.caches import read_defended
from ghosttrace.auditing.context import Exhibit
from ghosttrace.auditing.detect import detectable
from ghosttrace.auditing.evidence import Estimate, Evidence
from ghosttrace.auditing.gate import Verdict, judge
from ghosttrace.auditing.plan import Plan
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.evidence import ALPHA, TRIVIAL, Asked, failed_controls, summarise
from ghosttrace.probing.features import Features, Wanted, extract
from ghosttrace.probing.split import Split
from ghosttrace.probing.sweep import Settings, Site, Sweep, ask, text_rows, wanted
from ghosttrace.runs.records import Records
from ghosttrace.stats import holm

PROBES = ("attribute", "ranking", "membership")  # attacks that read the cache by a probe of one place
CONTROLS = ("sealed", "causal", "shuffled")
ONE_PASS: dict[Arm, str] = {Memento(): "open", Restart(): "sealed"}  # what one masked pass reads as a session would


@dataclass(frozen=True)
class Audited:
    """What an audit found.

    Attributes:
        evidence: every attack, secret and condition.
        p_holm: of each, adjusted over all open findings and sites, or over all controls; NaN where there is no test.
        sites: the probes' own table, see `ghosttrace.probing.evidence.summarise`.
        failures: the controls that did not hold, in words.
        verdict: what the gate says.
        detectable: for each secret, the smallest leak that the probes would have seen, bits; None if none of
            those tried. Empty where no probe is among the attacks.
        unknown, told: for each secret, bits that the text leaves open, and that it tells.
        secrets: the targets that make up each.
        left_out: attacks that could not be carried out, and why, a sentence each.
    """

    evidence: tuple[Evidence, ...]
    p_holm: tuple[float, ...]
    sites: pd.DataFrame
    failures: tuple[str, ...]
    verdict: Verdict
    detectable: dict[str, float | None]
    unknown: dict[str, float]
    told: dict[str, float]
    secrets: dict[str, list[int]]
    left_out: tuple[str, ...]


Progress = Callable[[str, int, int], None]


def read_caches(
    checkpoint: Checkpoint, task: Task, settings: Settings, arm: Arm, folder: Path, batch_tokens: int, show: Progress
) -> dict[str, Features]:
    """Features of the defended cache, of the sealed one, and of the secret's own tokens before they go."""
    secret = secret_carrier(task.samples)
    defended, sealed = wanted(checkpoint, settings, secret)
    kept = tuple(carrier for carrier in defended.carriers if carrier.kind != "secret")
    name = ONE_PASS.get(arm, f"defended-{sha256(repr(arm).encode()).hexdigest()[:12]}")
    parts = {
        "open": Wanted(name, kept, defended.layers),
        "sealed": sealed,
        "unerased": Wanted("open", (secret,), defended.layers),
    }
    readers = {} if arm in ONE_PASS else {"open": partial(read_defended, checkpoint, arm, settings.seed)}
    return {
        part: extract(
            checkpoint, task, what, folder / part, batch_tokens, partial(show, f"{part} cache"), readers.get(part)
        )
        for part, what in parts.items()
    }


def audit(exhibit: Exhibit, plan: Plan, plain: list[Asked], records: Records, show: Progress) -> Audited:
    """Run every attack of a plan.

    Args:
        exhibit: what to attack.
        plan: how.
        plain: the targets on top of the text baseline alone, see `ghosttrace.probing.sweep.ask`.
        records: of probes; what is there is not done again.
        show: called with what is under way, steps done and steps in all.
    """
    for row in text_rows(exhibit.task, exhibit.asked, plain, exhibit.split):
        records.add(row)
    at, own = exhibit, secret_carrier(exhibit.task.samples)
    sweep = Sweep(at.checkpoint, at.settings, at.split, at.features, at.asked, own, at.device)
    sweep.run(records, partial(show, "probes"))
    sites = summarise(map(records.get, sorted(records.keys())), exhibit.task, exhibit.split)
    evidence, limits = list[Evidence](), dict[str, float | None]()
    if "attribute" in plan.attacks:
        evidence += attribute(exhibit, records)
    for done, secret in enumerate(exhibit.secrets):
        show("attacks", done, len(exhibit.secrets))
        if set(PROBES) & set(plan.attacks):
            site = best_site(exhibit, records, secret)
            limits[secret] = detectable(exhibit, secret, site, plan.max_leak)
            evidence += _at_site(exhibit, plan, secret, site)
        if "behavioural" in plan.attacks and secret in plan.prompts:
            evidence += behavioural(exhibit, secret, plan.prompts[secret])
        evidence.append(_text(exhibit, secret, sites))
    if "collision" in plan.attacks:
        evidence += collision(exhibit)
    return _conclude(exhibit, plan, evidence, sites, limits)


def _at_site(exhibit: Exhibit, plan: Plan, secret: str, site: Site) -> list[Evidence]:
    """The attacks that look at the one place where a secret shows most."""
    found = list[Evidence]()
    if "attribute" in plan.attacks:
        found.append(tenant(exhibit, secret, site))
    if {"ranking", "membership"} & set(plan.attacks):
        said = {condition: exhibit.posteriors(secret, site, condition) for condition in ("open", "sealed")}
    if "ranking" in plan.attacks:
        found += ranking(exhibit, secret, site, said)
    if "membership" in plan.attacks:
        found += membership(exhibit, secret, site, said, plan.fpr)
    return found


def _text(exhibit: Exhibit, secret: str, sites: pd.DataFrame) -> Evidence:
    """What a reader of the text alone knows of a secret, beyond how often each class occurs."""
    names = [exhibit.asked[number].name for number in exhibit.secrets[secret]]
    rows = sites[sites["target"].isin(names)]
    known = rows[rows["condition"] == "exact"]
    rows = known if len(known) else rows[rows["condition"] == "text"]
    half = float(((rows["bits_high"] - rows["bits"]) ** 2).sum() ** 0.5)
    value = float(rows["bits"].sum())
    found = Estimate(value, value - half, value + half)
    note = "exactly, from the retained text" if len(known) else "by a probe of the retained text"
    return Evidence("text", secret, "text", "bits", found, int(rows["n_test"].iloc[0]), note=note)


def _conclude(
    exhibit: Exhibit,
    plan: Plan,
    evidence: Sequence[Evidence],
    sites: pd.DataFrame,
    limits: dict[str, float | None],
) -> Audited:
    p_holm = _adjusted(evidence, sites)
    failures = (*failed_controls(sites), *_failures(evidence, p_holm))
    verdict = judge(evidence, failures, plan.max_leak, least_seen(limits), len(exhibit.task.samples))
    told = {one.secret: one.found.value for one in evidence if one.condition == "text"}
    unknown = {secret: exhibit.unknown(secret) for secret in exhibit.secrets}
    left_out = plan.left_out(exhibit.secrets, evidence)
    return Audited(tuple(evidence), p_holm, sites, failures, verdict, limits, unknown, told, exhibit.secrets, left_out)


def least_seen(limits: Mapping[str, float | None]) -> float | None:
    """The leak that would have been seen of every secret; None if there is none, or none was tried."""
    known = [one for one in limits.values() if one is not None]
    return max(known) if known and len(known) == len(limits) else None


def _adjusted(evidence: Sequence[Evidence], sites: pd.DataFrame) -> tuple[float, ...]:
    """Holm over all open findings together with all open sites, and over the attacks' controls."""
    adjusted = [float("nan")] * len(evidence)
    for conditions, others in ((("open",), sites[sites["condition"] == "open"]["p"].tolist()), (CONTROLS, [])):
        tested = [k for k, one in enumerate(evidence) if one.condition in conditions and one.found.p == one.found.p]
        for k, p in zip(tested, holm([evidence[k].found.p for k in tested] + others), strict=False):
            adjusted[k] = p
    return tuple(adjusted)


def _failures(evidence: Sequence[Evidence], p_holm: Sequence[float]) -> list[str]:
    """Attacks that found something where nothing can be."""
    return [
        f"{one.condition}: {one.attack} finds {one.found.value:+.3f} {one.unit} of {one.secret} where nothing can be"
        for one, p in zip(evidence, p_holm, strict=True)
        if one.condition in CONTROLS
        and p <= ALPHA
        and one.found.value - one.baseline > TRIVIAL
        and one.unit != "epsilon"
    ]


def exhibit_of(
    checkpoint: Checkpoint,
    task: Task,
    split: Split,
    arm: Arm,
    settings: Settings,
    features: dict[str, Features],
    plan: Plan,
) -> tuple[Exhibit, list[Asked]]:
    """What the attackers work on, and the targets on top of the text baseline alone."""
    asked, plain = ask(checkpoint, task, split)
    exhibit = Exhibit(checkpoint, task, split, arm, settings, asked, features, ALPHA)
    gated = len(exhibit.secrets) * ("attribute" in plan.attacks)
    gated += len(exhibit.secrets.keys() & plan.prompts.keys()) * ("behavioural" in plan.attacks)
    gated += "collision" in plan.attacks
    return replace(exhibit, alpha=ALPHA / max(1, gated)), plain
