"""The audit: figures against hand computations, attacks on caches that leak and that cannot, the gate."""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import log, log2
from pathlib import Path

import numpy as np
import pytest
import torch
from audits import errors
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ghosttrace as gt
from ghosttrace import cli
from ghosttrace.audit.attacks import attribute, collision, parse, tenant
from ghosttrace.audit.attacks.collision import cases_of, distances
from ghosttrace.audit.attacks.membership import Claims, auc, epsilon, membership, rates, threshold
from ghosttrace.audit.attacks.ranking import exposures
from ghosttrace.audit.detect import detectable, honesty, inject, trials
from ghosttrace.audit.evidence import Estimate, Evidence, Told, fell_back, mean_of, one_each
from ghosttrace.audit.exhibit import Exhibit
from ghosttrace.audit.gate import judge
from ghosttrace.audit.marked import marked_task, read_marks
from ghosttrace.channel import Arm, Memento, Noise, Restart
from ghosttrace.channel.drop_delimiters import DropDelimiters
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.probe.carriers import Carrier
from ghosttrace.probe.cells import linear_scores
from ghosttrace.probe.evidence import CELLS, Asked
from ghosttrace.probe.ledger import ledger_prompts, ledger_task
from ghosttrace.probe.split import Split, split
from ghosttrace.probe.sweep import Settings, Site, Sweep
from ghosttrace.probe.task import Sample, Task
from ghosttrace.records import Records
from ghosttrace.report.audit import unlike_bases
from ghosttrace.report.audit_page import write_reports
from ghosttrace.stats import unseen


def test_exposure_by_hand() -> None:
    """Two parts of three classes: nine candidates, ranked by the sum of their logarithms."""
    rng = np.random.default_rng(0)
    first, second = (np.log(rng.dirichlet(np.ones(3), 5)) for _ in range(2))
    labels = [rng.integers(0, 3, 5), rng.integers(0, 3, 5)]
    for row, found in enumerate(exposures([first, second], labels)):
        scores = {(a, b): first[row, a] + second[row, b] for a, b in product(range(3), repeat=2)}
        own = scores[labels[0][row], labels[1][row]]
        rank = 1 + sum(score > own for score in scores.values())
        assert found == pytest.approx(log2(9) - log2(rank))


def test_exposure_of_ties_is_the_mean_over_their_orders() -> None:
    flat = np.full((1, 10), -log(10))
    (found,) = exposures([flat, flat], [np.array([3]), np.array([7])])
    assert found == pytest.approx(log2(100) - np.mean([log2(rank) for rank in range(1, 101)]))
    half = np.log(np.array([[0.3, 0.3, 0.2, 0.2]]))
    (found,) = exposures([half], [np.array([2])])
    assert found == pytest.approx(2 - (log2(3) + log2(4)) / 2)


def test_auc_and_rates_by_hand() -> None:
    claims = Claims(np.array([3.0, 1.0, 2.0, 0.0]), np.array([0.0, -1.0, 2.0]))
    pairs = [(p > a) + 0.5 * (p == a) for p, a in product(claims.present, claims.absent)]
    assert auc(claims).value == pytest.approx(np.mean(pairs))
    right, false = rates(claims, 0.5)
    assert (right.value, false.value) == (0.75, pytest.approx(1 / 3))
    exact = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert (right.low, right.high) == (exact.low, exact.high)


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=200), st.sampled_from([0.05, 0.1, 0.5]))
def test_a_threshold_lets_no_more_false_claims_through(scores: list[float], rate: float) -> None:
    absent = np.array(scores)
    assert (absent > threshold(absent, rate)).mean() <= rate


def test_epsilon_by_hand() -> None:
    """All of 300 right, none of 300 wrong: Clopper and Pearson's ends have a closed form there."""
    sure = Claims(np.full(300, 1.0), np.full(300, 0.0))
    bound, ceiling = epsilon(sure, sure)
    low, high = 0.025 ** (1 / 300), 1 - 0.025 ** (1 / 300)
    assert ceiling == pytest.approx(log(low / high))
    assert bound.value == pytest.approx(ceiling)
    none, _ = epsilon(Claims(np.zeros(300), np.zeros(300)), Claims(np.zeros(300), np.zeros(300)))
    assert none.value == 0


