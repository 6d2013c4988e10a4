"""Attacks of the audit on leaking and on sealed caches."""

from dataclasses import dataclass, replace
from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from helpers.audits import SITE, context, noise_context, toy

import ghosttrace as gt
from ghosttrace.ablation.arms import Arm, Memento, Noise, Restart
from ghosttrace.ablation.arms.drop_delimiters import DropDelimiters
from ghosttrace.auditing.attacks.attribute import AttributeAttack
from ghosttrace.auditing.attacks.behavioural import MAX_CALIBRATION_TRACES, calibration_split, score_answers
from ghosttrace.auditing.attacks.collision import CollisionAttack, distances, find_collision_cases
from ghosttrace.auditing.attacks.tenant import TenantAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defended_caches import run_session
from ghosttrace.auditing.prompts import parse_prompt
from ghosttrace.bench.ledger import ledger_prompts, ledger_task
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.errors import UserError
from ghosttrace.model.attention import attending
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import PROBE_RECORDS, ProbeTarget
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Sweep
from ghosttrace.runs.records import Records


def test_tenant_attack_finds_nothing_from_common_labels() -> None:
    audit_context, _ = noise_context(1400, 1, [0.9, 0.1])
    audit_context = replace(audit_context, features={"open": audit_context.features["sealed"]})
    assert abs(TenantAttack().finding(audit_context, "d-*", SITE).estimate.value) < 0.02


KEYS, VALUES = (3, "k"), (3, "v")


@dataclass(frozen=True)
class PaddedBit:
    """Random states of four layers; at hop 0 a bit is the product of two signs, one at each of two sites.

    A site is a layer and keys or values. If both are the same, the signs stand in different dimensions of it.
    """

    labels: np.ndarray
    sites: tuple[tuple[int, str], ...]

    def load(self, carrier: Carrier, layer: int, kind: str, heads: object = None) -> torch.Tensor:
        rng = np.random.default_rng([layer, carrier.hop + 1, kind == "v"])
        states = rng.normal(size=(len(self.labels), 1, 4))
        key = np.random.default_rng(5).choice([-1, 1], len(self.labels))
        for dimension, (site, sign) in enumerate(zip(self.sites, (key, key * (2 * self.labels - 1)), strict=False)):
            if site == (layer, kind) and carrier.hop == 0:
                states[:, 0, dimension] = 3 * sign + 0.5 * states[:, 0, dimension]
        return torch.from_numpy(states).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ((KEYS, KEYS), ("3", "k")),
        (((1, "v"), (1, "v")), ("1", "v")),
        ((KEYS, VALUES), ("3", "kv")),
        (((1, "k"), (3, "v")), ("1+3", "kv")),
    ],
)
def test_pad_that_no_linear_probe_sees_is_found(sites: tuple[tuple[int, str], ...], found: tuple[str, str]) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 1000)
    samples = tuple(Sample([], str(k), str(k), 0, (), (int(label),)) for k, label in enumerate(labels))
    targets = [ProbeTarget("bit", labels, np.full((1000, 2), -log(2)))]
    caches: Any = {"open": PaddedBit(labels, sites), "sealed": PaddedBit(labels, ())}
    settings = ProbeSettings(hops=(0,), layers=(1, 3), describe=False)
    records, own, task = Records(PROBE_RECORDS), Carrier("secret"), Task("pad", samples, (Target("bit", ("0", "1")),))
    parts = split(samples)
    Sweep(toy(), settings, parts, caches, targets, own).run(records)
    audit_context = AuditContext(toy(), task, parts, Memento(), settings, targets, caches, records=records)
    rows = {item.condition: item for item in AttributeAttack().run(audit_context) if item.unit == "bits"}
    site = rows["open"].site
    assert site.probe == "mlp" and rows["open"].estimate.low > 0.3 and not rows["open"].fell_back
    # A wider site that includes both signs may win on validation.
    assert (site.layer, site.kv) == found or (set(found[0]) <= set(site.layer) and site.kv == "kv")
    assert rows["sealed"].estimate.value < 0.05
    linear = [row for row in audit_context.sweep_rows if row["probe"] == "linear" and row["condition"] == "open"]
    assert max(row["validation_bits"] for row in linear) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "distinguishable"), [(Memento(), True), (Restart(), False)])
