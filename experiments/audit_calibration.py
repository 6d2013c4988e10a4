"""Claim: the gate of an audit reports a false leak in at most 5 of 100 audits and detects 0.5 bits in at least 90.

The caches are sealed caches of `toy-open` at the default settings of `ghosttrace audit`. They depend only on the
retained text, and given that text the digits of `ledger` are uniform. Newly drawn digits are therefore fresh secrets
about which the caches contain nothing.

Each audit is judged without a leak and with a code planted in one token at a random site: 0.5 or 0.15 bits of the first
hidden digit, or 0.3 bits spread evenly over the three hidden digits. The last two are slightly above the limit of 0.1
bits; an exit code of 0 on them counts as a miss. The audit's own code fits, selects and judges the probes and the
user's prompts, and estimates the detectable leak once for all audits. To save time, the MLPs, the controls and the
collision attack are skipped; the candidates of a collision tie exactly over a sealed cache.

Writes `experiments/results/audit_calibration.parquet`. `python experiments/audit_calibration.py`: about fifty minutes
on one core; resumes an interrupted run.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from ghosttrace.auditing.detectable_leak import smallest_detectable_leak, write_linear_code
from ghosttrace.auditing.evidence import EXPOSED, Evidence, LabelLogProbs, total_bits
from ghosttrace.auditing.prompts import prompts_by_secret
from ghosttrace.auditing.sites import best_probe, matches_site
from ghosttrace.auditing.token_codes import read_tokens
from ghosttrace.auditing.verdict import EXIT_CODES, DetectableLeak, Limits, decide_verdict, detectable_for_all_secrets
from ghosttrace.bench.ledger import ledger_prompts, ledger_task
from ghosttrace.model.checkpoint import load
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.evidence import ProbeTarget, Scores, record
from ghosttrace.probing.features import StateKind, extract_features
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import site_groups, state_selections
from ghosttrace.stats import ALPHA

ROOT = Path(__file__).parent.parent
AUDITS, AUDITS_PER_BATCH, SAMPLES, LEVEL, LIMITS = 100, 25, 8000, 3, Limits()
PLANTED_LEAKS = ((0.5, 1), (0.3, 3), (0.15, 1))  # bits, and number of hidden digits over which they are spread
N_GATED_FINDINGS = 7  # of the default audit: two secrets by bits, by exposed traces and by prompts, and collision
LEAK_TARGETS = "hidden-*"


@dataclass(frozen=True)
class SharedInputs:
    """The inputs that all audits share.

    Attributes:
        context: Audit context, before the labels of an audit are drawn.
        sites: Sites of the probes.
        answer_log_p: For each secret, log-probabilities of its answers over the sealed cache, float32[N, d].
        detectable: For each secret, the smallest leaks that the probes detect.
    """

    context: AuditContext
    sites: list[ProbeSite]
    answer_log_p: dict[str, Tensor]
    detectable: dict[str, DetectableLeak]


def make_shared_inputs(work: Path) -> SharedInputs:
    """Extract the states of the sealed caches, or load them from `work`."""
    checkpoint, settings = load("toy-open"), ProbeSettings(hops=(0, 1), mlp=False)
    task = ledger_task(checkpoint, SAMPLES, level=LEVEL)
    parts = split(task.samples)
    _, sealed = state_selections(checkpoint, settings, secret_carrier(task.samples))
    features = {"sealed": extract_features(checkpoint, task, sealed, work / "features")}
    targets = [
        ProbeTarget(t.name, task.labels(number), task.exact_log_posteriors[t.name])
        for number, t in enumerate(task.targets)
    ]
    context = AuditContext(
        checkpoint,
        task,
        parts,
        Restart(),
        settings,
        targets,
        features,
        ALPHA / N_GATED_FINDINGS,
        limits=LIMITS,
    )
    later = [carrier for carrier in settings.carriers if carrier.hop >= 0]
    sites = [site for carrier in later for group in site_groups(checkpoint, settings, carrier) for site in group]
    calibration = calibration_split(parts, settings.seed)
    rows = np.concatenate([calibration.train, calibration.validation, calibration.test]).tolist()
    answers = {}
    prompts = prompts_by_secret(ledger_prompts(LEVEL).values(), task, task, checkpoint, strict=True)
    for secret, prompt in prompts.items():
        answer_log_p = prompt_sessions(context, Restart(), prompt, rows).answer_log_p
        answers[secret] = torch.from_numpy(
            np.concatenate([answer_log_p[name] for name in sorted(answer_log_p)], axis=1)
        )
    return SharedInputs(context, sites, answers, detectable_leaks(context, sites[-1], work / "detectable.json"))


def detectable_leaks(context: AuditContext, site: ProbeSite, path: Path) -> dict[str, DetectableLeak]:
    """Return the smallest leaks of each secret that the probes detect; all audits share them."""
    if not path.exists():
        leaks = {secret: smallest_detectable_leak(context, secret, site) for secret in context.secrets}
        path.write_text(json.dumps({secret: asdict(leak) for secret, leak in leaks.items()}))
    return {secret: DetectableLeak(**leak) for secret, leak in json.loads(path.read_text()).items()}


def draw_targets(shared: SharedInputs, number: int) -> list[ProbeTarget]:
    """Draw the secrets of one audit and return its targets."""
    rng = np.random.default_rng([number, 0xA0D])
    return [replace(target, labels=rng.integers(0, 10, SAMPLES)) for target in shared.context.targets]


def find_without_leak(shared: SharedInputs, audits: range) -> Iterator[tuple[int, ProbeSite | str, list[Scores]]]:
    """Run the attacks without a leak; features are read and factored once for all audits.

    Yields:
        Number of the audit, probe site or name of the secret, and scores of the targets.
    """
    targets = [target for number in audits for target in draw_targets(shared, number)]
    width, parts = len(shared.context.targets), shared.context.split
    for site in shared.sites:
        states = site.read(shared.context.features["sealed"])[None]
        (scores,) = linear_scores(states, targets, parts, torch.device("cpu"))
        for index, number in enumerate(audits):
            yield number, site, scores[index * width : (index + 1) * width]
    calibration = calibration_split(parts, shared.context.settings.seed)
    for secret, members in shared.context.secrets.items():
        secret_targets = [draw_targets(shared, number)[member] for number in audits for member in members]
        (scores,) = linear_scores(shared.answer_log_p[secret][None], secret_targets, calibration, torch.device("cpu"))
        for index, number in enumerate(audits):
            yield number, secret, scores[index * len(members) : (index + 1) * len(members)]


def find_with_leak(shared: SharedInputs, number: int, leak: float, digits: int) -> tuple[ProbeSite, list[Scores]]:
    """Probe one audit with `leak` bits planted at a random site, spread over the first `digits` hidden digits."""
    rng = np.random.default_rng([number, 0x1EA, round(100 * leak)])
    site = shared.sites[int(rng.integers(len(shared.sites)))]
    targets = draw_targets(shared, number)
    parts = [targets[member] for member in shared.context.secrets[LEAK_TARGETS][:digits]]
    kind: StateKind = "k" if site.kv == "k" else "v"
    tokens = read_tokens(shared.context, site, kind).copy()
    write_linear_code(tokens, parts, [leak / digits] * digits, rng)
    (scores,) = linear_scores(tokens.features()[None], targets, shared.context.split, torch.device("cpu"))
    return site, scores


def verdict(shared: SharedInputs, number: int, scores_by_site: dict[Any, list[Scores]]) -> dict[str, Any]:
    """Apply the gate to one audit, given its scores by probe site and by name of the secret."""
    context = replace(shared.context, targets=draw_targets(shared, number))
    gated = list[Evidence]()
    for secret in context.secrets:
        names = {target.name for target in context.parts(secret)}
        rows = [
            record(score, condition="open", probe="linear", **site.result_columns)
            for site, scores in scores_by_site.items()
            if isinstance(site, ProbeSite)
            for score in scores
            if score.target in names
        ]
        best = best_probe(rows)
        chosen = [row for row in rows if matches_site(row, best, "open")]
        gated.append(AttributeAttack().finding(context, secret, "open", chosen))
        gated.append(AttributeAttack().exposure(context, secret, "open", chosen))
        log_probs = [LabelLogProbs.from_scores(score) for score in scores_by_site[secret]]
        estimate, judged = total_bits(log_probs, context.split.cluster, context.alpha)
        gated.append(BehaviouralAttack().evidence(secret, "open", "bits", estimate, len(judged), gate=True))
    decision = decide_verdict(gated, [], LIMITS, shared.detectable, SAMPLES)
    in_bits = [evidence for evidence in gated if evidence.unit != EXPOSED]
    worst = max(in_bits, key=lambda evidence: evidence.estimate.low).estimate
    measured = {"estimate": worst.value, "low": worst.low, "high": worst.high}
    return {
        "verdict": decision.verdict,
        **measured,
        "exposed": max(evidence.estimate.value for evidence in gated if evidence.unit == EXPOSED),
        "fell_back": all(evidence.fell_back for evidence in in_bits if evidence.attack == "attribute"),
        "detectable": detectable_for_all_secrets(shared.detectable).bits,
        "ceiling": decision.ceiling,
    }


def run(work: Path) -> pd.DataFrame:
    """Run every audit without a leak and with each planted leak; finished batches are kept in `work`."""
    shared, tables = make_shared_inputs(work), []
    for begin in range(0, AUDITS, AUDITS_PER_BATCH):
        path = work / f"audits-{begin:03d}.parquet"
        if not path.exists():
            audits = range(begin, begin + AUDITS_PER_BATCH)
            scores_by_audit: dict[int, dict[Any, list[Scores]]] = {number: {} for number in audits}
            for number, site_or_secret, scores in find_without_leak(shared, audits):
                scores_by_audit[number][site_or_secret] = scores
            rows = []
            for number in audits:
                rows.append(
                    verdict(shared, number, scores_by_audit[number]) | {"audit": number, "leak": 0.0, "digits": 0}
                )
                for leak, digits in PLANTED_LEAKS:
                    site, scores = find_with_leak(shared, number, leak, digits)
                    with_leak = verdict(shared, number, scores_by_audit[number] | {site: scores})
                    rows.append(with_leak | {"audit": number, "leak": leak, "digits": digits})
            table = pd.DataFrame(rows)
            table["missed"] = (table["leak"] > LIMITS.bits) & (table["verdict"].map(EXIT_CODES) == 0)
            table.to_parquet(path, index=False)
        tables.append(pd.read_parquet(path))
        print(tables[-1].groupby(["leak", "verdict"]).size().to_dict(), flush=True)
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    """Measure, write the results and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "audit_calibration", help="folder for finished batches"
    )
    results = run(parser.parse_args().work)
    results.to_parquet(ROOT / "experiments" / "results" / "audit_calibration.parquet", index=False)
    print(results.groupby(["leak", "digits"])["verdict"].value_counts().to_string())
    print(results.groupby(["leak", "digits"])["missed"].mean().rename("exit 0 above the limit").to_string())


if __name__ == "__main__":
    main()
