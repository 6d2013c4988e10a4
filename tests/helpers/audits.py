"""Audit summaries for each verdict, matching run.json contents, and audit contexts for tests."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ghosttrace as gt
import ghosttrace.report
from ghosttrace.ablation.arms import Arm, Restart
from ghosttrace.auditing.attacks import ATTACKS, TextBaselineAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import parse_defence
from ghosttrace.auditing.evidence import AttackEstimate, AttackSite, Evidence
from ghosttrace.auditing.findings import Findings
from ghosttrace.auditing.settings import AuditSettings, resolve_attacks
from ghosttrace.auditing.summary import result_rows, threat_rows
from ghosttrace.auditing.verdict import DetectableLeak, Limits, Verdict, decide_verdict, finding_state
from ghosttrace.bench.ledger import ledger_task
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import split
from ghosttrace.report.audit.page import write_reports

SCHEMA = json.loads((Path(ghosttrace.report.__file__).parent / "schemas" / "audit.schema.json").read_text())
FORBIDDEN = re.compile(r"\b(erased|safe|safely|compliant|compliance|anonymous|anonymised)\b", re.IGNORECASE)
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>|*b*\n# x"
VERDICTS = {"leak": 10, "not detected": 0, "within the limit": 0, "not enough data": 11, "invalid": 12}
MEMENTO = AttackSite("memento", 0, "2", "v", "all", "linear")
SITE = ProbeSite(Carrier("memento"), (0,), "v")
ATTACK_CLASSES = {**ATTACKS, "text": TextBaselineAttack}
MAX_EXPOSED = 0.01
LIMIT, TRACES, CONTROL_FAILURE = 0.1, 4000, "sealed: attribute finds +0.412 bits where it must find nothing"


def finding(attack: str, estimate: float | None, half: float = 0.0, condition: str = "open", **more: Any) -> Evidence:
    """Return a finding of a built-in attack; `low` and `high` override the bounds of the symmetric interval."""
    value = float("nan") if estimate is None else estimate
    low, high = (more.pop(name, value + sign * half) for name, sign in (("low", -1), ("high", 1)))
    attack_estimate = AttackEstimate(value, low, high, more.pop("p", 0.01))
    chosen: dict[str, Any] = {"secret": "note-*", "unit": "bits", "n": 600, "site": MEMENTO} | more
    first = [chosen.pop(name) for name in ("secret", "unit", "n")]
    return ATTACK_CLASSES[attack]().evidence(first[0], condition, first[1], attack_estimate, first[2], **chosen)


def rows(
    evidence: Sequence[Evidence], detectable: float | None = 0.1, verdict: Verdict | None = None, limit: float = LIMIT
) -> list[dict[str, Any]]:
    """Return findings as rows of summary.json, with the states assigned by the gate."""
    smallest = DetectableLeak(detectable, MAX_EXPOSED)
    limits = {item.secret: smallest for item in evidence}
    states = tuple(finding_state(item, Limits(limit), smallest) for item in evidence)
    verdict = verdict or Verdict("leak", "", None, states=states)
    failures = (CONTROL_FAILURE,) if verdict.verdict == "invalid" else ()
    p_holm = tuple(0.03 if item.estimate.p == item.estimate.p else float("nan") for item in evidence)
    settings = AuditSettings(resolve_attacks(None), parse_defence("none"), ProbeSettings())
    return result_rows(Findings(tuple(evidence), p_holm, failures, verdict, limits), settings, {"note-*": 16.6})


def row(attack: str, estimate: float | None, half: float = 0.0, condition: str = "open", **more: Any) -> dict[str, Any]:
    """Return one row of results for a finding with these values."""
    detectable = more.pop("detectable", 0.1)
    return rows([finding(attack, estimate, half, condition, **more)], detectable)[0]


def results(leak: float, half: float) -> list[Evidence]:
    """Return findings of every attack and control for a cache that leaks `leak` bits."""
    prompt, nan = AttackSite("prompt"), float("nan")
    share = min(1.0, 0.5 + leak / 4)
    collided = AttackSite("memento", 0, "all", "kv", "all")
    return [
        finding("attribute", leak, half, gate=True),
        finding("attribute", 0.0, unit="exposed share", low=0.0, high=0.003, p=1.0, gate=True),
        finding("ranking", 0.9 * leak, half, unit="exposure bits", baseline=1.44, note="of 100000 candidates"),
        finding("membership", share, 0.02, unit="AUC", baseline=0.5),
        finding("membership", 0.01, 0.005, unit="TPR", baseline=0.01, note="at 1.0% false claims"),
        finding(
            "membership", 0.1, unit="log rate ratio", p=nan, high=float("inf"), note="ceiling 4.10 with so many traces"
        ),
        finding("collision", leak / 2, half, gate=True, secret="block", site=collided),
        finding("tenant", leak, half, note="text included"),
        finding("behavioural", leak / 8, half, gate=True, site=prompt),
        finding("behavioural", None, unit="rate", p=nan, site=prompt),
        finding("text", 0.0, 0.01, "text", site=AttackSite()),
        finding("attribute", -0.01, half, "sealed"),
        finding("attribute", 0.0, half, "shuffled"),
        finding("attribute", 0.002, half, "causal", site=AttackSite("memento", -1, "2", "v", "all", "linear")),
        finding("attribute", 16.2, 0.2, "unerased", site=AttackSite("secret", 0, "2", "v", "all", "linear")),
    ]


def sites() -> list[dict[str, Any]]:
    """Return rows of a sweep: four layers, keys and values, three hops; open, sealed and causal control."""
    table = []
    for condition, scale, hops in (("open", 1.0, range(3)), ("sealed", 0.0, range(3)), ("causal", 0.0, range(-1, 0))):
        for kv, layer, hop in product("kv", range(4), hops):
            bits = scale * (0.2 + 0.4 * layer) / max(1, hop + 1) * (1 if kv == "v" else 0.6)
            entry: dict[str, Any] = {"condition": condition, "carrier": "memento", "hop": hop, "layer": str(layer)}
            entry |= {"kv": kv, "head": "all", "probe": "linear", "target": "note-*", "unknown": 3.3, "valid": True}
            entry |= {"n_train": 900, "n_test": 600, "n_clusters": 600, "chance": 0.1, "selectivity": 0.2, "p": 0.01}
            entry |= {"accuracy": 0.4, "accuracy_low": 0.3, "accuracy_high": 0.5, "p_holm": float(bits < 0.2)}
            entry |= {"reserve": 0.0, "headline": True, "significant": bits >= 0.2}
            table.append(entry | {"bits": bits, "bits_low": bits - 0.1, "bits_high": bits + 0.1})
    return table


def summary(
    verdict: str = "leak",
    name: str = "toy-open",
    evidence: Sequence[Evidence] | None = None,
    detectable: float | None = 0.1,
    **more: Any,
) -> dict[str, Any]:
    """Return the summary of an audit with a given verdict or with given findings.

    Args:
        verdict: Verdict of the generated findings; for `invalid` a control fails as well.
        name: Name of the model.
        evidence: Findings to use instead of generated ones.
        detectable: Detectable leak of every secret, in bits.
        more: Entries of the summary to replace.
    """
    amounts = {"leak": (1.6, 0.08), "within the limit": (0.06, 0.03), "not enough data": (0.09, 0.2)}
    evidence_items = results(*amounts.get(verdict, (0.002, 0.06))) if evidence is None else evidence
    failures = [CONTROL_FAILURE] if verdict == "invalid" else []
    smallest = DetectableLeak(detectable, None if detectable is None else MAX_EXPOSED, 3.3)
    decision = decide_verdict(
        evidence_items, failures, Limits(LIMIT), {item.secret: smallest for item in evidence_items}, TRACES
    )
    assert evidence is not None or decision.verdict == verdict
    defence = {"name": "none", "summary": "no defence: the cache as the model leaves it", "caveat": ""}
    defence |= {"utility_unit": "accuracy", "accuracy": 0.97, "accuracy_low": 0.94, "accuracy_high": 0.99}
    defence |= {"undefended_accuracy": 0.97, "effect": 0.0, "effect_low": -0.01, "effect_high": 0.01}
    defence |= {"extra_prefill_tokens": 0.0, "prefill_ratio": 1.0, "latency_ratio": 1.0, "kv_ratio": 1.0}
    return {
        "command": "audit",
        "valid": not failures,
        "failures": failures,
        "verdict": decision.verdict,
        "exit_code": decision.exit_code,
        "sentence": decision.sentence,
        "max_leak_bits": LIMIT,
        "max_exposed": MAX_EXPOSED,
        "ceiling_bits": decision.ceiling,
        "detectable_bits": detectable,
        "detectable_exposed": smallest.exposed,
        "detectable_pad_bits": smallest.pad_bits,
        "traces": TRACES,
        "traces_needed": decision.traces_needed,
        "model": name,
        "defence": defence,
        "secrets": [{"name": "note-*", "targets": 5, "unknown_bits": 16.6, "text_bits": 0.0}],
        "excluded": [{"trace": "t17", "reason": "its memento text contains the secret"}],
        "left_out": ["ranking of note-* was skipped: it has more than 1,000,000 candidates, too many to rank."],
        "attacks": {name: kind().describe() for name, kind in ATTACK_CLASSES.items()},
        "threats": threat_rows([kind() for kind in ATTACK_CLASSES.values()]),
        "results": rows(evidence_items, detectable, decision),
        "sites": sites(),
        "changed_on_resume": [],
        **more,
    }


def run(name: str = "toy-open") -> dict[str, Any]:
    """Return the contents of run.json for an audit of the model `name`."""
    return {
        "command": "audit",
        "model": name,
        "options": {"model": name, "max_leak_bits": 0.1, "mask_delimiters": False},
        "sha256": {"model": "ab" * 32, "tokenizer": "cd" * 32},
        "policy": {"keep_last_n_blocks": 0},
        "task": {"name": "ledger-h3", "samples": 4000, "sha256": "ef" * 32},
        "split": {
            "shares no": "base trace, no secret",
            "train": 2400,
            "validation": 600,
            "test": 1000,
            "sha256": "01" * 32,
        },
        "settings": {"seed": 0, "layers": None},
        "versions": {"python": "3.11.9", "ghosttrace": "0.1.0"},
        "device": "cpu",
        "dtype": "float32",
        "defence": "none",
        "attacks": ["attribute", "ranking"],
    }


def write_audit(folder: Path, audit_summary: dict[str, Any], configuration: dict[str, Any]) -> Path:
    """Write summary.json, run.json and the reports of an audit, and return the folder."""
    (folder / "summary.json").write_text(json.dumps(audit_summary))
    (folder / "run.json").write_text(json.dumps(configuration))
    write_reports(folder, audit_summary, configuration)
    return folder


def schema_errors(audit_summary: Any) -> list[str]:
    """Return the messages of validation errors of a summary under the published schema."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(audit_summary)]