def test_collision_distinguishes_blocks_only_in_an_open_cache(arm: Arm, distinguishable: bool) -> None:
    findings = {(item.condition, item.unit): item for item in CollisionAttack().run(context(arm))}
    assert findings["open", "bits"].estimate.value == pytest.approx(2.0 if distinguishable else 0.0, abs=0.01)
    assert findings["open", "rate"].estimate.value == (1.0 if distinguishable else 0.0)
    assert findings["sealed", "bits"].estimate.value == 0 and findings["open", "bits"].gate


@pytest.mark.slow
def test_half_precision_does_not_hide_the_block() -> None:
    """Collision allows for rounding: in bfloat16 it finds the block in an open cache and not in a sealed one."""
    half = gt.load("toy-open", device="cpu", dtype="bfloat16")
    audit_context = replace(context(Memento()), checkpoint=half)
    findings = {(item.condition, item.unit): item.estimate.value for item in CollisionAttack().run(audit_context)}
    assert findings["open", "rate"] >= 0.95 and findings["open", "bits"] > 1.9
    assert findings["sealed", "rate"] <= 0.4 and findings["sealed", "bits"] < 0.05


def test_kept_delimiters_are_compared_too() -> None:
    policy = replace(toy().policy, mask_delimiters=False)
    keeping = replace(context(Memento()), checkpoint=replace(toy(), policy=policy))
    for audit_context, more in ((keeping, 2), (replace(keeping, arm=DropDelimiters()), 0)):
        case = find_collision_cases(audit_context, audit_context.split.test)[0]
        pair = gt.find_blocks(audit_context.task.samples[case.row].ids, toy().markup)[1]
        memento = set(range(pair.memento_start, pair.memento_end + 1))
        assert set(case.indices.tolist()) == memento | ({pair.start, pair.end} if more else set())
    cases = find_collision_cases(keeping, keeping.split.test)[:8]
    block_ends = [replace(case, indices=case.indices[1:2]) for case in cases]  # <|block_end|> has seen its whole block
    assert (distances(keeping, Memento(), block_ends)[:, 1:] > 0).all() and (
        distances(keeping, Restart(), cases) == 0
    ).all()


def test_candidates_have_the_same_retained_text() -> None:
    audit_context = context(Memento())
    for case in find_collision_cases(audit_context, audit_context.split.test)[:10]:
        assert len({tuple(ids) for ids in case.ids}) == len(case.ids) == 4
        sample = audit_context.task.samples[case.row]
        assert case.ids[0] == list(sample.ids[: len(case.ids[0])])
        outside = {
            tuple(token for k, token in enumerate(ids) if not _inside(audit_context, case.row, k)) for ids in case.ids
        }
        assert len(outside) == 1


def _inside(audit_context: AuditContext, row: int, index: int) -> bool:
    pair = gt.find_blocks(audit_context.task.samples[row].ids, toy().markup)[1]
    return pair.start < index < pair.end


@pytest.mark.slow
def test_collision_reproduces_the_defence_but_not_its_noise() -> None:
    """Noise as large as the states hides the block; small noise does not."""
    loud, quiet = (CollisionAttack().run(context(Noise(size=size)))[0].estimate.value for size in (30.0, 0.01))
    assert loud < 0.3 and quiet == pytest.approx(2.0, abs=0.01)


