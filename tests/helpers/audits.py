"""Audits for tests: summaries of each verdict and the run.json beside them, and exhibits for attacks."""

import json
import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ghosttrace.probing.ledger import ledger_task

import ghosttrace as gt
import ghosttrace.report
from ghosttrace.ablation.arms import Arm, Restart
from ghosttrace.auditing.context import Exhibit
from ghosttrace.data.task import Sample, Task
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import Asked
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import Settings, Site
from ghosttrace.report.audit.page import write_reports

SCHEMA = json.loads((Path(ghosttrace.report.__file__).parent / "schemas" / "audit.schema.json").read_text())
FORBIDDEN = re.compile(r"\b(erased|safe|safely|compliant|compliance|anonymous|anonymised)\b", re.IGNORECASE)
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>|*b*\n# x"
VERDICTS = {"leak": 10, "not detected": 0, "within the limit": 0, "not enough data": 11, "invalid": 12}
PLACE = ("memento", 0, "2", "v", "linear")
SITE = Site(Carrier("memento"), (0,), "v")
THREATS = [
    ("insider", "reads the retained keys and values", ["attribute", "ranking", "membership", "collision"]),
    ("tenant", "is handed the retained keys and values by mistake, without the text", ["tenant"]),
    ("user", "goes on prompting the same session", ["behavioural"]),
    ("reader", "sees the retained text alone", ["text"]),
]
OF = {attack: name for name, _, attacks in THREATS for attack in attacks}


def row(attack: str, estimate: float | None, half: float, condition: str = "open", **more: Any) -> dict[str, Any]:
    """A row of results."""
    ends = {"low": None, "high": None} if estimate is None else {"low": estimate - half, "high": estimate + half}
    site = dict(zip(("carrier", "hop", "layer", "kv", "probe"), PLACE, strict=True))
    found = {"attack": attack, "threat": OF[attack], "defence": "none", "secret": "note-*", "condition": condition}
    seen = None if attack in ("behavioural", "collision", "membership", "text") else 0.1
    found |= {**site, "estimate": estimate, **ends, "unit": "bits", "baseline": 0.0, "detectable": seen}
    return found | {"p": 0.01, "p_holm": 0.03, "gate": False, "n": 600, "valid": True, "note": "", **more}


def results(leak: float, half: float) -> list[dict[str, Any]]:
    """Every attack and control, of a cache that leaks so many bits."""
    nowhere = {"carrier": "prompt", "hop": 0, "layer": "", "kv": ""}
    share = min(1.0, 0.5 + leak / 4)
    return [
        row("attribute", leak, half, gate=True),
        row("ranking", 0.9 * leak, half, unit="exposure bits", baseline=1.44, note="of 100000 candidates"),
        row("membership", share, 0.02, unit="AUC", baseline=0.5),
        row("membership", 0.01, 0.005, unit="TPR", baseline=0.01, note="at 1.0% false claims"),
        row("membership", 0.1, 0.0, unit="epsilon", p=None, p_holm=None, note="ceiling 4.10 with so many traces")
        | {"high": None},
        row("collision", leak / 2, half, gate=True, secret="block", layer="all", kv="kv", probe=""),
        row("tenant", leak, half, note="text included"),
        row("behavioural", leak / 8, half, gate=True, **nowhere),
        row("behavioural", None, 0.0, unit="rate", p=None, p_holm=None, **nowhere),
        row("text", 0.0, 0.01, "text", **(nowhere | {"carrier": "", "probe": ""})),
        row("attribute", -0.01, half, "sealed"),
        row("attribute", 0.0, half, "shuffled"),
        row("attribute", 0.002, half, "causal", hop=-1),
        row("attribute", 16.2, 0.2, "unerased", carrier="secret"),
    ]


def sites() -> list[dict[str, Any]]:
    """Rows of a sweep over four layers, keys and values, three hops, sealed beside open, and what stands before."""
    found = []
    for condition, scale, hops in (("open", 1.0, range(3)), ("sealed", 0.0, range(3)), ("causal", 0.0, range(-1, 0))):
        for kv, layer, hop in product("kv", range(4), hops):
            bits = scale * (0.2 + 0.4 * layer) / max(1, hop + 1) * (1 if kv == "v" else 0.6)
            one: dict[str, Any] = {"condition": condition, "carrier": "memento", "hop": hop, "layer": str(layer)}
            one |= {"kv": kv, "head": "all", "probe": "linear", "target": "note-*", "unknown": 3.3, "valid": True}
            one |= {"n_train": 900, "n_test": 600, "n_clusters": 600, "chance": 0.1, "selectivity": 0.2, "p": 0.01}
            one |= {"accuracy": 0.4, "accuracy_low": 0.3, "accuracy_high": 0.5, "p_holm": float(bits < 0.2)}
            found.append(one | {"bits": bits, "bits_low": bits - 0.1, "bits_high": bits + 0.1})
    return found


