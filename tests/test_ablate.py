"""`ablate` end to end on the bundled models: results, run folder and invalid input."""

import json
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import command
from helpers.laws import CHAT, MARKUP
from rich.console import Console

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS, Part
from ghosttrace.ablation.backend import explain_out_of_memory, largest_batch_size
from ghosttrace.ablation.collect import BenchArm
from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.run import ablate, plan_bench_arms, run_ablation
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.ablation.summary import at_k, failed_controls
from ghosttrace.bench import load_bench
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.parse import parse_law
from ghosttrace.model.checkpoint import load
from ghosttrace.model.generate import Request
from ghosttrace.model.sampling import Sampling
from ghosttrace.report.ablation.figures import kv_curves
from ghosttrace.report.ablation.table import ablation_table

LIMIT = 60


@pytest.fixture(scope="module", params=["toy-mixed", "toy-open"])
def outcome(request: pytest.FixtureRequest) -> tuple[str, AblationResult]:
    return request.param, ablate(request.param, arms=("placebo", "restart", "swap"), limit=LIMIT)


def accuracy(ablation: AblationResult, arm: str) -> dict[str, float]:
    rows = ablation.results[ablation.results["arm"] == arm]
    return dict(zip(rows["bench"], rows["accuracy"], strict=True))


@pytest.mark.slow
def test_bundled_models_show_the_ghost_channel(outcome: tuple[str, AblationResult]) -> None:
    name, ablation = outcome
    assert min(accuracy(ablation, "memento").values()) >= 0.95
    assert min(accuracy(ablation, "placebo").values()) >= 0.95
    restart = accuracy(ablation, "restart")
    assert restart["ledger-h1"] <= 0.2
    assert max(restart["ledger-h2"], restart["ledger-h3"]) <= 0.08
    # At h = 0 the text suffices, yet a model that was never trained on a sealed cache fails.
    assert restart["ledger-h0"] >= 0.95 if name == "toy-mixed" else restart["ledger-h0"] <= 0.2
    assert ablation.valid, ablation.failures


@pytest.mark.slow
def test_swapped_answers_follow_the_donor(outcome: tuple[str, AblationResult]) -> None:
    _, ablation = outcome
    swap = ablation.results[ablation.results["arm"] == "swap"].set_index("bench")
    assert swap.loc["ledger-h0", "keeps_original"] >= 0.95
    for level in (1, 2, 3):
        row = swap.loc[f"ledger-h{level}"]
        assert row["follows_donor"] >= 0.8
        assert row["follows_donor"] + row["keeps_original"] + row["neither"] == pytest.approx(1)


@pytest.mark.slow
def test_placebo_gives_the_answers_of_memento(outcome: tuple[str, AblationResult]) -> None:
    _, ablation = outcome
    by_arm = {arm: part["response"].tolist() for arm, part in ablation.samples.groupby("arm")}
    assert by_arm["placebo"] == by_arm["memento"]
    assert by_arm["restart"] != by_arm["memento"]


@pytest.mark.slow
def test_kv_columns_equal_the_counts_from_expiry(outcome: tuple[str, AblationResult]) -> None:
    _, ablation = outcome
    problem = ablation.samples["problem"][0]
    rows = ablation.samples[ablation.samples["problem"] == problem]
    held = kv_curves(rows, ablation.configuration)
    for row in rows.to_dict("records"):
        curve = held[row["arm"]][:-1]
        response = curve[len(row["prompt_ids"]) :]
        assert (row["peak_kv_tokens"], row["auc_kv_tokens"]) == (curve.max(), response.sum())
    for name in ("peak_kv", "auc_kv"):
        assert (ablation.results[f"{name}_bytes"] == 4096 * ablation.results[f"{name}_tokens"]).all()


def test_arms_share_random_draws() -> None:
    """At a temperature above 0, equivalent arms give equal samples; other repetitions and seeds give other samples."""
    settings = {"arms": ("placebo",), "limit": 20, "repetitions": 2, "sampling": {"temperature": 1.5}}
    run, repeat = (ablate("toy-mixed", "ledger-h1", seed=0, **settings) for _ in range(2))
    pd.testing.assert_frame_equal(run.samples, repeat.samples)
    responses = run.samples.pivot_table(
        index=["problem", "repetition"], columns="arm", values="response", aggfunc="first"
    )
    assert (responses["placebo"] == responses["memento"]).all()
    first, second = (run.samples.query("arm == 'memento' and repetition == @r")["response"].tolist() for r in (0, 1))
    assert first != second
    assert (
        ablate("toy-mixed", "ledger-h1", seed=1, **settings).samples["response"].tolist()
        != run.samples["response"].tolist()
    )