def test_answers_with_a_shared_first_token_are_scored_completely() -> None:
    """Scores equal those of sessions that read each answer separately, and the session is unchanged."""
    audit_context, rows = context(Memento()), range(3)
    ids = [list(audit_context.task.samples[row].ids[:70]) for row in rows]
    spelling = toy().tokenizer.encode
    alike = [tuple(spelling(text, add_special_tokens=False)) for text in ("12", "1", "130", "4")]
    with attending(toy().model):
        session = run_session(toy(), Memento(), ids, [(0, row) for row in rows])
        before, held = session.logits.clone(), session.cache.slots.length.copy()
        likely, _ = score_answers(session, alike)
        assert torch.equal(session.logits, before) and (session.cache.slots.length == held).all()
        for row, number in product(rows, range(4)):
            single = run_session(toy(), Memento(), [ids[row]], [(0, row)])
            steps = [single.logits[0], *single.advance([alike[number]], all_logits=True)[0][:-1]]
            log_p = torch.stack([step.log_softmax(-1) for step in steps])
            assert likely[row, number] == pytest.approx(log_p[range(len(steps)), alike[number]].sum().item(), abs=1e-4)
        distinct = [tuple(spelling(text, add_special_tokens=False)) for text in ("12", "31", "0")]
        first, _ = score_answers(session, distinct)
        expected = before.log_softmax(-1)[:, [answer[0] for answer in distinct]]
        assert first == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("others", [[], [(0,)]])
def test_verbatim_match_needs_every_greedy_token(others: list[tuple[int, ...]]) -> None:
    audit_context = context(Memento())
    ids = [list(audit_context.task.samples[row].ids[:70]) for row in range(2)]
    with attending(toy().model):
        session = run_session(toy(), Memento(), ids, [(0, 0), (0, 1)])
        greedy = []
        for row in range(2):
            single, tokens = run_session(toy(), Memento(), [ids[row]], [(0, row)]), []
            for _ in range(3):
                tokens.append(int(single.logits[0].argmax()))
                single.advance([tokens[-1:]])
            greedy.append(tuple(tokens))
        right, wrong = greedy[0], (*greedy[0][:2], (greedy[0][2] + 1) % 30)
        alike = [(right[0], 0)] * len(others)  # gives the answers a shared first token
        for answers, expected in (([right, *alike, (9,)], 0), ([wrong, *alike, (9,)], -1)):
            _, answered = score_answers(session, answers)
            assert answered[0] == expected


def test_calibration_traces_come_from_all_clusters() -> None:
    cluster = np.repeat(np.arange(28), 200)
    train = np.arange(len(cluster))
    few = calibration_split(Split(train, train[:0], train[:0], cluster, ""), 0).train
    assert len(few) == MAX_CALIBRATION_TRACES == len(set(few)) and set(np.bincount(cluster[few])) == {17, 18}
    assert (np.diff(few) > 0).all()
    little = Split(train[:9], train[:0], train[:0], cluster, "")
    assert calibration_split(little, 0).train.tolist() == list(range(9))


def test_prompts_are_parsed() -> None:
    targets = ledger_task(toy(), 20, level=3).targets
    names = [target.name for target in targets]
    prompt = parse_prompt(ledger_prompts(2)["hidden-*"], targets, names, toy().tokenizer)
    assert prompt.targets == (None, "hidden-0", "hidden-1")
    assert toy().tokenizer.convert_ids_to_tokens(list(prompt.token_prefixes[0]))[0] == "<|block_start|>"
    assert len(prompt.answer_tokens[0]) == 10
    fewer = parse_prompt(ledger_prompts(2)["hidden-*"], targets, ["hidden-1"], toy().tokenizer)
    assert fewer.targets == (None, None, "hidden-1") and fewer.answer_tokens == prompt.answer_tokens
    for wrong in ("what was it?", "{digit-9}"):
        with pytest.raises(UserError, match="braces"):
            parse_prompt(wrong, targets, names, toy().tokenizer)
    with pytest.raises(UserError, match="braces"):
        parse_prompt("{note-0}", targets, ["note-1"], toy().tokenizer)
