"""The summary of a sweep: means over targets, p-values, controls, and fallback to the text baseline."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.probe_calibration import site, uniform_target
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.probing.evidence import (
    KEY_COLUMNS,
    failed_controls,
    fall_back_to_text,
    summarise,
)
from ghosttrace.probing.split import Split
from ghosttrace.probing.target_families import family_means, target_family


def test_targets_of_one_name_are_averaged() -> None:
    assert [target_family(name) for name in ("note-3", "hidden-0", "last-number", "word")] == [
        "note-*",
        "hidden-*",
        "last-number",
        "word",
    ]


def probe_row(gained: list[float] | np.ndarray, **more: Any) -> dict[str, Any]:
    """Return a row of `PROBE_RECORDS` for the first samples."""
    row = {"condition": "open", **site(), "target": "digit-0", "n_train": 9, "validation_bits": 0.0}
    scores = {"log2p": list(gained), "text_log2p": [0.0] * len(gained), "hit": [True] * len(gained)}
    return row | scores | {"sample": list(range(len(gained)))} | more


def world(n: int, labels: np.ndarray | None = None) -> tuple[Task, Split]:
    """Return a task with a target per column of labels, and a split that trains and tests on all samples."""
    labels = np.zeros((n, 1), int) if labels is None else labels
    everything = np.arange(n)
    names = tuple(Target(f"digit-{number}", tuple("0123456789")) for number in range(labels.shape[1]))
    samples = tuple(Sample((), str(row), str(row), 0, (), tuple(map(int, labels[row]))) for row in range(n))
    return Task("made", samples, names), Split(everything, everything[:0], everything, everything, "bases")


def test_open_rows_and_controls_are_adjusted_separately() -> None:
    rng = np.random.default_rng(0)
    conditions = ("open", "sealed", "causal", "shuffled", "open", "open", "control-task")
    rows = [
        probe_row(rng.normal(0.03 * layer, 0.3, 40), condition=condition, **site(layer))
        for layer, condition in enumerate(conditions)
    ]
    table = summarise(rows, *world(40))
    for together in (("open",), ("sealed", "causal", "shuffled")):
        group = table[table["condition"].isin(together)].sort_values("p")
        steps = group["p"].to_numpy() * [3, 2, 1]
        assert 0 < steps[0] < steps[1] and steps[2] < 1
        np.testing.assert_allclose(group["p_holm"], np.maximum.accumulate(steps))
    assert table["p_holm"].isna().to_list() == [condition == "control-task" for condition in conditions]


def test_mean_over_targets_uses_samples_with_all_targets() -> None:
    gained = [[0.5, 1.0, 2.0, 4.0], [0.25, 0.5, 1.0, 8.0]]
    rows = [
        probe_row(gained[0], sample=[0, 1, 2, 3], hit=[1, 1, 0, 0], n_train=70, validation_bits=0.5),
        probe_row(gained[1], target="digit-1", sample=[1, 2, 3, 5], hit=[1, 1, 1, 0], n_train=60, validation_bits=1.0),
    ]
    (mean,) = family_means(rows, {"digit-0": 0.1, "digit-1": 0.3}, KEY_COLUMNS[:-1])
    assert (mean["target"], mean["n_train"], mean["validation_bits"]) == ("digit-*", 60, 0.75)
    assert mean["sample"] == [1, 2, 3]
    np.testing.assert_allclose(mean["log2p"], [0.625, 1.25, 2.5])
    np.testing.assert_allclose(mean["hit"], [1.0, 0.5, 0.5])
    average = summarise(rows, *world(6, np.zeros((6, 2), int))).set_index("target").loc["digit-*"]
    assert average["bits"] == pytest.approx(4.375 / 3) and average["accuracy"] == pytest.approx(2 / 3)
    assert (average["n_train"], average["n_test"], average["n_clusters"]) == (60, 3, 3)


def test_chance_is_the_accuracy_of_the_most_common_training_class() -> None:
    labels = np.array([[0], [1], [1], [1], [2], [1], [1], [1], [-1], [0]])
    task, parts = world(10, labels)
    parts = replace(parts, train=np.arange(5), test=np.arange(5, 10))
    table = summarise([probe_row([0.1] * 4, sample=[5, 6, 7, 9])], task, parts)
    assert table["chance"].item() == 0.75


@pytest.mark.parametrize(("bits", "failed"), [(0.005, False), (0.05, True)])
@pytest.mark.parametrize("condition", ["sealed", "causal", "shuffled"])
def test_bits_above_the_threshold_fail_a_control(condition: str, bits: float, failed: bool) -> None:
    gained = bits * np.tile([0.9, 1.1], 20)
    failures = failed_controls(summarise([probe_row(gained, condition=condition)], *world(40)))
    assert [failure.partition(":")[0] for failure in failures] == [condition] * failed


def test_fewer_than_five_test_clusters_fail_the_controls() -> None:
    for clusters, message in ((4, "controls: 4 independent traces"), (5, "")):
        task, parts = world(20)
        parts = replace(parts, cluster=np.arange(20) % clusters)
        failures = failed_controls(summarise([probe_row([0.0] * 20)], task, parts))
        assert "".join(failures)[: len("controls: 4 independent traces")] == message


@pytest.mark.parametrize(("errors", "trusted"), [(-1.1, False), (0.9, False), (1.1, True)])
def test_probe_is_used_if_its_gain_exceeds_one_standard_error(errors: float, trusted: bool) -> None:
    spread = np.random.default_rng(0).normal(size=30)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    gained = np.repeat(spread + errors / np.sqrt(30), 4)  # four samples of a cluster count as one
    target = uniform_target("digit-0", np.zeros(150, int), 2)
    posterior = target.text.copy()
    posterior[20:140, 0] += gained
    cluster = np.concatenate([np.arange(100, 120), np.repeat(np.arange(30), 4), np.arange(200, 210)])
    log_p = fall_back_to_text(posterior, target, np.arange(20, 140), cluster)
    np.testing.assert_array_equal(log_p, posterior if trusted else target.text)


def test_probe_selected_on_one_cluster_falls_back_to_text() -> None:
    target = uniform_target("digit-0", np.zeros(10, int), 2)
    assert fall_back_to_text(target.text + 0.5, target, np.arange(10), np.zeros(10, int)) is target.text
