"""Evidence: bits against known values, the text baseline, and controls that fail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from experiments.probe_calibration import Code, empty_sweep, simulate, simulated_task, site, uniform_target, with_labels
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.probing.evidence import (
    ProbeTarget,
    failed_controls,
    record,
    score,
    summarise,
)
from ghosttrace.probing.fit_and_score import linear_scores, online_scores, probe_scores
from ghosttrace.probing.label_controls import control_task, shuffle_labels
from ghosttrace.probing.probes import MLP
from ghosttrace.probing.split import Split
from ghosttrace.probing.text_baseline import fit_text_posterior, log_marginals, text_features

CPU = torch.device("cpu")


def test_planted_code_is_measured_to_five_percent() -> None:
    """Three of the hundred cases of experiments/probe_calibration.py."""
    for seed in range(3):
        row = simulate(Code(8, 16, 3.0), 16_000, seed)
        assert abs(row["bits"] / row["truth"] - 1) < 0.05
        assert row["p"] < 1e-9


def test_no_bits_are_found_without_a_code() -> None:
    for seed in range(5):
        row = simulate(Code(10, 16, 0.0), 3_000, seed)
        assert row["bits_low"] <= 0 <= row["bits_high"]
        assert row["bits"] < 0.005


def test_sweep_without_a_signal_gives_no_false_alarm() -> None:
    sweeps = [empty_sweep(800, seed, layers=2, hops=2) for seed in range(6)]
    assert sum(sweep["false_alarm"] for sweep in sweeps) <= 1
    assert sum(sweep["invalid"] for sweep in sweeps) <= 1


def test_recorded_calibration_meets_its_limits() -> None:
    results = pd.read_parquet(Path(__file__).parent.parent / "experiments" / "results" / "probe_calibration.parquet")
    for _, rows in results[results["truth"] > 0].groupby("simulation"):
        assert len(rows) >= 100
        assert ((rows["bits"] / rows["truth"] - 1).abs() <= 0.05).sum() >= 95
    nothing = results[results["simulation"] == "nothing"]
    assert ((nothing["bits_low"] <= 0) & (nothing["bits_high"] >= 0)).sum() >= 95
    sweeps = results[results["simulation"] == "empty sweep"]
    assert len(sweeps) >= 100
    assert sweeps["false_alarm"].sum() <= 0.05 * len(sweeps)
    assert sweeps["invalid"].sum() <= 0.05 * len(sweeps)


def planted(n: int = 3_000, strength: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, Split, Task]:
    rng = np.random.default_rng(seed)
    task, parts = simulated_task(n, 10)
    labels = rng.integers(0, 10, n)
    means = Code(10, 12, strength).means(rng)
    return torch.from_numpy(means[labels] + rng.normal(size=(n, 12))).float(), labels, parts, task


def test_bits_measure_what_features_add_to_the_text() -> None:
    """If the text determines parity, a code of the digit adds only the remaining entropy."""
    features, labels, parts, task = planted(strength=6.0)
    text_log_p = np.where((np.arange(10) % 2)[None] == (labels % 2)[:, None], np.log(0.2), np.log(1e-9))
    targets = [uniform_target("alone", labels, 10), ProbeTarget("after-text", labels, text_log_p)]
    (scores,) = linear_scores(features[None], targets, parts, CPU)
    names = Task("two", task.samples, (Target("alone", tuple("0123456789")), Target("after-text", tuple("0123456789"))))
    summary = summarise(
        [record(score, condition="open", **site()) for score in scores],
        with_labels(names, np.stack([labels, labels], axis=1)),
        parts,
    ).set_index("target")
    assert summary.loc["alone", "bits"] == pytest.approx(np.log2(10), abs=0.15)
    assert summary.loc["after-text", "bits"] == pytest.approx(np.log2(5), abs=0.08)
    assert summary.loc["after-text", "unknown"] == pytest.approx(np.log2(5), abs=1e-6)


def test_intervals_are_those_of_a_cluster_bootstrap() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(60), 5)
    gained = rng.normal(0.4, 1, 300) + np.repeat(rng.normal(0, 1, 60), 5)
    parts = Split(np.arange(0), np.arange(0), np.arange(300), cluster, "bases")
    task = with_labels(simulated_task(300, 2)[0], np.zeros((300, 1)))
    scores = {"sample": list(range(300)), "log2p": gained.tolist(), "text_log2p": [0.0] * 300, "hit": [True] * 300}
    row = summarise(
        [{"condition": "open", **site(), "target": "digit-0", "n_train": 9, **scores}],
        task,
        replace(parts, train=np.arange(300)),
    ).iloc[0]
    sums = gained.reshape(60, 5).sum(1)
    drawn = [sums[rng.integers(0, 60, 60)].mean() / 5 for _ in range(4000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert row["bits"] == pytest.approx(gained.mean())
    assert row["bits_low"] == pytest.approx(low, abs=0.03)
    assert row["bits_high"] == pytest.approx(high, abs=0.03)
    naive = 1.96 * gained.std() / np.sqrt(300)
    assert row["bits_high"] - row["bits"] > 1.5 * naive


def test_mlp_finds_a_nonlinear_code() -> None:
    rng = np.random.default_rng(1)
    _, parts = simulated_task(4_000, 2)
    features = rng.normal(size=(4_000, 6))
    labels = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).astype(np.int64)
    targets = [uniform_target("digit-0", labels, 2)]
    states = torch.from_numpy(features).float()
    ((line,),) = linear_scores(states[None], targets, parts, CPU)
    (deep,) = probe_scores(MLP(), states, targets, parts, 0, CPU)
    assert (line.log2p - line.text_log2p).mean() < 0.02
    assert (deep.log2p - deep.text_log2p).mean() > 0.7


def test_online_code_length_includes_learning_cost() -> None:
    features, labels, parts, _ = planted(strength=3.0)
    targets = [uniform_target("digit-0", labels, 10)]
    ((full,),) = linear_scores(features[None], targets, parts, CPU)
    (online,) = online_scores(features, targets, parts, 0, CPU)
    saved = (online.log2p - online.text_log2p).mean()
    assert 0.5 < saved < (full.log2p - full.text_log2p).mean()
    assert sorted(online.sample) == sorted(parts.train)
    (nothing,) = online_scores(
        torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(0)), targets, parts, 0, CPU
    )
    assert -0.05 < (nothing.log2p - nothing.text_log2p).mean() < 0.005


def test_selectivity_separates_reading_from_memorising() -> None:
    """A linear probe reads two one-hot digits, but cannot predict a random label of each pair of digits."""
    rng = np.random.default_rng(2)
    n = 6_000
    task, parts = simulated_task(n, 10, 2)
    labels = rng.integers(0, 10, (n, 2))
    features = torch.from_numpy(np.concatenate([np.eye(10)[labels[:, 0]], np.eye(10)[labels[:, 1]]], axis=1)).float()
    targets = [uniform_target(f"digit-{number}", labels[:, number], 10) for number in range(2)]
    controls = [control_task(targets[0], targets[1], 0), control_task(targets[1], targets[0], 0)]
    (scores,) = linear_scores(features[None], targets + controls, parts, CPU)
    rows = [
        record(score, condition="open" if number < 2 else "control-task", **site())
        for number, score in enumerate(scores)
    ]
    results = summarise(rows, with_labels(task, labels), parts)
    opened = results[(results["condition"] == "open") & (results["target"] == "digit-0")].iloc[0]
    assert opened["accuracy"] > 0.99
    assert opened["selectivity"] > 0.4


def test_shuffled_labels_are_a_permutation() -> None:
    labels = np.array([0, 1, 2, -1] * 20)
    dealt = shuffle_labels(uniform_target("digit-0", labels, 3), np.log(np.full(3, 1 / 3)), 0)
    assert sorted(dealt.labels) == sorted(labels)
    assert ((dealt.labels < 0) == (labels < 0)).all()
    assert (dealt.labels != labels).any()


def text_world(n: int, label_in_text: bool, seed: int = 0) -> tuple[csr_array, np.ndarray, Split]:
    """Return retained texts in which one token equals the label if `label_in_text`, labels and a split."""
    rng = np.random.default_rng(seed)
    _, parts = simulated_task(n, 4)
    labels = rng.integers(0, 4, n)
    shown = labels if label_in_text else rng.integers(0, 4, n)
    texts = [(np.array([9, 10 + shown[row], 11 + rng.integers(0, 3)]), np.array([0, 5, 6])) for row in range(n)]
    return text_features(texts, [0] * n, parts.train), labels, parts


def test_text_baseline_predicts_labels_only_if_the_text_has_them() -> None:
    for label_in_text in (True, False):
        features, labels, parts = text_world(1_500, label_in_text)
        posterior = fit_text_posterior(features, labels, 4, parts)
        np.testing.assert_allclose(np.exp(posterior).sum(axis=1), 1, atol=1e-6)
        for rows in (parts.train, parts.test):  # training rows are predicted by folds that were not fitted on them
            loss = -posterior[rows, labels[rows]].mean() / np.log(2)
            assert loss < 0.2 if label_in_text else 1.99 < loss < 2.05


def test_gaps_are_part_of_the_text() -> None:
    """The gaps in positions reveal the number of erased tokens."""
    rng = np.random.default_rng(3)
    _, parts = simulated_task(800, 2)
    labels = rng.integers(0, 2, 800)
    texts = [(np.array([1, 2]), np.array([0, 5 + labels[row]])) for row in range(800)]
    posterior = fit_text_posterior(text_features(texts, [0] * 800, parts.train), labels, 2, parts)
    assert -posterior[parts.test, labels[parts.test]].mean() / np.log(2) < 0.2


def test_marginals_never_rule_a_class_out() -> None:
    log_p = log_marginals(np.array([0, 0, 1, -1]), 3, np.arange(4))
    np.testing.assert_allclose(np.exp(log_p), [0.5, 1 / 3, 1 / 6])


def test_predictable_shuffled_labels_fail_the_control() -> None:
    labels = np.arange(400) % 2
    task, parts = simulated_task(400, 2)
    log_p = np.where(np.arange(2)[None] == labels[:, None], np.log(0.9), np.log(0.1))
    row = record(score(uniform_target("digit-0", labels, 2), log_p, parts), condition="shuffled", **site())
    results = summarise([row], with_labels(task, labels[:, None]), parts)
    assert failed_controls(results)[0].startswith("shuffled")


def test_secret_indices_point_at_the_secret() -> None:
    sample = Sample([1, 2], "b", "s", 0, (1,), (0,))
    assert sample.ids[sample.secret_indices[0]] == 2


def test_online_code_is_fitted_on_previous_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a probe that returns the size of its training set: each sample is predicted once, from earlier samples."""
    _, parts = simulated_task(600, 4)
    parts = replace(parts, cluster=np.arange(600) // 3)
    calls = []

    def fitted(features, targets, train, validation, cluster, device):
        seen = features[0, :, 0].int().numpy()
        known, held_out = seen[np.concatenate([train, validation])], seen[len(train) + len(validation) :]
        calls.append((known, held_out))
        assert not set(parts.cluster[known]) & set(parts.cluster[held_out])
        assert not set(parts.cluster[seen[train]]) & set(parts.cluster[seen[validation]])
        return [[np.full((len(seen), 4), -float(len(known)))]]

    monkeypatch.setattr("ghosttrace.probing.fit_and_score.linear_posteriors", fitted)
    numbers = torch.arange(600.0)[:, None]
    (scores,) = online_scores(numbers, [uniform_target("digit-0", np.zeros(600, int), 4)], parts, 0, CPU)
    log_p = dict(zip(scores.sample, scores.log2p * np.log(2), strict=True))
    before: set[int] = set()
    for known, held_out in calls:
        assert before <= set(known) and not set(held_out) & set(known)
        assert all(log_p[row] == pytest.approx(-len(known)) for row in held_out)
        before = {*known, *held_out}
    assert before == set(parts.train) == set(scores.sample)
    assert len(calls) == 6


def test_training_traces_are_predicted_by_other_folds() -> None:
    """With many uninformative words, a fit on the same traces would overfit their labels."""
    rng = np.random.default_rng(0)
    _, parts = simulated_task(800, 2)
    labels = rng.integers(0, 2, 800)
    noisy_labels = np.where(rng.random(800) < 0.85, labels, 1 - labels)
    words = np.concatenate([noisy_labels[:, None], rng.random((800, 200)) < 0.2], axis=1)
    posterior = fit_text_posterior(csr_array(words.astype(float)), labels, 2, parts)
    loss = {
        name: -posterior[rows, labels[rows]].mean() / np.log(2)
        for name, rows in (("train", parts.train), ("test", parts.test))
    }
    assert loss["train"] < 0.9  # the text baseline is used
    assert loss["train"] == pytest.approx(loss["test"], abs=0.1)


def test_lengths_are_read_as_numbers() -> None:
    """Every length occurs about once, so that its name carries nothing; the label is whether it exceeds the median."""
    rng = np.random.default_rng(3)
    _, parts = simulated_task(500, 2)
    gaps = rng.integers(50, 50_000, 500)
    labels = (gaps > np.median(gaps)).astype(np.int64)
    texts = [(np.array([1, 2]), np.array([0, gap])) for gap in gaps]
    posterior = fit_text_posterior(text_features(texts, [0] * 500, parts.train), labels, 2, parts)
    assert -posterior[parts.test, labels[parts.test]].mean() / np.log(2) < 0.3
