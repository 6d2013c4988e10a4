"""The columns of an effect in an ablation: joint intervals, clusters, equivalence and the check of control arms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.laws import MARKUP

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS, Part
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.ablation.summary import failed_controls, summarise
from ghosttrace.bench import load_bench
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.paired import paired_effect


def test_control_arms_are_adjusted_over_benchmarks() -> None:
    """One of ten benchmarks at p = 0.03 is what chance gives; the same alone, or p = 0.004 of ten, is not."""
    arms, law = {name: ARMS[name]() for name in ("placebo", "restart")}, MementoLaw(MARKUP, Policy(True))
    rows = [{"bench": f"b{i}", "arm": "placebo", "effect": -0.1, "p": 0.03 if i == 3 else 0.6} for i in range(10)]
    benches = [replace(load_bench("ledger-h1", 1)[0], name=row["bench"], ceiling=None) for row in rows]
    assert failed_controls(pd.DataFrame(rows), arms, benches, Part(), law) == ()
    rows[3]["p"] = 0.004
    assert failed_controls(pd.DataFrame(rows), arms, benches, Part(), law) == (
        "b3: placebo moved accuracy by -10.0 points",
    )


def sample_rows(scores: dict[str, np.ndarray], cluster_size: int) -> pd.DataFrame:
    """Return samples with one repetition per problem, in clusters of this size."""
    return pd.DataFrame(
        {"bench": "b", "arm": arm, "problem": f"p{i}", "cluster": f"c{i // cluster_size}", "correct": bool(right)}
        | {"finish": "eos", "donor_answer": None, "extracted": "1", "answer": "1", "blocks": 1}
        | {"peak_kv_tokens": 1, "auc_kv_tokens": 1}
        for arm, values in scores.items()
        for i, right in enumerate(values)
    )


def test_summary_has_joint_intervals_clusters_and_equivalence() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random(160) < 0.7
    scores = {"memento": reference, "placebo": reference, "restart": reference & (np.arange(160) % 4 > 0)}
    table = summarise(sample_rows(scores, 1), 1, margin=0.05).set_index("arm")
    assert table["n_clusters"].tolist() == [160] * 3
    assert table["equivalent"].tolist() == [None, True, False]
    assert pd.isna(table.loc["memento", "equivalence_low"]) and table.loc["placebo", "equivalence_high"] < 0.05
    for arm in ("placebo", "restart"):
        joint = paired_effect(scores[arm].astype(float), reference.astype(float), alpha=0.025)
        row = table.loc[arm]
        assert (row["effect_low_joint"], row["effect_high_joint"]) == (joint.low, joint.high)
        assert row["effect_low_joint"] < row["effect_low"] < row["effect_high"] < row["effect_high_joint"]
    grouped = summarise(sample_rows(scores, 8), 1).set_index("arm")
    assert grouped["n_clusters"].tolist() == [20] * 3 and grouped["equivalent"].isna().all()
    assert grouped.loc["placebo", "effect_high"] > 5 * table.loc["placebo", "effect_high"]
    rotated = {arm: np.roll(values, 3) if arm == "restart" else values for arm, values in scores.items()}
    few = [summarise(sample_rows(rotated, size), 1).set_index("arm").loc["restart", "p"] for size in (1, 32)]
    assert few[0] < 0.05 and few[1] >= 2 * 0.5**5


@pytest.mark.parametrize("margin", [0.0, -1.0, 100.0, float("nan")])
def test_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(UserError, match="--margin must lie between 0 and 100"):
        AblationSettings(margin=margin)


def test_margin_is_recorded_and_tested() -> None:
    run = gt.ablate("toy-mixed", "ledger-h1", ["placebo"], limit=4, margin=2.5)
    assert run.configuration["settings"]["margin"] == 2.5
    assert run.results["equivalent"].tolist() == [None, False]
    assert "not shown to be equivalent within ±2.5 points" in run.page()


def test_clusters_of_a_jsonl_file_reach_samples_and_summary(tmp_path: Path) -> None:
    rows = [
        {"id": f"{part}-{i}", "problem": f"{i}?", "answer": "1", "cluster": f"variant {i}"}
        for i in range(2)
        for part in "ab"
    ]
    rows.append({"id": "alone", "problem": "?", "answer": "2"})
    file = tmp_path / "variants.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (bench,) = load_bench(str(file))
    assert [problem.cluster for problem in bench.problems] == [row.get("cluster") for row in rows]
    unclustered = replace(bench, problems=tuple(replace(problem, cluster=None) for problem in bench.problems))
    assert bench.digest != unclustered.digest
    # The digits of `ledger` are all that the bundled models can read.
    (ledger,) = load_bench("ledger-h1", 4)
    pairs = tuple(replace(problem, cluster=f"pair {i // 2}") for i, problem in enumerate(ledger.problems))
    run = gt.ablate("toy-mixed", replace(ledger, problems=pairs), ["placebo"])
    assert (
        run.samples["cluster"].tolist() == ["cluster pair 0", "cluster pair 0", "cluster pair 1", "cluster pair 1"] * 2
    )
    assert run.results["n_clusters"].tolist() == [2, 2] and run.results["n_problems"].tolist() == [4, 4]
    alone = gt.ablate("toy-mixed", ledger, ["placebo"])
    assert alone.samples["cluster"].tolist() == alone.samples["problem"].tolist()
    assert alone.results.loc[1, "effect_high"] < run.results.loc[1, "effect_high"]


@pytest.mark.parametrize("cluster", ["", [1], {"a": 1}, True])
def test_invalid_cluster_is_refused(tmp_path: Path, cluster: object) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"id": 1, "problem": "?", "answer": "1", "cluster": cluster}))
    with pytest.raises(UserError, match=r"line 1 has the cluster .*: give a name, or leave cluster out"):
        load_bench(str(file))
