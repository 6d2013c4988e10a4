"""Every attack and every defence: described, run on a tiny audit, and well formed; a new one is a row here.

Then an attack and a defence of the user's own, which the package knows nothing of, through `audit`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import log2
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from helpers.audits import errors, toy

from ghosttrace.ablation.arms import Arm, Memento, Restart
from ghosttrace.auditing.attacks import ATTACKS, Attack, TextBaselineAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import DEFENCES, Defence, parse_defence
from ghosttrace.auditing.defended_caches import read_caches
from ghosttrace.auditing.evidence import Evidence, mean_estimate
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
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import ProbeSettings, Sweep, probe_targets, text_baseline_rows
from ghosttrace.results import open_run
from ghosttrace.runs.progress import no_progress
from ghosttrace.runs.records import Records


@dataclass(frozen=True)
class AttackCase:
    """What is expected of an attack on the bare cache of `toy-open`.

    Attributes:
        finds: whether it finds the digits that mementos hide.
        controls: conditions beside `open` under which it looks too.
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
DEFENCE_MATRIX = {  # the policy's mask_delimiters under which each means something
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
    """An audit of the hidden digits, one layer's values probed, ready for any attack."""
    settings = ProbeSettings(hops=(0,), layers=(3,), kv=("v",), mlp=False, describe=False)
    subject = make_subject(toy(), SecretSource(samples=400), ["hidden-*"])
    task, parts = subject.task, split(subject.task.samples)
    features = read_caches(toy(), task, settings, Memento(), Path(mkdtemp()), 16_384, no_progress)
    asked, plain = probe_targets(toy(), task, parts)
    records = Records(PROBE_RECORDS)
    for row in text_baseline_rows(task, asked, plain, parts):
        records.add(row)
    prompts, fpr = subject.prompts, 0.1
    at = AuditContext(
        toy(), task, parts, Memento(), settings, asked, features, records=records, prompts=prompts, fpr=fpr
    )
    Sweep(toy(), settings, parts, features, asked, secret_carrier(task.samples), at.device).run(records)
    return at


def test_the_matrices_have_a_row_for_each() -> None:
    assert ATTACK_MATRIX.keys() == KINDS.keys() and DEFENCE_MATRIX.keys() == DEFENCES.keys()


@pytest.mark.parametrize("name", KINDS)
def test_an_attack_is_described(name: str) -> None:
    attack = KINDS[name]()
    assert attack.name == name and attack.title and attack.summary.endswith(".") and attack.threat in THREATS
    described = attack.describe()
    assert described["threat"] == attack.threat.name and described["units"] == list(attack.units)
    assert attack == KINDS[name]() and repr(attack) == f"{type(attack).__name__}()"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_an_attack_runs_and_its_evidence_is_well_formed(name: str) -> None:
    at, attack, case = tiny_context(), KINDS[name](), ATTACK_MATRIX[name]
    early = replace(at, targets=[], features={}, records=Records(PROBE_RECORDS))
    attack.check(early)
    assert attack.skip_reason_for_all(early) is None and attack.attackable_secrets(early) == attack.secrets(early)
    found = attack.run(at)
    assert {one.attack for one in found} == {name} and {one.unit for one in found} == set(attack.units)
    open_condition = () if name == "text" else ("open",)
    assert {one.condition for one in found} == {*open_condition, *case.controls}
    assert {one.secret for one in found} == set(attack.secrets(at))
    assert any(one.gate for one in found) is attack.counts_bits
    assert sum(one.gate for one in found) == attack.n_gated(at)
    for one in found:
        assert one.from_single_site is attack.probes_single_site and one.n > 0
        assert one.found.low <= one.found.value <= one.found.high
        assert not one.gate or (one.condition, one.unit) == ("open", "bits")
    first = next(one for one in found if one.condition in ("open", "text"))
    assert (first.found.low > first.baseline) is case.finds


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_is_described_and_makes_an_arm(name: str) -> None:
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
    """Bits that the first token of the secret's block gives of its first part: an attack from a user's script."""

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
    """An attack that finds nothing, and whose finding decides."""

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
    """A user's own defence: `restart` under another name, with something to be said of it."""

    name = "sealed"
    summary = "retained tokens recomputed, by the user's own code"
    caveat = "This defence was written in a test."

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Restart()


def tiny_audit(out: Path | None = None, **more: object) -> AuditResult:
    """An audit of few samples at one site."""
    chosen = {"attacks": ["behavioural", FirstToken()], "defence": Sealed(), "max_leak_bits": 0.5} | more
    small = {"samples": 400, "hops": (0,), "layers": (3,), "kv": ("v",), "mlp": False, "utility_limit": 2}
    return audit("toy-open", out=out, **small, **chosen)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_attack_and_a_defence_of_your_own_need_no_change_of_the_package(tmp_path: Path) -> None:
    steps = list[str]()
    result = tiny_audit(tmp_path / "run", progress=lambda what, done, total: steps.append(what))
    assert (result.verdict.verdict, result.exit_code) == ("leak", 10) and "first-token" in result.verdict.sentence
    (row,) = result.results[result.results["attack"] == "first-token"].to_dict("records")
    assert (row["state"], row["threat"], row["defence"]) == ("leak", "relative", "sealed")
    assert row["estimate"] == pytest.approx(log2(10)) and set(result.results["attack"]) == {
        *("behavioural", "first-token", "text")
    }
    assert "first-token of hidden-* was left out: it reads notes alone." in result.summary["left_out"]
    assert errors(dict(result.summary)) == [] and "attack first-token" in steps
    sarif = (tmp_path / "run" / "audit.sarif").read_text()
    for text in (result.page(), (tmp_path / "run" / "card.md").read_text().replace("\\", "")):
        for said in ("First token", RELATIVE.summary.split("'")[0], "Talk to them.", Sealed.caveat):
            assert said in text
    assert FirstToken.summary in sarif and FirstToken.title in sarif
    again = open_run(tmp_path / "run")
    assert again == result and isinstance(again, AuditResult) and again.verdict == result.verdict
    assert len(again.sites) == len(result.summary["sites"]) and len(again.samples) == len(result.samples) > 0


def test_attacks_need_names_of_their_own() -> None:
    with pytest.raises(UserError, match="two attacks are called 'first-token'"):
        tiny_audit(attacks=[FirstToken(), FirstToken(2)])
    with pytest.raises(
        UserError, match=r"--attacks needs one that counts bits .*: attribute, behavioural or collision"
    ):
        tiny_audit(attacks=["membership"])