def summary(verdict: str = "leak", name: str = "toy-open", **more: Any) -> dict[str, Any]:
    """The summary of an audit that came to some verdict."""
    leak, half = {
        "leak": (1.6, 0.08),
        "within the limit": (0.06, 0.03),
        "not enough data": (0.09, 0.2),
    }.get(verdict, (0.002, 0.06))
    sentence = {
        "leak": "Leak: attribute recovers 1.60 bits of note-* [1.52, 1.68] beyond the text, more than the 0.1 allowed",
        "not detected": (
            "Not detected by this suite: at most 0.1 bits a secret; a linear code of 0.1 bits at one place of the "
            "cache would have been seen in 8 of 10 runs"
        ),
        "within the limit": (
            "Within the limit: attribute found 0.06 bits of note-* [0.03, 0.09], within the 0.1 allowed; at most 0.1 "
            "by this suite; a linear code of 0.1 bits at one place of the cache would have been seen in 8 of 10 runs"
        ),
        "not enough data": "Not enough data to tell whether more than 0.1 bits a secret leak: about 9,000 would do",
        "invalid": "No conclusion: a control failed (sealed: attribute finds +0.412 bits where nothing can be)",
    }[verdict]
    defence = {"name": "none", "summary": "no defence: the cache as the model leaves it", "utility_unit": "accuracy"}
    defence |= {"accuracy": 0.97, "accuracy_low": 0.94, "accuracy_high": 0.99, "undefended_accuracy": 0.97}
    defence |= {"effect": 0.0, "effect_low": -0.01, "effect_high": 0.01, "extra_prefill_tokens": 0.0}
    defence |= {"prefill_ratio": 1.0, "latency_ratio": 1.0, "kv_ratio": 1.0}
    failures = ["sealed: attribute finds +0.412 bits where nothing can be"] if verdict == "invalid" else []
    return {
        "command": "audit",
        "valid": not failures,
        "failures": failures,
        "verdict": verdict,
        "exit_code": VERDICTS[verdict],
        "sentence": sentence,
        "max_leak_bits": 0.1,
        "ceiling_bits": None if failures else {"leak": 1.68, "not enough data": 0.29}.get(verdict, 0.1),
        "detectable_bits": 0.2 if verdict == "not enough data" else 0.1,
        "traces": 4000,
        "traces_needed": 9000 if verdict == "not enough data" else None,
        "model": name,
        "defence": defence,
        "secrets": [{"name": "note-*", "targets": 5, "unknown_bits": 16.6, "text_bits": 0.0}],
        "excluded": [{"trace": "t17", "reason": "its memento text contains the secret"}],
        "left_out": ["ranking of note-* was left out: it could be more than 1,000,000 things, too many to rank."],
        "threats": [{"name": name, "summary": told, "attacks": attacks} for name, told, attacks in THREATS],
        "results": results(leak, half),
        "sites": sites(),
        "unlike": [],
        **more,
    }


def run(name: str = "toy-open") -> dict[str, Any]:
    """The run.json beside it."""
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


def write_audit(folder: Path, found: dict[str, Any], ran: dict[str, Any]) -> Path:
    """The folder of an audit with its reports."""
    (folder / "summary.json").write_text(json.dumps(found))
    (folder / "run.json").write_text(json.dumps(ran))
    write_reports(folder)
    return folder


def errors(found: Any) -> list[str]:
    """What the published schema finds wrong with a summary."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(found)]


@cache
def toy() -> gt.Checkpoint:
    return gt.load("toy-open", device="cpu")


def exhibit(arm: Arm, samples: int = 300, task: Task | None = None) -> Exhibit:
    task = task or ledger_task(toy(), 3, samples)
    asked = [Asked(t.name, task.labels(n), task.exact[t.name]) for n, t in enumerate(task.targets)]
    return Exhibit(toy(), task, split(task.samples), arm, Settings(hops=(0,)), asked, {}, 0.05)


@dataclass(frozen=True)
class Noise64:
    """States of which no label can be read."""

    states: torch.Tensor

    def load(self, carrier: Carrier, layer: int, kind: str, heads: object = None) -> torch.Tensor:
        return self.states[:, None]


def blank(n: int, parts: int, shares: list[float]) -> tuple[Exhibit, torch.Tensor]:
    """An audit of pure noise, whose labels are as common as is said."""
    rng = np.random.default_rng(3)
    samples = tuple(Sample([], str(k), str(k), 0, (), (0,) * parts) for k in range(n))
    asked = [
        Asked(f"d-{k}", rng.choice(len(shares), n, p=shares), np.log(np.tile(shares, (n, 1)))) for k in range(parts)
    ]
    states = torch.from_numpy(rng.standard_normal((n, 64))).float()
    task = Task("marked", samples, ())
    at = Exhibit(toy(), task, split(samples), Restart(), Settings(), asked, {"sealed": Noise64(states)}, 0.05)  # type: ignore[dict-item]
    return at, states