def test_results_do_not_depend_on_batch_size() -> None:
    small, large = (
        ablate("toy-mixed", "ledger-h2", arms=("restart", "swap"), limit=12, batch_size=n).samples for n in (5, 64)
    )
    assert small["response"].tolist() == large["response"].tolist()


def test_without_a_harness_the_model_generates_observations() -> None:
    """Responses have valid form, and the answer fits the generated increments."""
    for name in ("toy-mixed", "toy-open"):
        checkpoint = load(name)
        fits = 0
        problems = load_bench("ledger-h2", 20)[0].problems
        requests = [Request(checkpoint.prompt_ids(p.prompt), (0, i)) for i, p in enumerate(problems)]
        done = gt.generate(checkpoint.model, requests, checkpoint.markup, checkpoint.policy, Sampling(128))
        for problem, generation in zip(problems, done, strict=True):
            ids = generation.prompt + generation.tokens
            text = checkpoint.tokenizer.convert_ids_to_tokens(ids)
            state = np.array([int(digit) for digit in problem.prompt[1:]])
            for block in gt.find_blocks(ids, checkpoint.markup):
                letters = text[block.start + 6 : block.end : 2]
                assert len(letters) == 6
                state += np.array([ord(letter) - ord("a") for letter in letters]).reshape(2, 3).sum(0)
            fits += text[-4:] == [*map(str, state % 10), "<eos>"]
        assert fits >= 18, name


@pytest.mark.slow
def test_sealing_a_part_of_the_cache() -> None:
    """Sealing all layers fails at h = 1; sealing only the first layer, which depends on single tokens, does not."""
    settings = {"arms": ("restart",), "limit": 30}
    first = ablate("toy-mixed", "ledger-h1", part=Part(layers=(0,)), **settings)
    assert accuracy(first, "restart")["ledger-h1"] >= 0.95
    values = ablate("toy-mixed", "ledger-h1", part=Part(kv=("v",)), **settings)
    assert accuracy(values, "restart")["ledger-h1"] <= 0.5


def test_controls_can_fail() -> None:
    row = {"bench": "ledger-h1", "arm": "placebo", "effect": -0.2, "p": 0.03}
    leak = {"bench": "ledger-h1", "arm": "restart", "accuracy": 0.5, "accuracy_low": 0.4, "p": 0.5}
    benches, law = load_bench("ledger-h1", 1), MementoLaw(MARKUP, Policy(True))
    kept = replace(law, policy=Policy(True, keep_last_n_blocks=1))
    arms = {name: ARMS[name]() for name in ("placebo", "restart")}
    assert "placebo moved" in failed_controls(pd.DataFrame([row]), arms, benches, Part(), law)[0]
    assert "no sealed cache allows" in failed_controls(pd.DataFrame([leak]), arms, benches, Part(), law)[0]
    assert failed_controls(pd.DataFrame([leak]), arms, benches, Part(kv=("v",)), law) == ()
    assert failed_controls(pd.DataFrame([leak]), arms, benches, Part(), kept) == ()


@pytest.mark.parametrize("spec, holds", [("tools:0", True), ("tools:1", True), ("tools:2", False), ("none", False)])
def test_the_ceiling_of_agent_sessions_is_checked_where_it_holds(spec: str, holds: bool) -> None:
    leak = {"bench": "agent-erased", "arm": "restart", "accuracy": 0.5, "accuracy_low": 0.4, "p": 0.5}
    arms, law = {"restart": ARMS["restart"]()}, parse_law(spec, CHAT)
    failures = failed_controls(pd.DataFrame([leak]), arms, load_bench("agent-erased", 1), Part(), law)
    assert ["no sealed cache allows" in failure for failure in failures] == [True] * holds


