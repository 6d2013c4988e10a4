"""Runs of `patch`: bundled models, run folders, the command, and controls that fail."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.patching import case_of, checkpoint_of, results_of
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner

import ghosttrace as gt
from ghosttrace.ablation.arms import Noise
from ghosttrace.bench import Bench, load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.cli import main as cli
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.session import Session
from ghosttrace.patching.cases import PatchCase, make_cases
from ghosttrace.patching.joint import JointPatches
from ghosttrace.patching.patcher import CACHE_ARMS
from ghosttrace.patching.site_search import SiteSet, _search, find_site_sets
from ghosttrace.patching.sites import ALL, PatchSite
from ghosttrace.patching.summary import failed_controls, has_effect, share_of, summarise
from ghosttrace.results import open_run


@cache
def patched(model: str) -> tuple[Checkpoint, list[PatchCase], pd.DataFrame, dict[str, SiteSet]]:
    checkpoint = load(model)
    benches = [bench for level in (0, 1, 3) for bench in load_bench(f"ledger-h{level}", 6 if level else 2)]
    traces = reference_traces(checkpoint, *benches)
    cases = make_cases(checkpoint, traces, benches, -1)
    results, records = results_of(checkpoint, cases)
    site_sets = find_site_sets(checkpoint, cases, records)
    return checkpoint, cases, results, {site_set.source: site_set for site_set in site_sets}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["toy-mixed", "toy-open"])
def test_values_of_the_last_layer_are_enough_and_needed_for_the_last_block(model: str) -> None:
    _, _, results, site_sets = patched(model)
    assert results["valid"].all() and failed_controls(results) == ()
    joint_rows = results[(results["offset"] == "all")].set_index(["source", "intervention", "carrier", "layer", "kv"])
    for source in ("ledger-h1", "ledger-h3"):
        swap = joint_rows.loc[source, "swap"]
        assert swap.loc[("everything", "all", "kv"), "follows_donor"] == 1
        assert swap.loc[("everything", "all", "kv"), "recovered"] == pytest.approx(1)
        assert swap.loc[("memento", 3, "v"), "recovered"] == pytest.approx(1, abs=0.03)
        assert swap.loc[("memento", 3, "v"), "p"] < 0.05
        assert abs(swap.loc[("memento", "all", "k"), "bits"]) < 0.1
        assert swap.loc[("memento", "all", "k"), "keeps_original"] == 1
        row = site_sets[source].row(results)
        assert row["enough"] and 0.85 < row["recovered"] <= 1 and row["overshoot"] < 0.1
        assert row["flipped"] == row["everything_flipped"] == row["n_traces"] == 3
        assert row["rest_flipped"] == 0 and row["rest_recovered"] < 0.15
        assert {(site.layer, site.kv) for site in site_sets[source].sites} == {(3, "v")}
    assert abs(joint_rows.loc[("ledger-h0", "swap", "everything", "all", "kv"), "bits"]) < 0.1
    assert joint_rows.loc[("ledger-h0", "swap", "everything", "all", "kv"), "keeps_original"] == 1
    assert np.isnan(joint_rows.loc[("ledger-h0", "swap", "everything", "all", "kv"), "recovered"])
    assert "ledger-h0" not in site_sets
    if model == "toy-mixed":
        for source, level in (("ledger-h1", 1), ("ledger-h3", 3)):
            sealed = joint_rows.loc[(source, "seal", "everything", "all", "kv"), "bits"]
            assert sealed == pytest.approx(level * np.log2(10), abs=0.8)


def test_each_hidden_digit_is_at_its_own_token() -> None:
    """In `toy-open` the three digits of the answer are at tokens 0 (`<|summary_start|>`), 2 and 3 of the memento."""
    _, _, results, site_sets = patched("toy-open")
    assert {site.offset for site in site_sets["ledger-h1"].sites} == {3}
    assert {site.offset for site in site_sets["ledger-h3"].sites} == {0, 2, 3}
    rows = results[(results["source"] == "ledger-h3") & (results["intervention"] == "swap")]
    rows = rows[(rows["carrier"] == "memento") & (rows["layer"] == "all") & (rows["kv"] == "v")].set_index("offset")
    for digit, token in enumerate((0, 2, 3)):
        by_token = np.array(rows.loc[token, "by_token"])
        assert by_token[digit] > 10 and np.abs(np.delete(by_token, digit)).max() < 0.1
        assert by_token.sum() == pytest.approx(rows.loc[token, "bits"])
    assert rows.loc[0, "token"] == "<|summary_start|>" and rows.loc[1, "token"] == "*"


def test_joint_patches_equal_their_pieces() -> None:
    """All sites together equal everything; everything except some sites equals all other sites together."""
    checkpoint, cases, _, _ = patched("toy-open")
    some = [case for case in cases if case.trace.source == "ledger-h3"][:4]
    pieces = [PatchSite("memento", token, layer, kv) for token in range(5) for layer in range(4) for kv in "kv"]
    for name in ("swap", "seal"):
        patches = JointPatches(checkpoint, some, name, 2_000, 3)
        joint = patches.patch([*pieces, PatchSite("earlier")])
        np.testing.assert_allclose(joint.bits, patches.everything.bits, atol=1e-3)
        without = [site for site in pieces if (site.layer, site.kv) == (3, "v") and site.offset != 2]
        others = patches.patch([*(site for site in pieces if site not in without), PatchSite("earlier")])
        rest = patches.patch_rest(without)
        np.testing.assert_allclose(rest.bits, others.bits, atol=1e-3)
        assert np.abs(rest.bits - patches.everything.bits).min() > 1
        assert patches.everything.flipped.all() == (name == "swap") and not rest.flipped.any()
        assert (patches.everything.columns(joint.bits)["flipped"] is None) == (name == "seal")
    cases = [case_of(seed, blocks) for seed, blocks in ((1, 4), (0, 2), (2, 3))]  # of decreasing and increasing lengths
    sites = [PatchSite("memento", token, 1, "v") for token in range(2)]
    forwards = JointPatches(checkpoint_of("qwen3"), cases, "swap", 65_536, 1).patch(sites).bits
    backwards = JointPatches(checkpoint_of("qwen3"), cases[::-1], "swap", 120, 1).patch(sites).bits
    np.testing.assert_allclose(backwards[::-1], forwards, atol=1e-4)
    assert len(set(forwards.round(3))) == 3


def greedy_continuation(checkpoint: Checkpoint, bench: Bench, case: PatchCase, swapped: bool) -> tuple[int, ...]:
    """Decode the continuation of a case token by token after its first token, with the harness of the benchmark."""
    problem = next(problem for problem in bench.problems if problem.id == case.trace.name)
    harness, start = bench.harness(problem, checkpoint.tokenizer), case.prefix_end  # type: ignore[misc]
    session = Session(checkpoint.model, checkpoint.markup, checkpoint.policy, [(0,)])
    with attending(checkpoint.model):
        session.advance([case.ids(swapped)[: start + 1]])
        for _ in range(len(case.own_continuation) - 1):
            forced = harness(session.rows[0].tracker)
            session.advance([[int(session.logits[0].argmax()) if forced is None else forced]])
    return tuple(session.rows[0].tokens[start:])


def test_flipped_is_what_greedy_decoding_writes() -> None:
    checkpoint = load("toy-open")
    (bench,) = load_bench("ledger-h1", 3)
    cases = make_cases(checkpoint, reference_traces(checkpoint, bench), [bench], 1)
    patches = JointPatches(checkpoint, cases, "swap", 65_536, 3)
    for swapped, effect in ((False, patches.patch([])), (True, patches.everything)):
        written = [greedy_continuation(checkpoint, bench, case, swapped) for case in cases]
        follows = [text == case.donor_continuation for text, case in zip(written, cases, strict=True)]
        assert effect.flipped.tolist() == follows == [swapped] * 3
    assert written != [case.own_continuation for case in cases]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 1.2))
def test_no_site_can_be_dropped_from_the_set(weights: list[float], wanted: float) -> None:
    worth = dict(zip([PatchSite("memento", n) for n in range(len(weights))], weights, strict=True))

    def enough(sites: Any) -> bool:
        return sum(worth[site] for site in sites) >= wanted * sum(weights) - 1e-12

    chosen, is_enough = _search(list(worth), enough)
    assert is_enough == enough(list(worth))
    if is_enough:
        assert enough(chosen)
        assert not any(enough([o for o in chosen if o != site]) for site in chosen if len(chosen) > 1)
    else:
        assert chosen == list(worth)


def test_no_site_can_be_dropped_where_sites_interfere() -> None:
    """Site 3 is needed while sites 0 and 2 are there. Once these have been dropped, site 3 can be dropped as well."""
    sites = [PatchSite("memento", n) for n in range(4)]
    wanted = [{0, 1, 2, 3}, {0, 1, 3}, {1, 3}, {1}]
    assert _search(sites, lambda some: {site.offset for site in some} in wanted) == ([sites[1]], True)


def row_of(trace: str, own: float, other: float, greedy: tuple[bool, bool], **more: Any) -> dict[str, Any]:
    """Return a record of two sites: everything (log2p of own text -10, of the donor's -1), and a memento token."""
    row = {"source": "s", "trace": trace, "intervention": "swap", "block": 0, "own": [1, 2], "other": [1, 3]}
    row |= {"clean": [-1.0], "clean_other": -12.0, "arm": -10.0, "carrier": ["everything", "memento"]}
    row |= {"offset": [ALL, 1], "token": ["all", trace], "layer": [ALL, 2], "kv": ["kv", "v"]}
    row |= {"log2p_own": [-10.0, own], "log2p_other": [-1.0, other], "by_token": [[-10.0], [own]]}
    return row | {"greedy_own": [False, greedy[0]], "greedy_other": [True, greedy[1]]} | more


def test_site_summary() -> None:
    rows = [row_of("a", -4.0, -8.0, (True, False)), row_of("b", -6.0, -2.0, (False, True))]
    results = summarise(rows).set_index("carrier")
    site = results.loc["memento"]
    assert site["bits"] == pytest.approx((3 + 5) / 2)
    assert site["recovered"] == pytest.approx(((3 + 4) + (5 + 10)) / (2 * (9 + 11)))
    assert (site["follows_donor"], site["keeps_original"]) == (0.5, 0.5)
    assert site["by_token"] == [4.0] and site["token"] == "varies"
    assert site["p"] == pytest.approx(0.1560, abs=1e-3)  # t = 4 on one degree of freedom
    assert site["p_holm"] == pytest.approx(site["p"]) and results.loc["everything", "p"] == 0
    shared = [row | {"greedy_own": [True, True], "greedy_other": [True, True]} for row in rows]
    assert summarise(shared).set_index("carrier").loc["memento", "follows_donor"] == 0  # equal answers count as kept
    assert summarise(rows[:1]).set_index("carrier").loc["memento", "bits"] == 3
    nothing = [row | {"log2p_own": [-1.0, -1.0], "log2p_other": [-12.0, -12.0], "arm": -1.0} for row in rows]
    assert summarise(nothing)["recovered"].isna().all()
    assert not has_effect(np.array([2.0, -2.0]))  # no total effect to take a share of
    assert has_effect(np.array([2.0, 2.5, 2.2])) and has_effect(np.array([2.0]))


def test_share_is_bounded_by_the_whole_effect_of_each_trace() -> None:
    """A trace that is moved beyond the whole effect does not make up for one that is not moved."""
    share = share_of(np.array([20.0, 0.0, 10.0]), np.array([10.0, 10.0, 10.0]))
    assert share.recovered.value == pytest.approx(2 / 3) and share.overshoot == pytest.approx(1 / 3)
    assert share.recovered.high == 1  # not the 1.8 of Student's interval
    beyond = share_of(np.array([15.0, 12.0]), np.array([10.0, 10.0]))
    assert (beyond.recovered.value, beyond.recovered.high, beyond.overshoot) == (1, 1, pytest.approx(0.35))
    rows = [row_of("a", -14.0, -1.0, (False, True)), row_of("b", -14.0, -1.0, (False, True))]  # everything: 9 + 11 bits
    site = summarise(rows).set_index("carrier").loc["memento"]
    assert (site["recovered"], site["overshoot"]) == (1, pytest.approx(4 / 20))
    assert np.isnan(share_of(np.array([1.0]), np.array([2.0])).recovered.high)


def test_controls_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_of("a", -4.0, -8.0, (True, False), arm=-9.0), row_of("b", -6.0, -2.0, (False, True), arm=-9.0)]
    results = summarise(rows)
    assert failed_controls(results) == (
        "s, block 0: swap of everything differs from the arm that alters the whole cache by -1.0000 bits on average "
        "(1.0000 bits per trace in absolute value)",
    )
    assert not results["valid"].any()
    assert failed_controls(
        summarise([row_of("a", float("nan"), -8.0, (True, False), carrier=["everything", "prompt"])])
    )
    monkeypatch.setitem(CACHE_ARMS, "placebo", Noise(0.5))
    results, _ = results_of(checkpoint_of("llama"), [case_of(seed, 3) for seed in range(6)], parts=1)
    failures = failed_controls(results)
    assert failures and all("of placebo changed the continuation" in failure for failure in failures)
    rows = [row_of(n, -1 - d, -12.0, (True, False), carrier=["everything", "prompt"]) for n, d in (("a", 3), ("b", -3))]
    assert (
        "by +0.0000 bits on average (3.0000 bits per trace in absolute value)" in failed_controls(summarise(rows))[0]
    )  # 0 on average


