"""Quantities of the audit against hand computations, and detectable leaks of its probes."""

from dataclasses import replace
from functools import partial
from itertools import product
from math import log, log2

import numpy as np
import pytest
import torch
from helpers.audits import SITE, noise_context, toy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ghosttrace.ablation.arms import Restart
from ghosttrace.auditing.attacks.membership import (
    Claims,
    MembershipAttack,
    auc,
    claim_rates,
    log_rate_ratio_bound,
    threshold,
)
from ghosttrace.auditing.attacks.ranking import exposures
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.cost import interleave_base_traces
from ghosttrace.auditing.detectable_leak import (
    detection_trials,
    exposure_trial,
    label_fidelity,
    linear_trial,
    pad_trial,
    smallest_detectable_leak,
)
from ghosttrace.auditing.evidence import (
    Evidence,
    LabelLogProbs,
    any_part_equals_text,
    mean_estimate,
    one_row_per_cluster,
)
from ghosttrace.auditing.token_codes import CachedTokens
from ghosttrace.auditing.verdict import Limits, decide_verdict
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.probing.evidence import ProbeTarget
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.split import Split, split
from ghosttrace.stats import unseen_share_bound


def test_exposure_by_hand() -> None:
    """Two parts of three classes: nine candidates, ranked by the sum of their logarithms."""
    rng = np.random.default_rng(0)
    first, second = (np.log(rng.dirichlet(np.ones(3), 5)) for _ in range(2))
    labels = [rng.integers(0, 3, 5), rng.integers(0, 3, 5)]
    for row, exposure in enumerate(exposures([first, second], labels)):
        scores = {(a, b): first[row, a] + second[row, b] for a, b in product(range(3), repeat=2)}
        own = scores[labels[0][row], labels[1][row]]
        rank = 1 + sum(score > own for score in scores.values())
        assert exposure == pytest.approx(log2(9) - log2(rank))


def test_exposure_of_ties_is_the_mean_over_their_orders() -> None:
    flat = np.full((1, 10), -log(10))
    (exposure,) = exposures([flat, flat], [np.array([3]), np.array([7])])
    assert exposure == pytest.approx(log2(100) - np.mean([log2(rank) for rank in range(1, 101)]))
    half = np.log(np.array([[0.3, 0.3, 0.2, 0.2]]))
    (exposure,) = exposures([half], [np.array([2])])
    assert exposure == pytest.approx(2 - (log2(3) + log2(4)) / 2)


def test_auc_and_rates_by_hand() -> None:
    claims = Claims(np.array([3.0, 1.0, 2.0, 0.0]), np.array([0.0, -1.0, 2.0]))
    pairs = [(p > a) + 0.5 * (p == a) for p, a in product(claims.member_scores, claims.nonmember_scores)]
    assert auc(claims).value == pytest.approx(np.mean(pairs))
    right, false = claim_rates(claims, 0.5)
    assert (right.value, false.value) == (0.75, pytest.approx(1 / 3))
    exact = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert (right.low, right.high) == (exact.low, exact.high)


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=200), st.sampled_from([0.05, 0.1, 0.5]))
def test_threshold_keeps_the_false_positive_rate(scores: list[float], rate: float) -> None:
    absent = np.array(scores)
    assert (absent > threshold(absent, rate)).mean() <= rate


def test_log_rate_ratio_by_hand() -> None:
    """With 300 of 300 true and 0 of 300 false positives, the Clopper-Pearson bounds have a closed form."""
    claims = Claims(np.full(300, 1.0), np.full(300, 0.0))
    bound, ceiling = log_rate_ratio_bound(claims, claims)
    low, high = 0.025 ** (1 / 300), 1 - 0.025 ** (1 / 300)
    assert ceiling == pytest.approx(log(low / high))
    assert bound.value == pytest.approx(ceiling)
    none, _ = log_rate_ratio_bound(Claims(np.zeros(300), np.zeros(300)), Claims(np.zeros(300), np.zeros(300)))
    assert none.value == 0