def test_at_k_counts_votes_and_passes() -> None:
    """Two problems with four samples: the majority is right (in different spellings) on one, and wrong on the other."""
    answers = {
        "a": [("1/2", True), ("0.5", True), ("3", False), (None, False)],
        "b": [("7", True), *[("8", False)] * 3],
    }
    rows = [
        {"bench": "b", "arm": "memento", "problem": name, "cluster": name, "correct": correct, "extracted": extracted}
        | {"rule": "boxed/x"}
        for name, samples in answers.items()
        for extracted, correct in samples
    ]
    table = at_k(pd.DataFrame(rows)).set_index("k")
    assert list(table.index) == [1, 2, 4]
    assert table.loc[1, "pass_at_k"] == table.loc[1, "maj_at_k"] == pytest.approx(3 / 8)
    assert table.loc[4, ["pass_at_k", "maj_at_k"]].tolist() == [1.0, 0.5]
    assert table.loc[2, "pass_at_k"] == pytest.approx((5 / 6 + 1 / 2) / 2)


def slow_holm(p: list[float]) -> list[float]:
    """Return Holm-adjusted p-values by definition, in quadratic time."""
    return [min(1.0, max(q * sum(r >= q for r in p) for q in p if q <= value)) for value in p]


@pytest.mark.slow
def test_p_values_are_adjusted_over_the_arms_of_each_benchmark(outcome: tuple[str, AblationResult]) -> None:
    for _, part in outcome[1].results.groupby("bench"):
        assert part.set_index("arm").loc["memento", ["p", "p_holm"]].isna().all()
        tested = part[part["arm"] != "memento"]
        assert tested["p_holm"].tolist() == pytest.approx(slow_holm(tested["p"].tolist()))
    assert (outcome[1].results["p_holm"] > 1.5 * outcome[1].results["p"]).any()


def test_truncated_responses_are_counted(tmp_path: Path) -> None:
    settings = AblationSettings(("restart",), limit=6, sampling={"temperature": 3.0, "max_new_tokens": 100})
    run_ablation(load("toy-mixed"), load_bench("ledger-h1", 6), settings, out=tmp_path / "run")
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    for row in rows:
        arm_samples = samples[samples["arm"] == row["arm"]]
        assert (
            row["truncated"]
            == (arm_samples["finish"] == "length").sum()
            == (arm_samples["response"].str[-5:] != "<eos>").sum()
        )
    assert 0 < sum(row["truncated"] for row in rows) < len(samples)


def arms_on_fake_gpu(*arms: str, tokens: int = 4096) -> list[BenchArm]:
    """Return these arms with a fake model whose device is a GPU."""
    settings = AblationSettings(arms, limit=1, sampling={"max_new_tokens": tokens})
    bench_arms = plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", 1), settings)
    model = bench_arms[0].checkpoint.model
    fake = SimpleNamespace(device=torch.device("cuda"), dtype=model.dtype, config=model.config)
    return [replace(bench_arm, checkpoint=replace(bench_arm.checkpoint, model=fake)) for bench_arm in bench_arms]


def test_batch_size_on_a_gpu_fits_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 4,096 tokens of 4 KiB takes 16 MiB, and 32 MiB in an arm that also keeps a sealed cache."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * 2**24 / 0.8 + 1, 2**40))
    assert largest_batch_size(arms_on_fake_gpu("memento", "full", "noise")) == 10
    for arm in ("restart", "restart-renumbered", "seal-mementos"):
        assert largest_batch_size(arms_on_fake_gpu("full", arm)) == 5
    assert largest_batch_size(arms_on_fake_gpu("full", tokens=8192)) == 5
    assert largest_batch_size(arms_on_fake_gpu("full", tokens=2**20)) == 1
    assert largest_batch_size(arms_on_fake_gpu("full", tokens=1)) == 128
    assert largest_batch_size(arms_on_fake_gpu("full", tokens=1), maximum=7) == 7
    bench_arms = plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", 1), AblationSettings())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("mem_get_info called without a GPU"))
    assert largest_batch_size(bench_arms) == 128


