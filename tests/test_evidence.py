"""Evidence: bits against known truths, the text baseline, and controls that have been seen to fail."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

import ghosttrace as gt
from experiments.probe_calibration import Code, bench, empty_sweep, simulate, site, uniform, with_labels
from ghosttrace.probe.cells import linear_scores, mlp_scores, online_scores
from ghosttrace.probe.evidence import Asked, control_task, failed_controls, family, record, score, shuffled, summarise
from ghosttrace.probe.ledger import ledger_task
from ghosttrace.probe.split import Split
from ghosttrace.probe.sweep import Settings
from ghosttrace.probe.task import Sample, Target, Task
from ghosttrace.probe.text import marginals, retained, text_features, text_posterior
from ghosttrace.report.probe import Probed, run

CPU = torch.device("cpu")
QUICK = Settings(hops=(0, 1), layers=(2,), kv=("v",), pool=2, mlp=False)


def test_a_planted_code_is_found_to_five_percent() -> None:
    """Three of the hundred that experiments/probe_calibration.py runs."""
    for seed in range(3):
        found = simulate(Code(8, 16, 3.0), 16_000, seed)
        assert abs(found["bits"] / found["truth"] - 1) < 0.05
        assert found["p"] < 1e-9


def test_nothing_planted_is_nothing_found() -> None:
    for seed in range(5):
        found = simulate(Code(10, 16, 0.0), 3_000, seed)
        assert found["bits_low"] <= 0 <= found["bits_high"]
        assert found["bits"] < 0.005


def test_a_sweep_over_nothing_raises_no_alarm() -> None:
    sweeps = [empty_sweep(800, seed, layers=2, hops=2) for seed in range(6)]
    assert sum(one["false_alarm"] for one in sweeps) <= 1
    assert sum(one["invalid"] for one in sweeps) <= 1


def test_the_recorded_calibration_holds_what_it_must() -> None:
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
    task, parts = bench(n, 10)
    labels = rng.integers(0, 10, n)
    means = Code(10, 12, strength).means(rng)
    return torch.from_numpy(means[labels] + rng.normal(size=(n, 12))).float(), labels, parts, task


def test_bits_are_what_the_features_add_to_the_text() -> None:
    """Where the text tells parity, a code of the digit is worth less than alone, and never more than is left."""
    features, labels, parts, task = planted(strength=6.0)
    told = np.where((np.arange(10) % 2)[None] == (labels % 2)[:, None], np.log(0.2), np.log(1e-9))
    asked = [uniform("alone", labels, 10), Asked("after-text", labels, told)]
    (scores,) = linear_scores(features[None], asked, parts, CPU)
    names = Task("two", task.samples, (Target("alone", tuple("0123456789")), Target("after-text", tuple("0123456789"))))
    found = summarise(
        [record(one, condition="open", **site()) for one in scores],
        with_labels(names, np.stack([labels, labels], axis=1)),
        parts,
    ).set_index("target")
    assert found.loc["alone", "bits"] == pytest.approx(np.log2(10), abs=0.15)
    assert found.loc["after-text", "bits"] == pytest.approx(np.log2(5), abs=0.08)
    assert found.loc["after-text", "unknown"] == pytest.approx(np.log2(5), abs=1e-6)


def test_intervals_are_those_of_a_cluster_bootstrap() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(60), 5)
    gained = rng.normal(0.4, 1, 300) + np.repeat(rng.normal(0, 1, 60), 5)
    parts = Split(np.arange(0), np.arange(0), np.arange(300), cluster, "bases")
    task = with_labels(bench(300, 2)[0], np.zeros((300, 1)))
    cell = {"sample": list(range(300)), "log2p": gained.tolist(), "text_log2p": [0.0] * 300, "hit": [True] * 300}
    found = summarise(
        [{"condition": "open", **site(), "target": "digit-0", "n_train": 9, **cell}],
        task,
        replace(parts, train=np.arange(300)),
    ).iloc[0]
    sums = gained.reshape(60, 5).sum(1)
    drawn = [sums[rng.integers(0, 60, 60)].mean() / 5 for _ in range(4000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["bits"] == pytest.approx(gained.mean())
    assert found["bits_low"] == pytest.approx(low, abs=0.03)
    assert found["bits_high"] == pytest.approx(high, abs=0.03)
    naive = 1.96 * gained.std() / np.sqrt(300)
    assert found["bits_high"] - found["bits"] > 1.5 * naive


def test_an_mlp_finds_what_a_linear_probe_cannot() -> None:
    rng = np.random.default_rng(1)
    _, parts = bench(4_000, 2)
    features = rng.normal(size=(4_000, 6))
    labels = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).astype(np.int64)
    asked = [uniform("digit-0", labels, 2)]
    states = torch.from_numpy(features).float()
    ((line,),) = linear_scores(states[None], asked, parts, CPU)
    (deep,) = mlp_scores(states, asked, parts, 0, CPU)
    assert (line.log2p - line.text_log2p).mean() < 0.02
    assert (deep.log2p - deep.text_log2p).mean() > 0.7


def test_the_online_code_pays_for_learning_and_is_silent_without_a_signal() -> None:
    features, labels, parts, _ = planted(strength=3.0)
    asked = [uniform("digit-0", labels, 10)]
    ((full,),) = linear_scores(features[None], asked, parts, CPU)
    (online,) = online_scores(features, asked, parts, 0, CPU)
    saved = (online.log2p - online.text_log2p).mean()
    assert 0.5 < saved < (full.log2p - full.text_log2p).mean()
    assert sorted(online.sample) == sorted(parts.train)
    (nothing,) = online_scores(
        torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(0)), asked, parts, 0, CPU
    )
    assert -0.05 < (nothing.log2p - nothing.text_log2p).mean() < 0.005


def test_selectivity_tells_reading_from_memorising() -> None:
    """A linear probe of two one-hot digits reads them, and cannot answer a random label for every pair."""
    rng = np.random.default_rng(2)
    n = 6_000
    task, parts = bench(n, 10, 2)
    labels = rng.integers(0, 10, (n, 2))
    features = torch.from_numpy(np.concatenate([np.eye(10)[labels[:, 0]], np.eye(10)[labels[:, 1]]], axis=1)).float()
    asked = [uniform(f"digit-{number}", labels[:, number], 10) for number in range(2)]
    controls = [control_task(asked[0], asked[1], 0), control_task(asked[1], asked[0], 0)]
    (found,) = linear_scores(features[None], asked + controls, parts, CPU)
    rows = [
        record(one, condition="open" if number < 2 else "control-task", **site()) for number, one in enumerate(found)
    ]
    results = summarise(rows, with_labels(task, labels), parts)
    opened = results[(results["condition"] == "open") & (results["target"] == "digit-0")].iloc[0]
    assert opened["accuracy"] > 0.99
    assert opened["selectivity"] > 0.4


def test_shuffled_labels_are_the_same_labels_elsewhere() -> None:
    labels = np.array([0, 1, 2, -1] * 20)
    dealt = shuffled(uniform("digit-0", labels, 3), np.log(np.full(3, 1 / 3)), 0)
    assert sorted(dealt.labels) == sorted(labels)
    assert ((dealt.labels < 0) == (labels < 0)).all()
    assert (dealt.labels != labels).any()


def text_world(n: int, told: bool, seed: int = 0) -> tuple[csr_array, np.ndarray, Split]:
    """Retained texts of which one token is the label, or is not."""
    rng = np.random.default_rng(seed)
    _, parts = bench(n, 4)
    labels = rng.integers(0, 4, n)
    shown = labels if told else rng.integers(0, 4, n)
    texts = [(np.array([9, 10 + shown[row], 11 + rng.integers(0, 3)]), np.array([0, 5, 6])) for row in range(n)]
    return text_features(texts, [0] * n, parts.train), labels, parts


def test_the_text_baseline_reads_what_stands_there_and_nothing_else() -> None:
    for told in (True, False):
        features, labels, parts = text_world(1_500, told)
        posterior = text_posterior(features, labels, 4, parts)
        np.testing.assert_allclose(np.exp(posterior).sum(axis=1), 1, atol=1e-6)
        for rows in (parts.train, parts.test):  # training rows are told by folds that have not seen them
            loss = -posterior[rows, labels[rows]].mean() / np.log(2)
            assert loss < 0.2 if told else 1.99 < loss < 2.05


def test_gaps_are_part_of_the_text() -> None:
    """Who holds a cache sees how much was erased."""
    rng = np.random.default_rng(3)
    _, parts = bench(800, 2)
    labels = rng.integers(0, 2, 800)
    texts = [(np.array([1, 2]), np.array([0, 5 + labels[row]])) for row in range(800)]
    posterior = text_posterior(text_features(texts, [0] * 800, parts.train), labels, 2, parts)
    assert -posterior[parts.test, labels[parts.test]].mean() / np.log(2) < 0.2


def test_marginals_never_rule_a_class_out() -> None:
    found = marginals(np.array([0, 0, 1, -1]), 3, np.arange(4))
    np.testing.assert_allclose(np.exp(found), [0.5, 1 / 3, 1 / 6])


@cache
def toy() -> gt.Checkpoint:
    return gt.load("toy-open", device="cpu")


def few(task: Task, *numbers: int) -> Task:
    """Some of a task's targets."""
    samples = tuple(replace(one, labels=tuple(one.labels[number] for number in numbers)) for one in task.samples)
    return replace(task, samples=samples, targets=tuple(task.targets[number] for number in numbers))