@pytest.mark.slow
def test_run_folder_and_resume(tmp_path: Path) -> None:
    options: dict[str, Any] = {"bench": "ledger-h1", "limit": 2, "batch_tokens": 210, "block": -1}
    result = gt.patch("toy-open", **options, out=tmp_path / "run")
    assert open_run(tmp_path / "run") == result and result.valid
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["command"], summary["valid"], summary["failures"]) == ("patch", True, [])
    assert summary["results"][0]["layer"] == "all" and not result.results["control"].all()
    (sites,) = result.site_sets
    assert sites["enough"] and sites["sites"][0]["offset"] == 3 and sites["valid"]
    assert "All controls passed" in result.page()
    contents = (tmp_path / "run" / "samples.parquet").read_bytes()
    kept = parquet.read_table(tmp_path / "run" / "samples.parquet").to_pylist()[:2]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    (tmp_path / "run" / "samples.jsonl").write_text(lines + '{"source": "led')
    (tmp_path / "run" / "samples.parquet").unlink()
    with pytest.warns(RunWarning, match="dropped a damaged record"):
        assert gt.patch("toy-open", **options, resume=tmp_path / "run") == result
    assert (tmp_path / "run" / "samples.parquet").read_bytes() == contents
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    for kind in ("png", "svg"):
        assert (tmp_path / "run" / "figures" / f"patch-ledger-h1-block_-1.{kind}").stat().st_size > 1000
    (tmp_path / "run" / "samples.jsonl").write_text(lines)
    with pytest.raises(UserError, match="traces"):
        gt.patch("toy-open", **options, seed=1, resume=tmp_path / "run")


