"""The claim: the gate of an audit says "leak" where there is none in at most 5 of 100, and finds 0.5 bit in 90.

The caches are sealed ones of `toy-open`, read at the default settings of `ghosttrace audit`. They are a
function of the retained text alone, and given that text the digits of `ledger` are uniform: digits drawn
again are fresh secrets over caches that hold nothing of them. Each audit is judged so, and again with a code
written into one site, drawn at random: 0.5 bit of the first hidden digit, 0.15 bit of it, and 0.3 bit spread
evenly over the three hidden digits. The last two are above the 0.1 bit that the gate allows, but not by much: an
exit code of 0 on them is a miss, and is recorded as one. Probes and the user's prompts are fitted, chosen
and judged by the audit's own code, and what the probes could have seen is the audit's own `detectable`, once
for all audits; what is left out to save time are the MLPs, the controls, and collision, whose candidates
tie exactly over a sealed cache.

Writes `experiments/results/audit_calibration.parquet`. `python experiments/audit_calibration.py`: about
fifty minutes on one core; goes on where it stopped.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ghosttrace.ablation.arms import Restart
from ghosttrace.auditing.attacks.attribute import AttributeAttack
from ghosttrace.auditing.attacks.behavioural import BehaviouralAttack, calibration_split, prompt_sessions
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.detectable_leak import inject, smallest_detectable_leak
from ghosttrace.auditing.evidence import Evidence, LabelLogProbs, total_bits
from ghosttrace.auditing.prompts import prompts_by_secret
from ghosttrace.auditing.sites import best_probe, matches_site
from ghosttrace.auditing.verdict import EXIT_CODES, decide_verdict, detectable_for_all_secrets
from ghosttrace.bench.ledger import ledger_prompts, ledger_task
from ghosttrace.model.checkpoint import load
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.evidence import ALPHA, ProbeTarget, Scores, record
from ghosttrace.probing.features import extract_features
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import ProbeSettings, ProbeSite, site_groups, state_selections

ROOT = Path(__file__).parent.parent
AUDITS, AUDITS_PER_BATCH, SAMPLES, LEVEL, MAX_LEAK_BITS = 100, 25, 6000, 3, 0.1
PLANTED_LEAKS = ((0.5, 1), (0.3, 3), (0.15, 1))  # bits, and the hidden digits that they are spread over
N_GATED_FINDINGS = 5  # findings of the default audit that decide: two secrets by two attacks, and collision
LEAK_TARGETS = "hidden-*"


@dataclass(frozen=True)
class SharedInputs:
    """What all audits share.

    Attributes:
        context: with the labels of no audit.
        sites: where probes look.
        answers: for each secret, what the model finds likely over its sealed cache, float32[N, d].
        detectable_bits: for each secret, the least leak that the probes would have detectable_bits, bits; None if none of those tried.
    """

    context: AuditContext
    sites: list[ProbeSite]
    answers: dict[str, Tensor]
    detectable_bits: dict[str, float | None]


def make_bench(work: Path) -> SharedInputs:
    """Read the caches, or find them read."""
    checkpoint, settings = load("toy-open"), ProbeSettings(hops=(0, 1), mlp=False)
    task = ledger_task(checkpoint, SAMPLES, level=LEVEL)
    parts = split(task.samples)
    _, sealed = state_selections(checkpoint, settings, secret_carrier(task.samples))
    features = {"sealed": extract_features(checkpoint, task, sealed, work / "features")}
    asked = [
        ProbeTarget(t.name, task.labels(number), task.exact_log_posteriors[t.name])
        for number, t in enumerate(task.targets)
    ]
    context = AuditContext(
        checkpoint, task, parts, Restart(), settings, asked, features, ALPHA / N_GATED_FINDINGS, max_leak=MAX_LEAK_BITS
    )
    later = [carrier for carrier in settings.carriers if carrier.hop >= 0]
    sites = [site for carrier in later for group in site_groups(checkpoint, settings, carrier) for site in group]
    few = calibration_split(parts, settings.seed)
    every = np.concatenate([few.train, few.validation, few.test]).tolist()
    answers = {}
    prompts = prompts_by_secret(ledger_prompts(LEVEL).values(), task, task, checkpoint, strict=True)
    for secret, prompt in prompts.items():
        answer_log_p = prompt_sessions(context, Restart(), prompt, every).answer_log_p
        answers[secret] = torch.from_numpy(
            np.concatenate([answer_log_p[name] for name in sorted(answer_log_p)], axis=1)
        )
    return SharedInputs(context, sites, answers, detectable_leaks(context, sites[-1], work / "detectable.json"))


def detectable_leaks(context: AuditContext, site: ProbeSite, path: Path) -> dict[str, float | None]:
    """What the probes of all audits would have seen of each secret; its labels are fresh, so that all share it."""
    if not path.exists():
        path.write_text(
            json.dumps({secret: smallest_detectable_leak(context, secret, site) for secret in context.secrets})
        )
    found: dict[str, float | None] = json.loads(path.read_text())
    return found


def draw_targets(bench: SharedInputs, number: int) -> list[ProbeTarget]:
    """The targets of one audit, with secrets of its own."""
    rng = np.random.default_rng([number, 0xA0D])
    return [replace(one, labels=rng.integers(0, 10, SAMPLES)) for one in bench.context.targets]


def find_without_leak(bench: SharedInputs, audits: range) -> Iterator[tuple[int, ProbeSite | str, list[Scores]]]:
    """What each attack finds of each audit's secrets where nothing leaks; features are read and factored once."""
    asked = [one for number in audits for one in draw_targets(bench, number)]
    width, parts = len(bench.context.targets), bench.context.split
    for site in bench.sites:
        states = site.read(bench.context.features["sealed"])[None]
        (scores,) = linear_scores(states, asked, parts, torch.device("cpu"))
        for place, number in enumerate(audits):
            yield number, site, scores[place * width : (place + 1) * width]
    few = calibration_split(parts, bench.context.settings.seed)
    for secret, members in bench.context.secrets.items():
        these = [draw_targets(bench, number)[member] for number in audits for member in members]
        (scores,) = linear_scores(bench.answers[secret][None], these, few, torch.device("cpu"))
        for place, number in enumerate(audits):
            yield number, secret, scores[place * len(members) : (place + 1) * len(members)]


