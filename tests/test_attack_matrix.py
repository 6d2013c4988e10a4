"""Test matrix of attacks and defences: descriptions, and evidence of a tiny audit. A new one is a row here.

User-defined attacks and defences run through `audit`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import log2
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from helpers.audits import schema_errors, toy

from ghosttrace.ablation.arms import Arm, Memento, Restart
from ghosttrace.auditing.attacks import ATTACKS, Attack, TextBaselineAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import DEFENCES, Defence, parse_defence
from ghosttrace.auditing.defended_caches import read_caches
from ghosttrace.auditing.evidence import GATED_UNITS, Evidence, mean_estimate
from ghosttrace.auditing.result import AuditResult
from ghosttrace.auditing.run import audit
from ghosttrace.auditing.subject import SecretSource, make_subject
from ghosttrace.auditing.threats import THREATS, Threat
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.evidence import PROBE_RECORDS
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import Sweep, probe_targets, text_baseline_rows
from ghosttrace.results import open_run
from ghosttrace.runs.progress import no_progress
from ghosttrace.runs.records import Records


@dataclass(frozen=True)
class AttackCase:
    """Expected result of an attack on the undefended cache of `toy-open`.

    Attributes:
        finds: Whether it finds the digits hidden by mementos.
        controls: Conditions other than `open` under which it runs.
    """

    finds: bool
    controls: tuple[str, ...] = ("sealed",)


ATTACK_MATRIX = {
    "attribute": AttackCase(True, ("sealed", "shuffled", "causal", "unerased")),
    "tenant": AttackCase(True, ()),
    "ranking": AttackCase(True),
    "membership": AttackCase(True),
    "behavioural": AttackCase(True),
    "collision": AttackCase(True),
    "text": AttackCase(False, ("text",)),
}
DEFENCE_MATRIX = {  # the mask_delimiters setting to which each defence applies
    "none": True,
    "restart": True,
    "restart-renumbered": True,
    "partial": True,
    "scrub": True,
    "drop-delimiters": False,
    "leace": True,
    "random-direction": True,
    "noise": True,
}
KINDS: Mapping[str, type[Attack]] = {**ATTACKS, "text": TextBaselineAttack}


@cache
def tiny_context() -> AuditContext:
    """Return the context of an audit of the hidden digits, with probes of the values of one layer."""
    settings = ProbeSettings(hops=(0,), layers=(3,), kv=("v",), mlp=False, describe=False)
    subject = make_subject(toy(), SecretSource(samples=400), ["hidden-*"])
    task, parts = subject.task, split(subject.task.samples)
    features = read_caches(toy(), task, settings, Memento(), Path(mkdtemp()), 16_384, no_progress)
    targets, text_targets = probe_targets(toy(), task, parts)
    records = Records(PROBE_RECORDS)
    for row in text_baseline_rows(task, targets, text_targets, parts):
        records.add(row)
    prompts, fpr = subject.prompts, 0.1
    context = AuditContext(
        toy(), task, parts, Memento(), settings, targets, features, records=records, prompts=prompts, fpr=fpr
    )
    Sweep(toy(), settings, parts, features, targets, secret_carrier(task.samples)).run(records)
    return context


def test_matrices_list_every_attack_and_defence() -> None:
    assert ATTACK_MATRIX.keys() == KINDS.keys() and DEFENCE_MATRIX.keys() == DEFENCES.keys()


@pytest.mark.parametrize("name", KINDS)
def test_attack_description(name: str) -> None:
    attack = KINDS[name]()
    assert attack.name == name and attack.title and attack.summary.endswith(".") and attack.threat in THREATS
    described = attack.describe()
    assert described["threat"] == attack.threat.name and described["units"] == list(attack.units)
    assert attack == KINDS[name]() and repr(attack) == f"{type(attack).__name__}()"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_attack_gives_valid_evidence(name: str) -> None:
    context, attack, case = tiny_context(), KINDS[name](), ATTACK_MATRIX[name]
    early = replace(context, targets=[], features={}, records=Records(PROBE_RECORDS))
    attack.check(early)
    assert attack.skip_reason_for_all(early) is None and attack.attackable_secrets(early) == attack.secrets(early)
    evidence = attack.run(context)
    assert {item.attack for item in evidence} == {name} and {item.unit for item in evidence} == set(attack.units)
    open_condition = () if name == "text" else ("open",)
    assert {item.condition for item in evidence} == {*open_condition, *case.controls}
    assert {item.secret for item in evidence} == set(attack.secrets(context))
    assert any(item.gate for item in evidence) is attack.counts_bits
    assert sum(item.gate for item in evidence) == attack.n_gated(context)
    for item in evidence:
        assert item.from_single_site is attack.probes_single_site and item.n > 0
        assert item.estimate.low <= item.estimate.value <= item.estimate.high
        assert not item.gate or (item.condition == "open" and item.unit in GATED_UNITS)
    first = next(item for item in evidence if item.condition in ("open", "text"))
    assert (first.estimate.low > first.baseline) is case.finds


@pytest.mark.parametrize("name", DEFENCES)
def test_defence_description_and_arm(name: str) -> None:
    policy = Policy(mask_delimiters=DEFENCE_MATRIX[name])
    checkpoint, defence = replace(toy(), policy=policy), parse_defence(name)
    assert defence.name == name and defence.summary and parse_defence(defence.spec) == defence
    assert defence.caveat == "" or defence.caveat.endswith(".")
    defence.check(checkpoint)
    arm = defence.arm(checkpoint)
    assert isinstance(arm, Arm) and arm.adapt_policy(policy).keep_last_n_blocks == 0
    fields = asdict(defence)
    assert bool(fields) <= bool(defence.usage)


RELATIVE = Threat("relative", "knows the model's owner", "Talk to them.")


@dataclass(frozen=True)
class FirstToken(Attack):
    """Attack that predicts the first part of a secret from the first token of its block."""

    name = "first-token"
    title = "First token"
    summary = "Reads the first note out of the block itself; a lookup, to show how an attack is written."
    threat = RELATIVE
    counts_bits = True
    reads: int = 1

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        return None if secret == "note-*" else "it reads notes alone"

    def run(self, context: AuditContext) -> list[Evidence]:
        rows = context.labelled_rows("note-*", context.split.test)
        samples, markup = context.task.samples, context.checkpoint.markup
        digits = context.checkpoint.tokenizer.convert_tokens_to_ids(list("0123456789"))
        first = [samples[row].ids[find_blocks(samples[row].ids, markup)[samples[row].block].start + 1] for row in rows]
        right = np.array([digits.index(token) for token in first]) == context.parts("note-*")[0].labels[rows]
        cluster = context.split.cluster[rows]
        estimate = mean_estimate(np.where(right, log2(10), 0.0), cluster, context.alpha, context.unknown_bits("note-*"))
        return [self.evidence("note-*", "open", "bits", estimate, len(rows), gate=True, note="by a lookup")]


@dataclass(frozen=True)
class Nothing(Attack):
    """Attack with a gated finding of zero bits."""

    name = "nothing"
    title = "Nothing at all"
    summary = "Guesses."
    threat = RELATIVE
    counts_bits = True

    def run(self, context: AuditContext) -> list[Evidence]:
        rows = context.split.test
        estimate = mean_estimate(np.zeros(len(rows)), context.split.cluster[rows], context.alpha, 0.5)
        return [self.evidence(secret, "open", "bits", estimate, len(rows), gate=True) for secret in context.secrets]


@dataclass(frozen=True)
class Sealed(Defence):
    """User-defined defence: `restart` under another name, with a caveat."""

    name = "sealed"
    summary = "retained tokens recomputed, by the user's own code"
    caveat = "This defence was written in a test."

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Restart()


def tiny_audit(out: Path | None = None, **more: object) -> AuditResult:
    """Run an audit of few samples at one site."""
    chosen = {"attacks": ["behavioural", FirstToken()], "defence": Sealed(), "max_leak_bits": 0.5} | more
    small = {"samples": 400, "hops": (0,), "layers": (3,), "kv": ("v",), "mlp": False, "utility_limit": 2}
    return audit("toy-open", out=out, **small, **chosen)  # type: ignore[arg-type]


@pytest.mark.slow
def test_user_defined_attack_and_defence_run_in_audit(tmp_path: Path) -> None:
    steps = list[str]()
    result = tiny_audit(tmp_path / "run", progress=lambda stage, done, total: steps.append(stage))
    assert (result.verdict.verdict, result.exit_code) == ("leak", 10) and "first-token" in result.verdict.sentence
    (row,) = result.results[result.results["attack"] == "first-token"].to_dict("records")
    assert (row["state"], row["threat"], row["defence"]) == ("leak", "relative", "sealed")
    assert row["estimate"] == pytest.approx(log2(10)) and set(result.results["attack"]) == {
        *("behavioural", "first-token", "text")
    }
    assert "first-token of hidden-* was skipped: it reads notes alone." in result.summary["left_out"]
    assert schema_errors(dict(result.summary)) == [] and "attack first-token" in steps
    sarif = (tmp_path / "run" / "audit.sarif").read_text()
    for text in (result.page(), (tmp_path / "run" / "card.md").read_text().replace("\\", "")):
        for phrase in ("First token", RELATIVE.summary.split("'")[0], "Talk to them.", Sealed.caveat):
            assert phrase in text
    assert FirstToken.summary in sarif and FirstToken.title in sarif
    reopened = open_run(tmp_path / "run")
    assert reopened == result and isinstance(reopened, AuditResult) and reopened.verdict == result.verdict
    assert len(reopened.sites) == len(result.summary["sites"]) and len(reopened.samples) == len(result.samples) > 0


def test_attacks_with_equal_names_are_refused() -> None:
    with pytest.raises(UserError, match="two attacks are called 'first-token'"):
        tiny_audit(attacks=[FirstToken(), FirstToken(2)])
    with pytest.raises(
        UserError, match=r"--attacks needs an attack that counts bits .*: add attribute, behavioural or collision"
    ):
        tiny_audit(attacks=["membership"])