def test_single_kind_gives_the_same_samples() -> None:
    """Running one kind alone gives the same samples as running both."""
    both = gt.patch("toy-mixed", "ledger-h1", limit=2, block=-1).samples
    for kind in ("seal", "swap"):
        single_kind = gt.patch("toy-mixed", "ledger-h1", kind=kind, limit=2, block=-1)  # type: ignore[arg-type]
        assert single_kind.samples.equals(both[both["intervention"] == kind].reset_index(drop=True))
        assert set(single_kind.results["intervention"]) == {kind} and single_kind.valid
        assert len(single_kind.site_sets) == (kind == "swap")
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h1", 2)
    traces = reference_traces(checkpoint, bench)
    assert set(gt.patch(checkpoint, traces=traces, block=-1).results["intervention"]) == {"seal"}
    with pytest.raises(UserError, match="a swap needs counterfactual blocks"):
        gt.patch(checkpoint, traces=traces, kind="swap")
    with pytest.raises(UserError, match="--kind must be seal or swap, not 'both'"):
        gt.patch(checkpoint, kind="both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--parts and --batch-tokens must be at least 1"):
        gt.patch("no such model", parts=0)


def test_failed_control_invalidates_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CACHE_ARMS, "placebo", Noise(2.0))
    command = ["patch", "--bench", "ledger-h1", "--limit", "3", "--block", "-1", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 12 and "Do not rely on these numbers" in done.output
    reopened = open_run(tmp_path / "run")
    assert not reopened.results["valid"].any() and not reopened.valid and "placebo" in reopened.failures[0]
    assert not any(row["valid"] for row in reopened.summary["site_sets"])


@pytest.mark.slow
def test_command_prints_a_finding_for_every_block(tmp_path: Path) -> None:
    command = ["patch", "--model", "toy-open", "--bench", "ledger-h1", "--limit", "2", "--kind", "swap"]
    done = CliRunner().invoke(cli.app, [*command, "--parts", "1", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0
    printed = " ".join(done.output.split())
    for block in (-1, -2, -3, -4):
        assert f"On ledger-h1, block {block}, swapping" in printed
    assert "layer 3 values at run 1" in printed and "swapping everything else reproduces" in printed
    assert "seal," not in printed and "The controls passed." in printed
    run = open_run(tmp_path / "run")
    everything = run.results[(run.results["carrier"] == "everything") & (run.results["layer"] == "all")]
    whole = everything[everything["kv"] == "kv"]
    assert whole["block"].tolist() == [-1, -2, -3, -4] and (whole["bits"] > 10).all()
    assert (whole["follows_donor"] == 1).all()  # the digits of the next block, or of the answer, become the donor's
    assert [row["block"] for row in run.summary["site_sets"]] == [-1, -2, -3, -4]
    assert set(run.figures()) == {f"patch-ledger-h1-block_{block}" for block in (-1, -2, -3, -4)}