def test_auc_interval_covers_one_half_without_a_difference() -> None:
    """In 200 draws without a difference, about 5 % of the intervals miss 0.5."""
    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        estimate = auc(Claims(rng.normal(size=80), rng.normal(size=80)))
        missed += not estimate.low <= 0.5 <= estimate.high
    assert missed <= 20


def clustered(bases: int, copies: int, labels: np.ndarray, seed: int) -> tuple[AuditContext, list[np.ndarray]]:
    """Return an audit on copies of base traces, and uninformative log-posteriors that are equal for copies."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(bases), copies)
    every = np.arange(len(cluster))
    samples = tuple(Sample([], str(base), "", 0, (), (int(labels[base]),)) for base in cluster)
    task = Task("marked", samples, (Target("class", tuple("0123456789")),))
    text = np.full((len(every), 10), -log(10))
    log_posteriors = np.log(rng.dirichlet(np.ones(10), bases))[cluster]
    targets = [ProbeTarget("class", labels[cluster], text)]
    parts = Split(every, every, every, cluster, "")
    return AuditContext(toy(), task, parts, Restart(), ProbeSettings(seed=seed), targets), [log_posteriors]


@pytest.mark.slow
def test_auc_interval_accounts_for_clusters() -> None:
    """In 200 audits without a leak (30 bases, 30 copies each), about 5 % of the intervals miss 0.5."""
    missed = 0
    for seed in range(200):
        context, log_posteriors = clustered(30, 30, np.random.default_rng([seed, 1]).integers(0, 10, 30), seed)
        estimate = MembershipAttack().findings(context, "marked", SITE, {"open": log_posteriors})[0].estimate
        missed += not estimate.low <= 0.5 <= estimate.high
    assert missed <= 16


def test_auc_interval_without_clusters_is_delongs() -> None:
    rng = np.random.default_rng(0)
    claims = Claims(rng.normal(0.5, size=60), rng.normal(size=80))
    above = np.sign(claims.member_scores[:, None] - claims.nonmember_scores[None]) / 2 + 0.5
    error = (above.mean(1).var(ddof=1) / 60 + above.mean(0).var(ddof=1) / 80) ** 0.5
    estimate = auc(claims)
    assert (estimate.high - estimate.value) / stats.t.ppf(0.975, 139) == pytest.approx(error, rel=0.02)
    certain = auc(Claims(np.ones(30), np.zeros(30)))
    assert (certain.value, certain.high) == (1.0, 1.0) and certain.low == pytest.approx(1 - unseen_share_bound(60))


def test_rates_use_one_trace_per_cluster() -> None:
    cluster = np.repeat([4, 2, 9], [1, 50, 3])
    drawn = one_row_per_cluster(np.arange(54), cluster, 0)
    assert sorted(cluster[drawn]) == [2, 4, 9] and (np.diff(drawn) > 0).all()
    assert len({tuple(one_row_per_cluster(np.arange(54), cluster, seed)) for seed in range(40)}) > 20
    context, log_posteriors = clustered(300, 4, np.random.default_rng(1).integers(0, 10, 300), 0)
    rows = MembershipAttack().findings(context, "marked", SITE, {"open": log_posteriors})
    assert [(row.unit, row.n) for row in rows] == [("AUC", 1200), ("TPR", 300), ("log rate ratio", 300)]
    assert rows[-1].estimate.high == np.inf and "ceiling" in rows[-1].note


def test_membership_names_the_traces_it_needs() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 30)
    context, log_posteriors = clustered(30, 30, labels, 0)
    (row,) = MembershipAttack().findings(context, "marked", SITE, {"open": log_posteriors})
    assert row.note.startswith("15 independent false claims on validation cannot set a threshold for a rate of 0.01")
    assert "give 200 independent traces" in row.note
    single_base, log_posteriors = clustered(1, 30, labels[:1], 0)
    assert MembershipAttack().findings(single_base, "marked", SITE, {"open": log_posteriors}) == []
    assert (
        "no false claim" in (MembershipAttack().skip_reason_for_all(single_base) or "")
        and MembershipAttack().skip_reason_for_all(context) is None
    )


def test_utility_is_measured_on_different_base_traces() -> None:
    samples = [Sample([k], base, "", 0, (), ()) for k, base in enumerate("aaabbc")]
    assert [sample.ids[0] for sample in interleave_base_traces(samples)] == [0, 3, 5, 1, 4, 2]


def test_mean_interval_allows_for_unseen_cases() -> None:
    nothing = mean_estimate(np.zeros(100), np.arange(100), 0.05, 10.0)
    assert (nothing.value, nothing.low, nothing.p) == (0, 0, 1)
    assert nothing.high == pytest.approx(10 * unseen_share_bound(100))
    full = mean_estimate(np.tile([1.0, 2.0, 3.0], 40), np.arange(120), 0.05, 10.0)
    reach = stats.t.ppf(0.975, 119) * np.tile([1.0, 2.0, 3.0], 40).std(ddof=1) / 120**0.5
    assert (full.low, full.high) == (pytest.approx(2 - reach), pytest.approx(2 + reach))
    doubled = mean_estimate(np.repeat(np.tile([1.0, 2.0, 3.0], 40), 2), np.repeat(np.arange(120), 2), 0.05, 10.0)
    assert doubled.high == pytest.approx(full.high)  # copies of a trace add no information


def test_few_equal_values_do_not_prove_a_leak() -> None:
    """Unseen cases may have zero bits, so few equal values give a wide interval; four clusters give no bound."""
    few_equal = mean_estimate(np.full(5, 2.0), np.arange(5), 0.05, 2.0)
    assert few_equal.low == pytest.approx(2.0 - 2.0 * unseen_share_bound(5)) and few_equal.high == 2.0
    few = mean_estimate(np.full(4, 0.5), np.arange(4), 0.05, 2.0)
    assert few.low == -np.inf
    row = Evidence("collision", "block", "open", "bits", few, 4, gate=True)
    assert decide_verdict([row], [], Limits(), {}, 1000).exit_code == 11


def test_interval_is_wide_if_one_part_equals_the_text() -> None:
    noise = np.random.default_rng(0).normal(size=900) * 0.02
    all_parts, silent = (mean_estimate(noise, np.arange(900), 0.01, 16.6, silent) for silent in (False, True))
    assert all_parts.high < 0.01
    assert silent.high == pytest.approx(silent.value + (16.6 - silent.value) * unseen_share_bound(900, 0.005))
    rows, text = np.arange(3), np.full(3, -1.0)
    leaking, silent_part = LabelLogProbs(rows, text + 0.1, text), LabelLogProbs(rows, text.copy(), text)
    assert any_part_equals_text([leaking, silent_part]) and not any_part_equals_text([leaking])


def tokens_of(states: torch.Tensor, count: int = 1, share: float = 1.0) -> CachedTokens:
    """Return states, float[N, P, d], as tokens of a sealed cache; `share` is the weight of one token in a mean."""
    return CachedTokens(states, count, torch.full((len(states),), share), float(states.std()))


@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_injected_leak_has_the_requested_size(bits: float) -> None:
    share, classes = label_fidelity(bits, 10), 10
    joint = np.full((classes, classes), (1 - share) / classes / classes) + np.eye(classes) * share / classes
    assert (joint * np.log2(joint * classes**2)).sum() == pytest.approx(bits)
    assert label_fidelity(log2(10), 10) == 1
    rng, labels = np.random.default_rng(1), np.random.default_rng(0).integers(0, 10, 6000)
    flat = ProbeTarget("digit", labels, np.full((6000, 10), -log(10)))
    tokens = tokens_of(torch.randn(6000, 1, 64, generator=torch.Generator().manual_seed(0)))
    tokens.write(0, np.where(rng.random(6000) < share, labels, rng.integers(0, 10, 6000)), 10, rng)
    parts = split([Sample([], str(k), str(k), 0, (), ()) for k in range(6000)])
    ((scores,),) = linear_scores(tokens.features()[None], [flat], parts, torch.device("cpu"))
    estimate = mean_estimate(scores.log2p - scores.text_log2p, np.arange(len(scores.log2p)), 0.05, 10.0)
    assert estimate.low < bits and estimate.value > 0.5 * bits


def test_code_is_written_into_one_token_before_pooling() -> None:
    """A reader of all tokens sees it whole, a reader of their mean one part of it, of the last two nothing."""
    states, codes = torch.zeros(4, 3, 5), np.array([0, 1, 0, 1])
    whole = CachedTokens(states.clone(), 3, torch.ones(4), 1.0)
    whole.write(2, codes, 2, np.random.default_rng(0), np.array([True, True, True, False]))
    assert (whole.states[:, 1:] == 0).all() and (whole.states[3] == 0).all()
    assert torch.equal(whole.states[0], whole.states[2]) and not torch.equal(whole.states[0], whole.states[1])
    mean = CachedTokens(states[:, :1].clone(), 3, torch.full((4,), 1 / 3), 1.0)
    mean.write(2, codes, 2, np.random.default_rng(0))
    torch.testing.assert_close(mean.states[:3, 0], whole.states[:3].mean(1))
    last_two = CachedTokens(states[:, 1:].clone(), 3, torch.ones(4), 1.0)
    last_two.write(2, codes, 2, np.random.default_rng(0))
    assert (last_two.states == 0).all()


def trials(context: AuditContext, tokens: CachedTokens, trial: object, *size: object) -> int:
    """Return how many of ten trials detect the leak."""
    bound = partial(trial, context, *size)  # type: ignore[arg-type]
    return sum(detection_trials(context, context.targets, [tokens], bound))


def test_detection_trials_with_unequal_class_shares() -> None:
    context, states = noise_context(1400, 1, [0.9, 0.1])
    assert trials(context, tokens_of(states[:, None]), linear_trial, [1e-6]) <= 1
    context, states = noise_context(2000, 1, [0.55, *[0.05] * 9])
    assert trials(context, tokens_of(states[:, None]), linear_trial, [1.0]) >= 8


def test_code_in_one_of_many_averaged_tokens_is_not_detected() -> None:
    """Half a bit is seen where it stands alone, and not where the mean over 4,000 tokens dilutes it."""
    context, states = noise_context(2000, 1, [0.1] * 10)
    alone, diluted = (tokens_of(states[:, None], count, 1 / count) for count in (1, 4000))
    assert trials(context, alone, linear_trial, [0.5]) >= 8
    diluted = replace(diluted, spread=float(states.std()) * 4000**0.5)  # one token varies more than the mean of all
    assert trials(context, diluted, linear_trial, [0.5]) <= 2


@pytest.mark.long
def test_secrets_in_few_traces_and_pads_are_detected_if_there_are_enough() -> None:
    context, states = noise_context(3000, 2, [0.25] * 4)
    tokens = tokens_of(states.reshape(len(states), 2, -1), 2)
    assert trials(context, tokens, exposure_trial, 0.05) >= 8 and trials(context, tokens, exposure_trial, 1e-4) <= 1
    assert trials(context, tokens, pad_trial, 2.0) >= 8 and trials(context, tokens, pad_trial, 1e-3) <= 1


@pytest.mark.slow
def test_leak_must_be_detectable_spread_over_all_parts() -> None:
    context, states = noise_context(1400, 5, [0.1] * 10)
    tokens = tokens_of(states[:, None])
    concentrated, evenly = (trials(context, tokens, linear_trial, bits) for bits in ([0.5, 0, 0, 0, 0], [0.1] * 5))
    assert concentrated >= 8 > evenly
    smallest = smallest_detectable_leak(replace(context, limits=Limits(0.5)), "d-*", SITE)
    assert smallest.bits is None or smallest.bits > 0.5
    assert smallest.pad_bits is None  # the carrier has a single token