@cache
def toy() -> gt.Checkpoint:
    """Return `toy-open` on the CPU, loaded once."""
    return gt.load("toy-open", device="cpu")


def context(arm: Arm, samples: int = 300) -> AuditContext:
    """Return the context of an audit of `ledger` before any cache is read."""
    task = ledger_task(toy(), samples, level=3)
    targets = [
        ProbeTarget(t.name, task.labels(n), task.exact_log_posteriors[t.name]) for n, t in enumerate(task.targets)
    ]
    return AuditContext(toy(), task, split(task.samples), arm, ProbeSettings(hops=(0,)), targets)


@dataclass(frozen=True)
class Noise64:
    """Random states that contain no information about any label."""

    states: torch.Tensor

    def load(self, carrier: Carrier, layer: int, kind: str, heads: object = None) -> torch.Tensor:
        return self.states[:, None]


def noise_context(n: int, parts: int, shares: list[float]) -> tuple[AuditContext, torch.Tensor]:
    """Return an audit context whose states are noise and whose classes have these shares, and the states."""
    rng = np.random.default_rng(3)
    targets = [
        ProbeTarget(f"d-{k}", rng.choice(len(shares), n, p=shares), np.log(np.tile(shares, (n, 1))))
        for k in range(parts)
    ]
    states = torch.from_numpy(rng.standard_normal((n, 64))).float()
    labels = np.stack([target.labels for target in targets], axis=1).tolist()
    samples = tuple(Sample([], str(k), str(k), 0, (), tuple(labels[k])) for k in range(n))
    task = Task(
        "marked", samples, tuple(Target(target.name, tuple(map(str, range(len(shares))))) for target in targets)
    )
    features = {"sealed": Noise64(states)}
    audit_context = AuditContext(toy(), task, split(samples), Restart(), ProbeSettings(), targets, features)  # type: ignore[arg-type]
    return audit_context, states