def quick(task: Task, folder: Path, settings: Settings = QUICK) -> Probed:
    return run(toy(), task, settings, folder / "run")


def test_a_sound_run_is_valid_and_leaves_its_folder(tmp_path: Path) -> None:
    found = quick(few(ledger_task(toy(), 3, 700), 0, 5, 6), tmp_path)
    assert found.valid
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["command"], summary["valid"], summary["failures"]) == ("probe", True, [])
    keys = {"target", "carrier", "hop", "layer", "kv", "probe", "condition", "n_train", "n_test", "valid"}
    keys |= {name + end for name in ("accuracy", "bits") for end in ("", "_low", "_high")}
    assert all(keys <= set(row) for row in summary["results"])
    direct = found.results.query("condition == 'open' and hop == 0 and target == 'hidden-*' and probe == 'linear'")
    assert direct["bits"].item() > 1
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} >= {"layers.png", "layers.svg", "hops.png"}
    assert not (tmp_path / "run" / "features").exists()
    traces = pd.read_parquet(tmp_path / "run" / "traces.parquet")
    assert len(traces) == 700
    assert set(traces["split"]) == {"train", "validation", "test"}
    assert not set(traces["secret"][traces["split"] == "train"]) & set(traces["secret"][traces["split"] == "test"])


def test_a_baseline_that_misses_what_the_text_tells_is_caught_by_the_sealed_cache(tmp_path: Path) -> None:
    """The digits that a memento shows are asked for, and the text is said not to tell them."""
    task = ledger_task(toy(), 0, 700)
    shown = [tuple(toy().tokenizer.convert_ids_to_tokens(one.ids)) for one in task.samples]
    ends = [[k for k, token in enumerate(tokens) if token == "<|summary_end|>"][1] for tokens in shown]
    samples = [
        replace(one, labels=(int(tokens[end - 1]),), where=(end - 1,))
        for one, tokens, end in zip(task.samples, shown, ends, strict=True)
    ]
    wrong = Task("shown", tuple(samples), (Target("shown", tuple("0123456789")),), {"shown": task.exact["note-0"]})
    found = quick(wrong, tmp_path)
    assert not found.valid
    assert any(failure.startswith("sealed: shown") for failure in found.failures)
    assert any(failure.startswith("text: shown") for failure in found.failures)
    assert not found.results["valid"].any()