def test_table_shows_names_and_numbers_in_full_at_80_columns() -> None:
    row = {
        "bench": "[b] of a name with forty-five characters in it",
        "arm": "restart-renumbered",
        "accuracy": 1.0,
        "accuracy_low": 1.0,
        "accuracy_high": 1.0,
    }
    row |= {"effect": -0.661, "effect_low": -0.712, "effect_high": -0.598, "better": 10, "worse": 390}
    row |= {"detectable": 0.125, "peak_kv_tokens": 12_345.0, "truncated": 1920, "blocks": 4.2}
    console = Console(width=80, file=StringIO())
    console.print(ablation_table(pd.DataFrame([row])))
    output = console.file.getvalue()
    assert "…" not in output and "[b]" in output and "characters" in output
    numbers = ("restart-renumbered", "100.0 [100.0,100.0]", "-66.1 [-71.2,-59.8]", "10/390", "12.5", "12,345", "4.2.")
    assert all(number in output for number in numbers)


def test_unexpected_number_of_problems_gives_a_warning() -> None:
    bench = replace(load_bench("ledger-h1", 2)[0], name="aime24", origin="mine.jsonl", full_size=30)
    with pytest.warns(RunWarning, match=r"aime24 has 30 problems, and mine\.jsonl holds 2"):
        ablate("toy-mixed", bench, ["full"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        ablate("toy-mixed", bench, ["full"], limit=2)


def test_python_api_in_five_lines() -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = gt.ablate("toy-mixed", bench="ledger-h1", arms=("restart",), limit=8, progress=lambda *a: seen.append(a))
    assert list(outcome.results["arm"]) == ["memento", "restart"]
    assert outcome.per_problem().shape == (8, 2)
    assert seen[-1][1:] == (16, 16)


@pytest.mark.slow
def test_run_folder_contents(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command("ablate", "--bench", "ledger-h1", "--limit", "6", "--out", str(out)) == 0
    config, summary = (json.loads((out / name).read_text()) for name in ("run.json", "summary.json"))
    assert config["policy"]["mask_delimiters"] is True
    assert len(config["sha256"]["model"]) == 64
    assert config["versions"]["torch"] == torch.__version__
    assert (summary["command"], summary["valid"]) == ("ablate", True)
    keys = "bench arm n_problems n_samples accuracy accuracy_low accuracy_high effect effect_low effect_high"
    keys += " peak_kv_tokens auc_kv_tokens truncated follows_donor keeps_original"
    for row in summary["results"]:
        assert set(keys.split()) <= row.keys()
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
    arms = [
        name for name, arm in ARMS.items() if arm.default and name != "restart-bare"
    ]  # the toys retain no delimiters
    assert [row["arm"] for row in summary["results"]] == arms
    samples = pd.read_parquet(out / "samples.parquet")
    assert len(samples) == 6 * len(arms)
    for name in ("accuracy", "sawtooth"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()


def test_existing_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    benches = load_bench("ledger-h0", 1)
    with pytest.raises(UserError, match=r"holds another run: continue it with --resume .*, or give --out a new folder"):
        run_ablation(load("toy-mixed"), benches, AblationSettings(limit=1), out=tmp_path)
    with pytest.raises(UserError, match="holds other files"):
        run_ablation(load("toy-mixed"), benches, AblationSettings(limit=1), out=Path(__file__).parent)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_error_names_the_option_to_change(error: Exception) -> None:
    checkpoint = load("toy-mixed")
    requests = [Request([1, 2, 3])] * 64
    with (
        pytest.raises(UserError, match=r"batch size 64, whose KV cache can grow to 1\.0 GiB: try --batch-size 32"),
        explain_out_of_memory(checkpoint, requests, Sampling(4096)),
    ):
        raise error
    with pytest.raises(RuntimeError, match="unrelated"), explain_out_of_memory(checkpoint, requests, Sampling(4096)):
        raise RuntimeError("unrelated")


def test_default_arms_skip_arms_that_do_not_apply() -> None:
    """`swap` requires keep_last_n_blocks 0: it is refused by name and skipped by default."""
    keeps = load("toy-mixed", keep_last_n_blocks=1)
    result = ablate(keeps, "ledger-h1", limit=4)
    assert set(result.results["arm"]) == {name for name, arm in ARMS.items() if arm.default} - {"swap", "restart-bare"}
    assert result.valid


def test_swap_needs_a_benchmark_with_counterfactuals() -> None:
    (bench,) = load_bench("ledger-h1", 2)
    without_counterfactual = replace(bench, counterfactual=None)
    with pytest.raises(UserError, match="counterfactual"):
        ablate("toy-mixed", [without_counterfactual], arms=("swap",))
    assert "swap" not in set(ablate("toy-mixed", [without_counterfactual]).results["arm"])