def find_with_leak(bench: SharedInputs, number: int, leak: float, digits: int) -> tuple[ProbeSite, list[Scores]]:
    """The same audit with a code of so many bits, spread over some hidden digits, at one site."""
    rng = np.random.default_rng([number, 0x1EA, round(100 * leak)])
    site = bench.sites[int(rng.integers(len(bench.sites)))]
    asked = draw_targets(bench, number)
    parts = [asked[member] for member in bench.context.secrets[LEAK_TARGETS][:digits]]
    states = inject(site.read(bench.context.features["sealed"]), parts, [leak / digits] * digits, rng)
    (scores,) = linear_scores(states[None], asked, bench.context.split, torch.device("cpu"))
    return site, scores


def verdict(bench: SharedInputs, number: int, found: dict[Any, list[Scores]]) -> dict[str, Any]:
    """The gate on one audit's findings."""
    context = replace(bench.context, targets=draw_targets(bench, number))
    gated = list[Evidence]()
    for secret in context.secrets:
        names = {one.name for one in context.parts(secret)}
        rows = [
            record(score, condition="open", probe="linear", **site.result_columns)
            for site, scores in found.items()
            if isinstance(site, ProbeSite)
            for score in scores
            if score.target in names
        ]
        best = best_probe(rows)
        chosen = [row for row in rows if matches_site(row, best, "open")]
        gated.append(AttributeAttack().finding(context, secret, "open", chosen))
        said_of = [LabelLogProbs.of(score) for score in found[secret]]
        estimate, judged = total_bits(said_of, context.split.cluster, context.alpha)
        gated.append(BehaviouralAttack().evidence(secret, "open", "bits", estimate, len(judged), gate=True))
    said = decide_verdict(gated, [], MAX_LEAK_BITS, bench.detectable_bits, SAMPLES)
    worst = max(gated, key=lambda one: one.found.low).found
    measured = {"estimate": worst.value, "low": worst.low, "high": worst.high}
    return {
        "verdict": said.verdict,
        **measured,
        "detectable": detectable_for_all_secrets(bench.detectable_bits),
        "ceiling": said.ceiling,
    }


def run(work: Path) -> pd.DataFrame:
    """Every audit, without a leak and with each of them. Finished portions are kept in `work`."""
    bench, tables = make_bench(work), []
    for begin in range(0, AUDITS, AUDITS_PER_BATCH):
        path = work / f"audits-{begin:03d}.parquet"
        if not path.exists():
            audits = range(begin, begin + AUDITS_PER_BATCH)
            found: dict[int, dict[Any, list[Scores]]] = {number: {} for number in audits}
            for number, place, scores in find_without_leak(bench, audits):
                found[number][place] = scores
            rows = []
            for number in audits:
                rows.append(verdict(bench, number, found[number]) | {"audit": number, "leak": 0.0, "digits": 0})
                for leak, digits in PLANTED_LEAKS:
                    site, scores = find_with_leak(bench, number, leak, digits)
                    leaks = verdict(bench, number, found[number] | {site: scores})
                    rows.append(leaks | {"audit": number, "leak": leak, "digits": digits})
            table = pd.DataFrame(rows)
            table["missed"] = (table["leak"] > MAX_LEAK_BITS) & (table["verdict"].map(EXIT_CODES) == 0)
            table.to_parquet(path, index=False)
        tables.append(pd.read_parquet(path))
        print(tables[-1].groupby(["leak", "verdict"]).size().to_dict(), flush=True)
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    """Measure, record, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "audit_calibration", help="for finished portions")
    results = run(parser.parse_args().work)
    results.to_parquet(ROOT / "experiments" / "results" / "audit_calibration.parquet", index=False)
    print(results.groupby(["leak", "digits"])["verdict"].value_counts().to_string())
    print(results.groupby(["leak", "digits"])["missed"].mean().rename("exit 0 above the limit").to_string())


if __name__ == "__main__":
    main()