def test_a_memento_that_knows_too_early_is_caught(tmp_path: Path) -> None:
    """The secret is said to stand one block later than it does."""
    task = few(ledger_task(toy(), 3, 700), 5, 6)
    late = replace(task, samples=tuple(replace(one, block=2) for one in task.samples))
    found = quick(late, tmp_path, replace(QUICK, hops=(0,)))
    assert any(failure.startswith("causal") for failure in found.failures)


def test_a_blind_probe_is_caught(tmp_path: Path) -> None:
    task = few(ledger_task(toy(), 3, 700), 0)
    dealt = np.random.default_rng(0).permutation(len(task.samples))
    samples = [replace(one, labels=task.samples[other].labels) for one, other in zip(task.samples, dealt, strict=True)]
    found = quick(replace(task, samples=tuple(samples)), tmp_path)
    assert any(failure.startswith("unerased") for failure in found.failures)


def test_shuffled_labels_that_can_be_told_are_caught() -> None:
    labels = np.arange(400) % 2
    task, parts = bench(400, 2)
    sure = np.where(np.arange(2)[None] == labels[:, None], np.log(0.9), np.log(0.1))
    row = record(score(uniform("digit-0", labels, 2), sure, parts), condition="shuffled", **site())
    results = summarise([row], with_labels(task, labels[:, None]), parts)
    assert failed_controls(results)[0].startswith("shuffled")


def test_targets_of_one_name_are_averaged() -> None:
    assert [family(name) for name in ("note-3", "hidden-0", "last-number", "word")] == [
        "note-*",
        "hidden-*",
        "last-number",
        "word",
    ]


def test_the_text_of_ledger_tells_nothing_of_the_hidden_digits() -> None:
    """The exact posterior that `ledger_task` states, held to the text baseline."""
    task = few(ledger_task(toy(), 2, 1_500), 0, 5)
    texts = retained(toy(), task)
    _, parts = bench(1_500, 10)
    features = text_features(texts, [1] * 1_500, parts.train)
    for number, target in enumerate(task.targets):
        labels = task.labels(number)
        posterior = text_posterior(features, labels, 10, parts)
        loss = -posterior[parts.test, labels[parts.test]].mean() / np.log(2)
        assert loss > np.log2(10) - 0.03, target.name


def test_few_samples_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(gt.UserError, match="8 samples for 10 classes"):
        quick(ledger_task(toy(), 1, 8), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_sample_is_what_its_place_says() -> None:
    one = Sample([1, 2], "b", "s", 0, (1,), (0,))
    assert one.ids[one.where[0]] == 2