def test_auc_says_no() -> None:
    """Of 200 draws without any difference, about 5 in 100 intervals miss a half."""
    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = auc(Claims(rng.normal(size=80), rng.normal(size=80)))
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 20


def clustered(bases: int, copies: int, labels: np.ndarray, seed: int) -> tuple[Exhibit, list[np.ndarray]]:
    """An audit judged on copies of some base traces, and what a probe of nothing says of them: alike of one base."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(bases), copies)
    every = np.arange(len(cluster))
    samples = tuple(Sample([], str(one), "", 0, (), (0,)) for one in cluster)
    text = np.full((len(every), 10), -log(10))
    said = np.log(rng.dirichlet(np.ones(10), bases))[cluster]
    asked = [Asked("class", labels[cluster], text)]
    parts = Split(every, every, every, cluster, "")
    return Exhibit(toy(), Task("marked", samples, ()), parts, Restart(), Settings(seed=seed), asked, {}, 0.05), [said]


SITE = Site(Carrier("memento"), (0,), "v")


def test_the_interval_of_an_auc_knows_which_traces_are_copies() -> None:
    """Of 200 audits without a leak, 30 bases of 30 traces each with one label, about 5 in 100 miss a half."""
    missed = 0
    for seed in range(200):
        at, said = clustered(30, 30, np.random.default_rng([seed, 1]).integers(0, 10, 30), seed)
        found = membership(at, "marked", SITE, {"open": said})[0].found
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 16


def test_an_auc_without_clusters_is_de_longs() -> None:
    rng = np.random.default_rng(0)
    claims = Claims(rng.normal(0.5, size=60), rng.normal(size=80))
    above = np.sign(claims.present[:, None] - claims.absent[None]) / 2 + 0.5
    error = (above.mean(1).var(ddof=1) / 60 + above.mean(0).var(ddof=1) / 80) ** 0.5
    found = auc(claims)
    assert (found.high - found.value) / stats.t.ppf(0.975, 139) == pytest.approx(error, rel=0.02)
    sure = auc(Claims(np.ones(30), np.zeros(30)))
    assert (sure.value, sure.high) == (1.0, 1.0) and sure.low == pytest.approx(1 - unseen(60))


def test_rates_are_of_one_trace_a_cluster() -> None:
    cluster = np.repeat([4, 2, 9], [1, 50, 3])
    drawn = one_each(np.arange(54), cluster, 0)
    assert sorted(cluster[drawn]) == [2, 4, 9] and (np.diff(drawn) > 0).all()
    assert len({tuple(one_each(np.arange(54), cluster, seed)) for seed in range(40)}) > 20
    at, said = clustered(300, 4, np.random.default_rng(1).integers(0, 10, 300), 0)
    rows = membership(at, "marked", SITE, {"open": said})
    assert [(row.unit, row.n) for row in rows] == [("AUC", 1200), ("TPR", 300), ("epsilon", 300)]
    assert rows[-1].found.high == np.inf and "ceiling" in rows[-1].note


def test_membership_says_what_it_cannot_do() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 30)
    at, said = clustered(30, 30, labels, 0)
    (row,) = membership(at, "marked", SITE, {"open": said})
    assert row.note.startswith("15 independent false claims on validation cannot set a threshold for a rate of 0.01")
    assert "give 200 independent traces" in row.note
    one, said = clustered(1, 30, labels[:1], 0)
    assert membership(one, "marked", SITE, {"open": said}) == []


def test_a_stray_cache_tells_nothing_by_what_is_common() -> None:
    at, _ = blank(1400, 1, [0.9, 0.1])
    at = replace(at, features={"open": at.features["sealed"]})
    assert abs(tenant(at, "d-*", SITE).found.value) < 0.02


def test_utility_is_measured_on_different_base_traces() -> None:
    samples = [Sample([k], base, "", 0, (), ()) for k, base in enumerate("aaabbc")]
    assert [one.ids[0] for one in unlike_bases(samples)] == [0, 3, 5, 1, 4, 2]


def test_a_mean_allows_for_what_went_unseen() -> None:
    nothing = mean_of(np.zeros(100), np.arange(100), 0.05, 10.0)
    assert (nothing.value, nothing.low, nothing.p) == (0, 0, 1)
    assert nothing.high == pytest.approx(10 * unseen(100))
    whole = mean_of(np.tile([1.0, 2.0, 3.0], 40), np.arange(120), 0.05, 10.0)
    reach = stats.t.ppf(0.975, 119) * np.tile([1.0, 2.0, 3.0], 40).std(ddof=1) / 120**0.5
    assert (whole.low, whole.high) == (pytest.approx(2 - reach), pytest.approx(2 + reach))
    doubled = mean_of(np.repeat(np.tile([1.0, 2.0, 3.0], 40), 2), np.repeat(np.arange(120), 2), 0.05, 10.0)
    assert doubled.high == pytest.approx(whole.high)  # copies of a trace say nothing more


def test_agreement_of_few_is_no_proof_of_a_leak() -> None:
    """What went unseen may hold nothing as well as all, and four clusters say nothing at all."""
    sure = mean_of(np.full(5, 2.0), np.arange(5), 0.05, 2.0)
    assert sure.low == pytest.approx(2.0 - 2.0 * unseen(5)) and sure.high == 2.0
    few = mean_of(np.full(4, 0.5), np.arange(4), 0.05, 2.0)
    assert few.low == -np.inf
    row = Evidence("collision", "block", "open", "bits", few, 4, gate=True)
    assert judge([row], [], 0.1, 0.1, 1000).exit_code == 11


def test_noise_of_one_part_does_not_hide_that_the_others_say_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=900) * 0.02
    plain, silent = (mean_of(noise, np.arange(900), 0.01, 16.6, silent) for silent in (False, True))
    assert plain.high < 0.01
    assert silent.high == pytest.approx(silent.value + (16.6 - silent.value) * unseen(900, 0.005))
    rows, text = np.arange(3), np.full(3, -1.0)
    told, silence = Told(rows, text + 0.1, text), Told(rows, text.copy(), text)
    assert fell_back([told, silence]) and not fell_back([told])


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_an_injected_leak_holds_what_it_says(bits: float, constant: bool) -> None:
    share, classes = honesty(bits, 10), 10
    joint = np.full((classes, classes), (1 - share) / classes / classes) + np.eye(classes) * share / classes
    assert (joint * np.log2(joint * classes**2)).sum() == pytest.approx(bits)
    labels = np.random.default_rng(0).integers(0, 10, 6000)
    flat = Asked("digit", labels, np.full((6000, 10), -log(10)))
    noise = torch.randn(6000, 64, generator=torch.Generator().manual_seed(0))
    if constant:  # like the first layer of a delimiter
        noise = noise[:1].expand(6000, -1)
    leaked = inject(noise, [flat], [bits], np.random.default_rng(1))
    parts = split([Sample([], str(k), str(k), 0, (), ()) for k in range(6000)])
    ((scores,),) = linear_scores(leaked[None], [flat], parts, torch.device("cpu"))
    found = mean_of(scores.log2p - scores.text_log2p, np.arange(len(scores.log2p)), 0.05, 10.0)
    assert found.low < bits and found.value > 0.5 * bits


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


def test_common_labels_are_no_leak_that_was_seen() -> None:
    at, states = blank(1400, 1, [0.9, 0.1])
    assert sum(trials(at, at.asked, states, [1e-6])) <= 1
    at, states = blank(2000, 1, [0.55, *[0.05] * 9])
    assert sum(trials(at, at.asked, states, [1.0])) >= 8


def test_a_leak_counts_as_seen_only_if_it_is_seen_spread_over_all_parts_too() -> None:
    at, states = blank(1400, 5, [0.1] * 10)
    alone, evenly = (sum(trials(at, at.asked, states, bits)) for bits in ([0.5, 0, 0, 0, 0], [0.1] * 5))
    assert alone >= 8 > evenly
    least = detectable(at, "d-*", SITE, 0.5)
    assert least is None or least > 0.5


@dataclass(frozen=True)
class Xor:
    """States of four layers that hold a bit in the signs of two numbers of one layer's values, which no linear
    probe can see; nothing elsewhere."""

    labels: np.ndarray
    layer: int

    def load(self, carrier: Carrier, layer: int, kind: str, heads: object = None) -> torch.Tensor:
        rng = np.random.default_rng([layer, carrier.hop + 1, kind == "v"])
        states = rng.normal(size=(len(self.labels), 1, 4))
        if (layer, kind, carrier.hop) == (self.layer, "v", 0):
            signs = rng.choice([-1, 1], len(self.labels))
            states[:, 0, :2] = np.stack([3 * signs, 3 * signs * (2 * self.labels - 1)], axis=1) + 0.5 * states[:, 0, :2]
        return torch.from_numpy(states).float()


@pytest.mark.parametrize("layer", [1, 3])
def test_where_no_linear_probe_sees_anything_the_mlp_looks_at_every_layer(layer: int) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 1000)
    samples = tuple(Sample([], str(k), str(k), 0, (), (int(label),)) for k, label in enumerate(labels))
    asked = [Asked("bit", labels, np.full((1000, 2), -log(2)))]
    caches = {"open": Xor(labels, layer), "sealed": Xor(labels, 9)}
    settings = Settings(hops=(0,), describe=False)
    records = Records(CELLS)
    own = Carrier("secret")
    at = Exhibit(toy(), Task("xor", samples, ()), split(samples), Memento(), settings, asked, caches, 0.05)  # type: ignore[arg-type]
    Sweep(toy(), settings, at.split, at.features, asked, own, torch.device("cpu")).run(records)
    rows = {(one.condition): one for one in attribute(at, records)}
    assert (rows["open"].site.probe, rows["open"].site.layer) == ("mlp", str(layer)) and rows["open"].found.low > 0.3
    assert rows["sealed"].found.value < 0.05
    (best,) = Sweep(toy(), settings, at.split, at.features, asked, own, torch.device("cpu")).best(records)
    assert (best.layers, best.kv) == ((3,), "v")


def evidence(low: float, value: float, high: float, gate: bool = True) -> Evidence:
    return Evidence("attribute", "note-*", "open", "bits", Estimate(value, low, high, 0.5), 100, gate=gate)


@pytest.mark.parametrize(
    "rows, failures, detectable, verdict, code",
    [
        ([evidence(0.2, 0.3, 0.4)], [], 0.05, "leak", 10),
        ([evidence(0.2, 0.3, 0.4, gate=False), evidence(0.0, 0.0, 0.05)], [], 0.05, "not detected", 0),
        ([evidence(0.0, 0.0, 0.05)], [], 0.2, "not enough data", 11),
        ([evidence(0.0, 0.0, 0.05)], [], None, "not enough data", 11),
        ([evidence(0.05, 0.09, 0.13)], [], 0.05, "not enough data", 11),
        ([evidence(0.2, 0.3, 0.4)], ["sealed: broken"], 0.05, "invalid", 12),
        ([evidence(0.0, 0.0, 0.05), evidence(0.11, 0.3, 0.4)], [], None, "leak", 10),
        ([evidence(0.03, 0.06, 0.09)], [], 0.1, "within the limit", 0),
        ([evidence(0.03, 0.06, 0.09)], [], 0.2, "not enough data", 11),
    ],
)
def test_the_gate(rows: list[Evidence], failures: list[str], detectable: float | None, verdict: str, code: int) -> None:
    said = judge(rows, failures, 0.1, detectable, 1000)
    assert (said.verdict, said.exit_code) == (verdict, code)
    assert (said.traces_needed is not None) == (verdict == "not enough data" and detectable is not None)
    if said.traces_needed is not None:
        assert said.traces_needed > 1000
    if verdict == "not detected":
        assert said.ceiling == 0.05


def test_a_verdict_without_probes_does_not_depend_on_what_they_could_see() -> None:
    row = replace(evidence(0.0, 0.0, 0.05), attack="behavioural")
    for seen in (None, 2.0):
        said = judge([row], [], 0.1, seen, 1000)
        assert (said.exit_code, said.ceiling) == (0, 0.05) and "linear code" not in said.sentence
    with_probes = judge([row, evidence(0.0, 0.0, 0.05)], [], 0.1, 0.08, 1000)
    assert with_probes.ceiling == 0.08
    found = judge([evidence(0.03, 0.06, 0.09)], [], 0.1, 0.1, 1000)
    assert "attribute found 0.06 bits of note-* [0.03, 0.09], within the 0.1 allowed" in found.sentence
    assert "at most 0.1 by this suite" in found.sentence and "Not detected" not in found.sentence
    assert "a linear code of 0.08 bits at one place of the cache would have been seen in 8 of 10 runs" in (
        with_probes.sentence
    )


@pytest.mark.parametrize("most", [3.3, 16.6])
def test_as_many_traces_as_are_asked_for_would_do(most: float) -> None:
    """Of a secret of which nothing is found: what may have gone unseen shrinks with the number of traces."""

    def tested(traces: int) -> Evidence:
        n = round(0.15 * traces)
        found = mean_of(np.zeros(n), np.arange(n), 0.02, most)
        return Evidence("attribute", "note-*", "open", "bits", found, n, gate=True)

    said = judge([tested(300)], [], 0.1, 0.1, 300)
    assert said.traces_needed is not None and said.traces_needed < 12_000
    assert judge([tested(said.traces_needed)], [], 0.1, 0.1, said.traces_needed).exit_code == 0
    assert judge([tested(said.traces_needed // 2)], [], 0.1, 0.1, said.traces_needed // 2).exit_code == 11


def test_where_no_injected_leak_was_seen_nobody_knows_how_many_traces_would_do() -> None:
    said = judge([evidence(0.0, 0.0, 0.05)], [], 0.1, None, 1000)
    assert said.traces_needed is None and "cannot be told" in said.sentence


@cache
def toy() -> gt.Checkpoint:
    return gt.load("toy-open", device="cpu")


def exhibit(arm: Arm, samples: int = 300, task: Task | None = None) -> Exhibit:
    task = task or ledger_task(toy(), 3, samples)
    asked = [Asked(t.name, task.labels(n), task.exact[t.name]) for n, t in enumerate(task.targets)]
    return Exhibit(toy(), task, split(task.samples), arm, Settings(hops=(0,)), asked, {}, 0.05)


@pytest.mark.parametrize(("arm", "told"), [(Memento(), True), (Restart(), False)])
def test_collision_tells_blocks_apart_where_they_left_something(arm: Arm, told: bool) -> None:
    found = {(one.condition, one.unit): one for one in collision(exhibit(arm))}
    assert found["open", "bits"].found.value == pytest.approx(2.0 if told else 0.0, abs=0.01)
    assert found["open", "rate"].found.value == (1.0 if told else 0.0)
    assert found["sealed", "bits"].found.value == 0 and found["open", "bits"].gate


def test_half_precision_is_no_disguise() -> None:
    """What rounding does is measured, so that in bfloat16 the true block is still told, and a sealed one is not."""
    half = gt.load("toy-open", device="cpu", dtype="bfloat16")
    at = replace(exhibit(Memento()), checkpoint=half)
    found = {(one.condition, one.unit): one.found.value for one in collision(at)}
    assert found["open", "rate"] >= 0.95 and found["open", "bits"] > 1.9
    assert found["sealed", "rate"] <= 0.4 and found["sealed", "bits"] < 0.05


def test_kept_delimiters_are_compared_too() -> None:
    policy = replace(toy().policy, mask_delimiters=False)
    keeping = replace(exhibit(Memento()), checkpoint=replace(toy(), policy=policy))
    for at, more in ((keeping, 2), (replace(keeping, arm=DropDelimiters()), 0)):
        case = cases_of(at, at.split.test)[0]
        pair = gt.find_blocks(at.task.samples[case.row].ids, toy().markup)[1]
        memento = set(range(pair.memento_start, pair.memento_end + 1))
        assert set(case.places.tolist()) == memento | ({pair.start, pair.end} if more else set())
    cases = cases_of(keeping, keeping.split.test)[:8]
    alone = [replace(case, places=case.places[1:2]) for case in cases]  # <|block_end|> has seen its whole block
    assert (distances(keeping, Memento(), alone)[:, 1:] > 0).all() and (distances(keeping, Restart(), cases) == 0).all()


def test_candidates_cannot_be_told_by_what_is_retained() -> None:
    at = exhibit(Memento())
    for case in cases_of(at, at.split.test)[:10]:
        assert len({tuple(ids) for ids in case.ids}) == len(case.ids) == 4
        mine = at.task.samples[case.row]
        assert case.ids[0] == list(mine.ids[: len(case.ids[0])])
        outside = {tuple(token for k, token in enumerate(ids) if not _inside(at, case.row, k)) for ids in case.ids}
        assert len(outside) == 1


def _inside(at: Exhibit, row: int, place: int) -> bool:
    pair = gt.find_blocks(at.task.samples[row].ids, toy().markup)[1]
    return pair.start < place < pair.end


def test_the_attacker_imitates_all_but_the_draws() -> None:
    """Noise as large as the states hides which block it was; a little does not."""
    loud, quiet = (collision(exhibit(Noise(size=size)))[0].found.value for size in (30.0, 0.01))
    assert loud < 0.3 and quiet == pytest.approx(2.0, abs=0.01)


def test_prompts_are_parsed() -> None:
    at = exhibit(Memento())
    prompt = parse(at, ledger_prompts(2)["hidden-*"])
    assert prompt.targets == (None, *(at_name(at, f"hidden-{k}") for k in range(2)))
    assert toy().tokenizer.convert_ids_to_tokens(list(prompt.pieces[0]))[0] == "<|block_start|>"
    assert len(prompt.answers[0]) == 10
    for wrong in ("what was it?", "{digit-9}"):
        with pytest.raises(UserError, match="braces"):
            parse(at, wrong)


def at_name(at: Exhibit, name: str) -> int:
    return [one.name for one in at.asked].index(name)


def marks(folder: Path, *rows: object) -> Path:
    path = folder / "secrets.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def token_trace(name: str, *blocks: str, memento: str = "abc") -> TokenTrace:
    text = "".join(f"<|block_start|>{b}<|block_end|><|summary_start|>{memento}<|summary_end|>" for b in blocks)
    response = toy().tokenizer.encode(f"<think>{text}</think>", add_special_tokens=False)
    return TokenTrace("file", name, toy().prompt_ids("x179"), response)


def test_marked_secrets_that_the_text_reveals_are_left_out_and_named(tmp_path: Path) -> None:
    traces = [token_trace(f"t{k}", "abc", "dghe" if k % 2 else "jfhe", "cde", "abc") for k in range(8)]
    traces.append(token_trace("told", "abc", "dghe", "cde", "abc", memento="dgh"))
    rows = [{"trace": f"t{k}", "block": 1, "text": "dgh" if k % 2 else "jfh"} for k in range(8)]
    rows += [{"trace": "told", "block": 1, "text": "dgh"}, {"trace": "none", "block": 1, "text": "dgh"}]
    rows += [{"trace": "t1", "block": 3, "text": "dgh"}, {"trace": "t1", "block": 1, "text": "zzz"}]
    task, excluded = marked_task(traces, toy(), read_marks(marks(tmp_path, *rows)), 1)
    assert len(task.samples) == 8 and task.targets[0].classes == ("dgh", "jfh")
    assert [one.trace for one in excluded] == ["told", "none", "t1", "t1"]
    assert "retained holds the secret" in excluded[0].reason
    for sample in task.samples:
        spelled = toy().tokenizer.convert_ids_to_tokens([sample.ids[place] for place in sample.where])
        assert "".join(spelled) == task.targets[0].classes[sample.labels[0]]
    with pytest.raises(UserError, match="none of 1 marked secrets"):
        marked_task(traces, toy(), rows[-1:], 1)
    for wrong in ("{", '{"trace": "t"}', '{"trace": "t", "text": "x", "block": -1}', "[]"):
        with pytest.raises(UserError, match="line 1"):
            read_marks(marks(tmp_path, wrong))
    with pytest.raises(UserError, match="marks no secrets"):
        read_marks(marks(tmp_path, " "))


QUICK = ["--hops", "0", "--layers", "3", "--kv", "v", "--no-mlp", "--utility-limit", "10", "--attacks"]


def command(*arguments: str) -> int:
    """The exit code of `ghosttrace audit`."""
    return int(cli.app(["audit", *arguments], standalone_mode=False) or 0)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--attacks", "guessing"], "--attacks is a list of"),
        (["--attacks", "ranking"], "--attacks needs one that counts bits"),
        (["--defence", "prayer"], "no defence 'prayer'"),
        (["--defence", "drop-delimiters"], "delimiters"),
        (["--kv", "hidden"], "leave hidden out"),
        (["--max-leak-bits", "0"], "--max-leak-bits is above 0"),
        (["--prompt", "well?"], "put parts of the secret in braces"),
        (["--secrets", "x.jsonl"], "give them with --traces"),
        (["--targets", "notes"], "ledger-h3 has no target 'notes': it has note-0, note-1"),
        (["--samples", "8"], "8 samples for 10 classes"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        command("--samples", "200", *options, "--out", str(tmp_path / "run"))


def test_a_leak_is_found_and_gated(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command("--samples", "400", *QUICK, "attribute,ranking,behavioural", "--out", str(out)) == 10
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["verdict"], summary["exit_code"], summary["valid"]) == ("leak", 10, True)
    rows = {(r["attack"], r["secret"], r["condition"], r["unit"]): r for r in summary["results"]}
    assert rows["attribute", "hidden-*", "open", "bits"]["low"] > 5
    assert rows["behavioural", "hidden-*", "open", "rate"]["estimate"] == 1.0
    assert rows["behavioural", "hidden-*", "sealed", "rate"]["estimate"] < 0.05
    assert rows["ranking", "hidden-*", "open", "exposure bits"]["estimate"] > 5
    assert summary["defence"]["accuracy"] == 1.0
    for name in ("report.html", "card.md", "audit.sarif", "samples.parquet", "traces.parquet", "run.json"):
        assert (out / name).stat().st_size > 500
    assert not (out / "features").exists()
    assert errors(summary) == []  # by the published schema
    assert command("--resume", str(out)) == 10


def test_targets_choose_the_secrets_and_an_unwritable_report_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "run", ["--targets", "note-*", "--samples", "400", *QUICK, "attribute,behavioural"]

    def full(folder: Path) -> None:
        (folder / "card.md").mkdir()
        write_reports(folder)

    monkeypatch.setattr("ghosttrace.report.audit.write_reports", full)
    with pytest.raises(UserError, match=r"card\.md cannot be written"):
        command(*options, "--out", str(out))
    monkeypatch.undo()
    (out / "card.md").rmdir()
    code = command("--resume", str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert code == summary["exit_code"] and summary["valid"]
    assert {row["secret"] for row in summary["results"]} == {"note-*"}
    assert {row["attack"] for row in summary["results"]} >= {"attribute", "behavioural"}


def test_an_audit_too_small_to_tell(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--model", "toy-mixed", "--defence", "restart", "--samples", "300"]
    assert command(*options, *QUICK, "attribute,collision", "--out", str(out)) == 11
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdict"] == "not enough data" and summary["traces_needed"] > 300


def test_a_sabotaged_control_makes_the_audit_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sealed cache that serves as control is not sealed."""
    from ghosttrace.probe import features

    monkeypatch.setitem(features.LAYOUTS, "sealed", features.LAYOUTS["open"])
    out = tmp_path / "run"
    assert command("--samples", "400", *QUICK, "attribute", "--out", str(out)) == 12
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["valid"] and summary["failures"][0].startswith("sealed")
