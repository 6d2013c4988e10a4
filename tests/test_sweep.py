"""Sweeps on a toy: a valid run, runs whose controls must fail, and the choice of sites."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.probes import ClassMeans
from rich.table import Table
from typer.testing import CliRunner

import ghosttrace as gt
from experiments.probe_calibration import simulated_task, site, uniform_target
from ghosttrace.bench.ledger import ledger_task
from ghosttrace.cli import main as cli
from ghosttrace.data.task import Target, Task
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import NEGLIGIBLE_BITS, PROBE_RECORDS, ProbeTarget
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.sweep import Fit, Sweep
from ghosttrace.probing.text_baseline import fit_text_posterior, retained_tokens, text_features
from ghosttrace.results import open_run
from ghosttrace.runs.folder import write_json
from ghosttrace.runs.records import Records

QUICK = ProbeSettings(hops=(0, 1), layers=(2,), kv=("v",), pool=2, mlp=False)


@cache
def toy() -> gt.Checkpoint:
    return gt.load("toy-open", device="cpu")


def with_targets(task: Task, *numbers: int) -> Task:
    """Return the task with some of its targets."""
    samples = tuple(
        replace(sample, labels=tuple(sample.labels[number] for number in numbers)) for sample in task.samples
    )
    return replace(task, samples=samples, targets=tuple(task.targets[number] for number in numbers))


def quick(task: Task, folder: Path | None = None, hops: tuple[int, ...] = (0, 1)) -> ProbeResult:
    out = None if folder is None else folder / "run"
    return probe(toy(), task=task, hops=hops, layers=(2,), kv=("v",), pool=2, mlp=False, out=out)


@pytest.mark.slow
def test_valid_run_and_its_folder(tmp_path: Path) -> None:
    result = quick(with_targets(ledger_task(toy(), 700, level=3), 0, 5, 6), tmp_path)
    assert result.valid
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["command"], summary["valid"], summary["failures"]) == ("probe", True, [])
    keys = {"target", "carrier", "hop", "layer", "kv", "probe", "condition", "n_train", "n_test", "valid"}
    keys |= {"headline", "significant"} | {name + end for name in ("accuracy", "bits") for end in ("", "_low", "_high")}
    assert all(keys <= set(row) for row in summary["results"])
    direct = result.results.query("condition == 'open' and hop == 0 and target == 'hidden-*' and probe == 'linear'")
    assert direct["bits"].item() > 1
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} >= {"layers.png", "layers.svg", "hops.png"}
    assert not (tmp_path / "run" / "features").exists()
    assert open_run(tmp_path / "run") == result and "All controls passed" in result.page()
    traces = pd.read_parquet(tmp_path / "run" / "traces.parquet")
    assert len(traces) == 700
    assert set(traces["split"]) == {"train", "validation", "test"}
    assert not set(traces["secret"][traces["split"] == "train"]) & set(traces["secret"][traces["split"] == "test"])


@pytest.mark.slow
def test_weak_text_baseline_fails_the_sealed_control() -> None:
    """The targets are digits in the memento text, with a text baseline that ignores them."""
    task = ledger_task(toy(), 700, level=0)
    shown = [tuple(toy().tokenizer.convert_ids_to_tokens(sample.ids)) for sample in task.samples]
    ends = [[k for k, token in enumerate(tokens) if token == "<|summary_end|>"][1] for tokens in shown]
    samples = [
        replace(sample, labels=(int(tokens[end - 1]),), secret_indices=(end - 1,))
        for sample, tokens, end in zip(task.samples, shown, ends, strict=True)
    ]
    wrong = Task(
        "shown", tuple(samples), (Target("shown", tuple("0123456789")),), {"shown": task.exact_log_posteriors["note-0"]}
    )
    result = quick(wrong)
    assert not result.valid
    assert any(failure.startswith("sealed: shown") for failure in result.failures)
    assert any(failure.startswith("text: the text baseline predicts shown") for failure in result.failures)
    assert not result.results["valid"].any()


@pytest.mark.slow
def test_label_readable_before_its_block_fails_the_causal_control() -> None:
    """The task states a block after the true block of the secret."""
    task = with_targets(ledger_task(toy(), 700, level=3), 5, 6)
    late = replace(task, samples=tuple(replace(sample, block=2) for sample in task.samples))
    result = quick(late, hops=(0,))
    assert any(failure.startswith("causal") for failure in result.failures)


@pytest.mark.slow
def test_unreadable_labels_fail_the_positive_control() -> None:
    task = with_targets(ledger_task(toy(), 700, level=3), 0)
    dealt = np.random.default_rng(0).permutation(len(task.samples))
    samples = [
        replace(sample, labels=task.samples[other].labels) for sample, other in zip(task.samples, dealt, strict=True)
    ]
    result = quick(replace(task, samples=tuple(samples)))
    assert any(failure.startswith("unerased") for failure in result.failures)


@pytest.mark.slow
def test_text_of_ledger_does_not_determine_hidden_digits() -> None:
    """The exact posterior of `ledger_task` agrees with the fitted text baseline."""
    task = with_targets(ledger_task(toy(), 1_500, level=2), 0, 5)
    texts = retained_tokens(toy(), task)
    _, parts = simulated_task(1_500, 10)
    features = text_features(texts, [1] * 1_500, parts.train)
    for number, target in enumerate(task.targets):
        labels = task.labels(number)
        posterior = fit_text_posterior(features, labels, 10, parts)
        loss = -posterior[parts.test, labels[parts.test]].mean() / np.log(2)
        assert loss > np.log2(10) - 0.03, target.name


def test_few_samples_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(gt.UserError, match="8 samples for 10 classes"):
        quick(ledger_task(toy(), 8, level=1), tmp_path)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Simulated:
    """Random states of one cache that encode the label at some hops."""

    labels: np.ndarray
    hops: tuple[int, ...]
    seed: int

    def load(self, carrier: Carrier, layer: int, kind: str, heads: Any = None) -> torch.Tensor:
        """Return states float32[N, 1, 8]."""
        noise = np.random.default_rng([self.seed, carrier.hop + 1, layer]).normal(size=(len(self.labels), 1, 8))
        shown = 6 * np.eye(8)[self.labels][:, None] * (carrier.hop in self.hops)
        return torch.from_numpy(noise + shown).float()


def sweep_of(settings: ProbeSettings, targets: list[ProbeTarget], caches: dict[str, Any]) -> Sweep:
    _, parts = simulated_task(len(targets[0].labels), 4)
    return Sweep(toy(), settings, parts, caches, targets, Carrier("secret"))


def test_probes_read_cache_and_labels_of_their_condition() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 400)
    caches = {"open": Simulated(labels, (0,), 1), "sealed": Simulated(labels, (), 2)}
    records = Records(PROBE_RECORDS)
    settings = replace(QUICK, hops=(0,), mlp=True, probes=(ClassMeans(),))
    sweep_of(settings, [uniform_target("digit-0", labels, 4)], caches).run(records)
    bits = {}
    for row in map(records.get, records.keys()):
        bits[row["condition"], row["probe"]] = np.mean(row["log2p"]) - np.mean(row["text_log2p"])
    probes = ("linear", "mlp", "class-means")
    expected = {("open", name) for name in (*probes, "online")} | {("unerased", "linear")}
    blind = {(condition, name) for condition in ("sealed", "causal", "shuffled") for name in probes}
    assert set(bits) == expected | blind | {("sealed", "online")}
    assert min(bits[condition] for condition in expected) > 0.5
    assert max(bits[condition] for condition in set(bits) - expected) < NEGLIGIBLE_BITS


@pytest.mark.parametrize("describe", [True, False])
def test_no_probe_is_fitted_twice_and_none_again(describe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 400)
    caches = {"open": Simulated(labels, (0, 1, 2), 1), "sealed": Simulated(labels, (), 2)}
    settings = replace(QUICK, hops=(0, 1, 2), probes=(ClassMeans(),), describe=describe)
    sweep, records, fitted = (
        sweep_of(settings, [uniform_target("digit-0", labels, 4)], caches),
        Records(PROBE_RECORDS),
        [],
    )

    def recorded_fit(self: Sweep, job: Fit) -> Any:
        for row in list(fit(self, job)):
            fitted.append(records.key_of(row))
            yield row

    fit = Sweep.fit
    monkeypatch.setattr(Sweep, "fit", recorded_fit)
    sweep.run(records)
    assert len(fitted) == len(set(fitted)) == len(records), "all hops share one causal control"
    sweep.run(records)
    assert len(fitted) == len(records)


def test_best_site_has_the_largest_validation_gain() -> None:
    settings = ProbeSettings(hops=(0, 1), layers=(1, 2, 3), kv=("k", "v"))
    targets = [uniform_target(name, np.zeros(60, int), 4) for name in ("first", "last")]
    sweep, records = sweep_of(settings, targets, {}), Records(PROBE_RECORDS)
    gains = {0: [1, 0, 2, 5, 3, 0], 1: [0, 1, 0, -2, 4, 3]}  # keys and values of each layer
    for hop, of_hop in gains.items():
        for number, gain in enumerate(of_hop):
            for target, share in zip(targets, (2, -1), strict=True):  # a single target would select another site
                row = {"n_train": 9, "validation_bits": share * gain, "sample": [], "log2p": [], "text_log2p": []}
                row_site = {"condition": "open", **site(1 + number // 2, "kv"[number % 2], hop)}
                records.add({**row_site, "target": target.name, "hit": [], **row})
    assert [(s.carrier.hop, s.layers, s.kv) for s in sweep.best(records)] == [(0, (2,), "v"), (1, (3,), "k")]


def test_block_carrier_starts_at_the_next_hop() -> None:
    carriers = ProbeSettings(kinds=("memento", "block"), hops=(0, 1)).carriers
    assert [(carrier.kind, carrier.hop) for carrier in carriers] == [
        *(("memento", hop) for hop in (-1, 0, 1)),
        *(("block", hop) for hop in (-1, 1)),
    ]
    ProbeSettings(kinds=("memento", "block"), hops=(0,)).check(toy())
    with pytest.raises(gt.UserError, match="give --hops 1 or later"):
        ProbeSettings(kinds=("block",), hops=(0,)).check(toy())


@pytest.mark.parametrize("option", ["--limit", "--samples", "--batch-tokens"])
def test_empty_selections_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(gt.UserError, match="--limit and --batch-tokens must be at least 1"):
        cli.app(["probe", option, "0", "--bench", "none", "--out", str(tmp_path)], standalone_mode=False)


@pytest.mark.parametrize(("valid", "code"), [(True, 0), (False, 12)])
def test_finished_run_returns_its_exit_code_again(
    valid: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghosttrace.report.probing.table.probe_table", lambda *_: Table())  # there are no results
    monkeypatch.setattr("ghosttrace.probing.result.probe_findings", lambda *_: [])
    write_json(tmp_path / "run.json", {"command": "probe", "options": {"seed": 0}})
    write_json(tmp_path / "summary.json", {"command": "probe", "valid": valid, "failures": [], "results": []})
    (tmp_path / "samples.parquet").touch()
    assert CliRunner().invoke(cli.app, ["probe", "--resume", str(tmp_path)]).exit_code == code
