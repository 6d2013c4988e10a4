"""Causal tracing: against states put in by hand, against the arms, on the bundled models, and seen to say no."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.families import FAMILIES, tiny
from helpers.traces import MARKUP, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ghosttrace.ablation.arms import Memento, Noise, Restart, Swap
from ghosttrace.bench import load_bench
from ghosttrace.data.tokens import TokenTrace, reference_traces
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.masks import Visibility
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.states import read_states
from ghosttrace.patching import (
    ALL,
    PATCHES,
    Case,
    Handful,
    Site,
    failed_controls,
    find_handfuls,
    keys_of,
    make_cases,
    measure,
    summarise,
)
from ghosttrace.patching.cases import all_sites, batches_of, carrier_places, runs_of
from ghosttrace.patching.patch import READINGS, Patch, Patcher
from ghosttrace.patching.site_search import _search, joint_effect
from ghosttrace.patching.summary import share_of
from ghosttrace.report.patching import run
from ghosttrace.runs.records import Records

KEEP, ERASE = Policy(mask_delimiters=False), Policy(mask_delimiters=True)
POLICIES = {"keep": KEEP, "erase": ERASE, "before": replace(KEEP, erase_at="before_summary_end")}
TOKENIZER = SimpleNamespace(decode=lambda ids: f"t{ids[0]}")


def checkpoint_of(family: str, policy: Policy = KEEP) -> Checkpoint:
    return Checkpoint(family, tiny(family), TOKENIZER, MARKUP, policy)


def case_of(seed: int, blocks: int = 4, number: int = -1) -> Case:
    """A random trace with a random donor, and another end in place of its own."""
    rng, ids = np.random.default_rng(100 + seed), [*trace(seed, blocks), 11, 12, 13]
    found = tuple(find_blocks(ids, MARKUP))
    number %= len(found)
    last = number == len(found) - 1
    stop = len(ids) if last else found[number + 1].memento_end + 1
    case = Case(TokenTrace("random", str(seed), ids[:3], ids[3:]), found, number, stop)
    donor = tuple(rng.integers(8, 96, case.block.end - case.block.start - 1).tolist())
    return replace(case, donor=donor, other=(*case.own[:-2], 14, 15) if last else None)


class HeldLayer(CacheLayerMixin):
    """A cache layer that stands before the new tokens and never changes: no code of ours."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, *args: Any) -> None: ...

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2] + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


def by_hand(checkpoint: Checkpoint, case: Case, reading: str, sites: tuple[Site, ...], own: bool = True) -> np.ndarray:
    """States of masked passes, put together with tensor operations, and one pass over what follows."""
    model, policy, end = checkpoint.model, checkpoint.policy, case.block.memento_end + 1
    ids = case.trace.ids[:end]
    held = np.flatnonzero(expiry(ids, MARKUP, policy) > end)
    clean = read_states(model, [open_layout(ids, MARKUP, policy)], [held])
    swapped = [*ids[: case.block.start + 1], *(case.donor or ()), *ids[case.block.end :]]
    layout = sealed_layout(ids, MARKUP, policy) if reading == "seal" else open_layout(swapped, MARKUP, policy)
    altered = read_states(model, [layout], [held])
    places = carrier_places(case, checkpoint, 2)
    keys, values = clean.keys.clone(), clean.values.clone()
    for site in sites:
        at = np.isin(held, places[site.carrier, site.place])
        layers = slice(None) if site.layer == ALL else slice(site.layer, site.layer + 1)
        for letter, mine, theirs in (("k", keys, altered.keys), ("v", values, altered.values)):
            if letter in site.kv:
                mine[layers, ..., at, :] = theirs[layers, ..., at, :]
    store = Cache(layers=[HeldLayer(k, v) for k, v in zip(keys, values, strict=True)])
    following = case.own if own else case.other
    assert following is not None
    index = torch.from_numpy(np.arange(end, end + len(following) - 1))[None]
    every = torch.cat([torch.from_numpy(held)[None], index], 1)
    with attending(model), torch.no_grad():
        sight = Visibility(index, every, torch.full_like(every, NEVER), index, every)
        text = torch.tensor([following[:-1]])
        logits = model(input_ids=text, position_ids=index, past_key_values=store, use_cache=True, expiry=sight).logits
    log2p = logits[0].log_softmax(-1)[range(len(following) - 1), list(following[1:])]
    return log2p.double().numpy() / np.log(2)


MATRIX = [("qwen3", name) for name in POLICIES]
MATRIX += [("phi3-window", "erase"), ("olmo3", "keep"), ("gemma3", "keep"), ("gemma3", "before")]


@pytest.mark.parametrize(("family", "policy"), MATRIX)
def test_patches_are_states_put_in_by_hand(family: str, policy: str) -> None:
    checkpoint, cases = checkpoint_of(family, POLICIES[policy]), [case_of(0, 3), case_of(2, 4, 1)]
    patcher = Patcher(checkpoint, cases, ("seal", "swap"), 2)
    rng, patches = np.random.default_rng(0), []
    for number, case in enumerate(cases):
        sites = [site for site in all_sites(carrier_places(case, checkpoint, 2), 4) if site.carrier != "placebo"]
        for reading in ("seal", "swap"):
            single = [(sites[n],) for n in rng.choice(len(sites), 4, replace=False)]
            joint = tuple(sites[n] for n in rng.choice(len(sites), 3, replace=False))
            patches += [Patch(number, reading, cell, case.own) for cell in [(), *single, joint, (Site("everything"),)]]
        if case.other is not None:
            patches.append(Patch(number, "swap", (Site("memento", 1, 2, "v"),), case.other))
    changed = 0
    for patch, score in zip(patches, patcher.score(patches, 700), strict=True):
        case = cases[patch.case]
        expected = by_hand(checkpoint, case, patch.reading, patch.sites, patch.run == case.own)
        np.testing.assert_allclose(score.log2p, expected, atol=1e-4)
        plain = by_hand(checkpoint, case, patch.reading, (), patch.run == case.own)
        changed += bool(np.abs(expected - plain).max() > 0.01)
    assert changed > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_everything_is_the_arm(family: str) -> None:
    checkpoint, cases = checkpoint_of(family), [case_of(0), case_of(1, 3)]
    patcher = Patcher(checkpoint, cases, ("seal", "swap"), 2)

    def donors(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
        return list(cases[key[0]].donor or ()) if number == cases[key[0]].number else None

    for reading, arm in (("seal", Restart()), ("swap", Swap(donors))):
        patches = [Patch(number, reading, (Site("everything"),), case.own) for number, case in enumerate(cases)]
        expected = log2_probabilities(checkpoint, arm, [case.trace.ids for case in cases])
        clean = log2_probabilities(checkpoint, Memento(), [case.trace.ids for case in cases])
        for case, score, mine, before in zip(cases, patcher.score(patches, 10_000), expected, clean, strict=True):
            after = slice(case.block.memento_end + 1, None)
            np.testing.assert_allclose(score.log2p, mine[after], atol=1e-4)
            assert np.abs(mine[after] - before[after]).max() > 1e-3


def results_of(checkpoint: Checkpoint, cases: list[Case], **more: Any) -> tuple[pd.DataFrame, Records]:
    records = Records(PATCHES)
    measure(checkpoint, cases, records, **more)
    return summarise(records.get(key) for key in keys_of(cases)), records


@pytest.mark.parametrize("family", ["phi3-window", "gemma3"])
@pytest.mark.parametrize("number", [-1, 0, 1])
def test_nothing_happens_where_nothing_differs(family: str, number: int) -> None:
    cases = [case_of(seed, 3, number) for seed in range(2)]
    results, _ = results_of(checkpoint_of(family), cases, parts=1)
    assert failed_controls(results) == () and results["valid"].all()
    rows = results.set_index(["intervention", "carrier", "place", "layer", "kv"])["bits"].sort_index()
    for kind in ("seal", "swap"):
        for carrier in ("placebo", "prompt", "arm"):
            assert abs(rows[kind, carrier, "all", "all", "kv"]) < 1e-4
        if kind == "swap" or number == 0:
            assert rows[kind, "delimiters", 0].abs().max() < 1e-4  # <|block_start|> has seen no block that differs
        assert rows[kind, "memento", "all", 0].abs().max() < 1e-4  # layer 0: keys and values of the token alone
        assert rows[kind].abs().max() > 0.01
    if number:
        assert rows["swap", "earlier"].abs().max() < 1e-4
        if family == "gemma3":  # whose layer 2 sees beyond the window
            assert rows["seal", "earlier"].abs().max() > 1e-4
    else:
        assert "earlier" not in set(results["carrier"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4), st.sampled_from(sorted(POLICIES)), st.data())
def test_carriers_divide_what_is_retained(seed: int, blocks: int, number: int, name: str, data: st.DataObject) -> None:
    ids = trace(seed, blocks)
    for place in reversed([k for k, token in enumerate(ids) if token in MARKUP.delimiters]):
        ids[place:place] = [20] * data.draw(st.integers(0, 1))  # text before, between and behind the pairs
    case = replace(case_of(0), trace=TokenTrace("s", "0", [], ids), blocks=tuple(find_blocks(ids, MARKUP)))
    case = replace(case, number=number % blocks, stop=len(ids), donor=None, other=None)
    runs = data.draw(st.integers(0, case.block.memento_end - case.block.memento_start - 1))
    places = carrier_places(case, checkpoint_of("llama", POLICIES[name]), runs)
    before = ids[: case.block.memento_end + 1]
    held = [k for k, gone in enumerate(expiry(before, MARKUP, POLICIES[name])) if gone > len(before)]
    whole = {carrier: list(at) for (carrier, place), at in places.items() if place == ALL}
    assert whole.pop("everything") == whole.pop("placebo") == held
    assert sorted(k for at in whole.values() for k in at) == held
    for carrier in ("delimiters", "memento"):
        pieces = [k for (found, place), at in places.items() if found == carrier and place != ALL for k in at]
        if carrier in whole and (runs or carrier == "delimiters"):
            assert pieces == whole[carrier]


@cache
def traced(model: str) -> tuple[Checkpoint, list[Case], pd.DataFrame, dict[str, Handful]]:
    checkpoint = load(model)
    benches = [bench for level in (0, 1, 3) for bench in load_bench(f"ledger-h{level}", 6 if level else 2)]
    traces = [trace for bench in benches for trace in reference_traces(checkpoint, bench)]
    cases = make_cases(checkpoint, traces, benches)
    results, records = results_of(checkpoint, cases)
    handfuls = find_handfuls(checkpoint, cases, records)
    return checkpoint, cases, results, {handful.source: handful for handful in handfuls}


@pytest.mark.parametrize("model", ["toy-mixed", "toy-open"])
def test_the_answer_is_carried_by_values_of_the_last_layer(model: str) -> None:
    _, _, results, handfuls = traced(model)
    assert results["valid"].all() and failed_controls(results) == ()
    whole = results[(results["place"] == "all")].set_index(["source", "intervention", "carrier", "layer", "kv"])
    for source in ("ledger-h1", "ledger-h3"):
        swap = whole.loc[source, "swap"]
        assert swap.loc[("everything", "all", "kv"), "follows_donor"] == 1
        assert swap.loc[("everything", "all", "kv"), "recovered"] == pytest.approx(1)
        assert swap.loc[("memento", 3, "v"), "recovered"] == pytest.approx(1, abs=0.03)
        assert swap.loc[("memento", 3, "v"), "p"] < 0.05
        assert abs(swap.loc[("memento", "all", "k"), "bits"]) < 0.1
        assert swap.loc[("memento", "all", "k"), "keeps_original"] == 1
        assert handfuls[source].enough and handfuls[source].recovered.value > 0.85
        assert {(site.layer, site.kv) for site in handfuls[source].sites} == {(3, "v")}
    assert abs(whole.loc[("ledger-h0", "swap", "everything", "all", "kv"), "bits"]) < 0.1
    assert whole.loc[("ledger-h0", "swap", "everything", "all", "kv"), "keeps_original"] == 1
    assert np.isnan(whole.loc[("ledger-h0", "swap", "everything", "all", "kv"), "recovered"])
    assert "ledger-h0" not in handfuls
    if model == "toy-mixed":
        for source, level in (("ledger-h1", 1), ("ledger-h3", 3)):
            sealed = whole.loc[(source, "seal", "everything", "all", "kv"), "bits"]
            assert sealed == pytest.approx(level * np.log2(10), abs=0.8)


def test_each_hidden_digit_sits_on_a_token_of_its_own() -> None:
    """`toy-open`: the digits of the answer on tokens 0, 2 and 3 of the memento, the first being `<|summary_start|>`."""
    _, _, results, handfuls = traced("toy-open")
    assert {site.place for site in handfuls["ledger-h1"].sites} == {3}
    assert {site.place for site in handfuls["ledger-h3"].sites} == {0, 2, 3}
    rows = results[(results["source"] == "ledger-h3") & (results["intervention"] == "swap")]
    rows = rows[(rows["carrier"] == "memento") & (rows["layer"] == "all") & (rows["kv"] == "v")].set_index("place")
    for digit, place in enumerate((0, 2, 3)):
        by_token = np.array(rows.loc[place, "by_token"])
        assert by_token[digit] > 10 and np.abs(np.delete(by_token, digit)).max() < 0.1
        assert by_token.sum() == pytest.approx(rows.loc[place, "bits"])
    assert rows.loc[0, "token"] == "<|summary_start|>" and rows.loc[1, "token"] == "*"


def test_a_joint_patch_of_everything_is_everything() -> None:
    checkpoint, cases, _, _ = traced("toy-open")
    some = [case for case in cases if case.trace.source == "ledger-h3"][:4]
    pieces = [Site("memento", place, layer, kv) for place in range(5) for layer in range(4) for kv in "kv"]
    for name in ("swap", "seal"):
        joint, whole = joint_effect(checkpoint, some, name, [*pieces, Site("earlier")], 2_000, 3)
        np.testing.assert_allclose(joint, whole, atol=1e-3)
    cases = [case_of(seed, blocks) for seed, blocks in ((1, 4), (0, 2), (2, 3))]  # of falling and rising lengths
    sites = [Site("memento", place, 1, "v") for place in range(2)]
    forwards, _ = joint_effect(checkpoint_of("qwen3"), cases, "swap", sites, 65_536, 1)
    backwards, _ = joint_effect(checkpoint_of("qwen3"), cases[::-1], "swap", sites, 120, 1)
    np.testing.assert_allclose(backwards[::-1], forwards, atol=1e-4)
    assert len(set(forwards.round(3))) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 1.2))
def test_no_member_of_a_handful_can_be_left_out(weights: list[float], wanted: float) -> None:
    worth = dict(zip([Site("memento", n) for n in range(len(weights))], weights, strict=True))

    def enough(sites: Any) -> bool:
        return sum(worth[site] for site in sites) >= wanted * sum(weights) - 1e-12

    chosen, found = _search(list(worth), enough)
    assert found == enough(list(worth))
    if found:
        assert enough(chosen)
        assert not any(enough([o for o in chosen if o != site]) for site in chosen if len(chosen) > 1)
    else:
        assert chosen == list(worth)


def row_of(trace: str, own: float, other: float, greedy: tuple[bool, bool], **more: Any) -> dict[str, Any]:
    """A record of two sites: everything, which leaves -10 bits of one's own and -1 of the donor's, and another."""
    row = {"source": "s", "trace": trace, "intervention": "swap", "block": 0, "own": [1, 2], "other": [1, 3]}
    row |= {"clean": [-1.0], "clean_other": -12.0, "arm": -10.0, "carrier": ["everything", "memento"]}
    row |= {"place": [ALL, 1], "token": ["all", trace], "layer": [ALL, 2], "kv": ["kv", "v"]}
    row |= {"log2p_own": [-10.0, own], "log2p_other": [-1.0, other], "by_token": [[-10.0], [own]]}
    return row | {"greedy_own": [False, greedy[0]], "greedy_other": [True, greedy[1]]} | more


def test_what_a_site_is_worth() -> None:
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
    assert summarise(shared).set_index("carrier").loc["memento", "follows_donor"] == 0  # an answer shared is kept
    assert summarise(rows[:1]).set_index("carrier").loc["memento", "bits"] == 3
    nothing = [row | {"log2p_own": [-1.0, -1.0], "log2p_other": [-12.0, -12.0], "arm": -1.0} for row in rows]
    assert summarise(nothing)["recovered"].isna().all()
    assert share_of(np.array([1.0, 0.5]), np.array([2.0, -2.0])) is None  # no whole effect to take a share of


def test_controls_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_of("a", -4.0, -8.0, (True, False), arm=-9.0), row_of("b", -6.0, -2.0, (False, True), arm=-9.0)]
    results = summarise(rows)
    assert failed_controls(results) == (
        "s: swap of arm is off the arm that does the same by -1.0000 bits (1.0000 a trace)",
    )
    assert not results["valid"].any()
    assert failed_controls(
        summarise([row_of("a", float("nan"), -8.0, (True, False), carrier=["everything", "prompt"])])
    )
    monkeypatch.setitem(READINGS, "placebo", Noise(0.5))
    results, _ = results_of(checkpoint_of("llama"), [case_of(seed, 3) for seed in range(6)], parts=1)
    failures = failed_controls(results)
    assert failures and all("of placebo moved the continuation" in failure for failure in failures)
    rows = [row_of(n, -1 - d, -12.0, (True, False), carrier=["everything", "prompt"]) for n, d in (("a", 3), ("b", -3))]
    assert (
        "moved the continuation by +0.0000 bits (3.0000 a trace)" in failed_controls(summarise(rows))[0]
    )  # 0 on average


def test_traces_without_a_counterfactual_are_sealed_alone() -> None:
    """Of unequal mementos: their text is cut into as many runs as the shortest has tokens."""
    cases = [replace(case_of(seed, 3, 1), donor=None, other=None) for seed in range(4)]
    lengths = [case.block.memento_end - case.block.memento_start - 1 for case in cases]
    assert len(set(lengths)) > 1 and runs_of(cases, 8) == {"random": min(lengths)} and runs_of(cases, 1)["random"] == 1
    results, _ = results_of(checkpoint_of("qwen3"), cases)
    assert set(results["intervention"]) == {"seal"} and results["valid"].all()
    assert results["follows_donor"].isna().all() and results["keeps_original"].isna().all()
    memento = results[(results["carrier"] == "memento") & (results["place"] != "all")]
    assert set(memento["place"]) == set(range(min(lengths) + 2))
    one, _ = results_of(checkpoint_of("qwen3"), cases[:1])
    assert one["bits_low"].isna().all() and one["valid"].all()


def test_batches_do_not_matter() -> None:
    cases = [case_of(seed, 3) for seed in range(4)]
    assert [len(batch) for batch in batches_of(cases, 1)] == [1] * 4 and len(batches_of(cases, 10_000)) == 1
    other = replace(cases[0], trace=replace(cases[0].trace, source="another"))
    assert [len(batch) for batch in batches_of([*cases, other], 10_000)] == [1, 4]
    whole, _ = results_of(checkpoint_of("olmo3"), cases)
    small, _ = results_of(checkpoint_of("olmo3"), cases, batch_tokens=1_000)
    np.testing.assert_allclose(whole["bits"], small["bits"], atol=1e-4)


def test_the_run_folder_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load("toy-open")
    (bench,) = load_bench("ledger-h1", 2)
    cases = make_cases(checkpoint, reference_traces(checkpoint, bench), [bench])
    options = {"model": "toy-open"}
    results = run(checkpoint, cases, 210, out=tmp_path / "run", options=options)
    assert "layer 3 values at token 3" in capsys.readouterr().out.replace("\n", " ")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["command"], summary["valid"], summary["failures"]) == ("trace", True, [])
    assert len(summary["results"]) == len(results) and summary["results"][0]["layer"] == "all"
    (handful,) = summary["handfuls"]
    assert handful["enough"] and handful["sites"][0]["place"] == 3 and handful["valid"]
    whole = (tmp_path / "run" / "samples.parquet").read_bytes()
    kept = parquet.read_table(tmp_path / "run" / "samples.parquet").to_pylist()[:2]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    (tmp_path / "run" / "samples.jsonl").write_text(lines + '{"source": "led')
    (tmp_path / "run" / "samples.parquet").unlink()
    run(checkpoint, cases, 210, resume=tmp_path / "run", options=options)
    assert (tmp_path / "run" / "samples.parquet").read_bytes() == whole
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    for kind in ("png", "svg"):
        assert (tmp_path / "run" / "figures" / f"trace-ledger-h1.{kind}").stat().st_size > 1000
    other = make_cases(checkpoint, reference_traces(checkpoint, bench), [bench], seed=1)
    (tmp_path / "run" / "samples.jsonl").write_text(lines)
    with pytest.raises(UserError, match="traces"):
        run(checkpoint, other, 210, resume=tmp_path / "run", options=options)


def test_a_failed_control_invalidates_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READINGS, "placebo", Noise(2.0))
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h1", 3)
    traces = reference_traces(checkpoint, bench)
    results = run(checkpoint, make_cases(checkpoint, traces), out=tmp_path / "run")
    assert not results["valid"].any()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["valid"] and "placebo" in summary["failures"][0]
    assert not any(row["valid"] for row in summary["results"] + summary["handfuls"])


def test_donors_are_drawn_and_kept() -> None:
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h3", 6)
    traces = reference_traces(checkpoint, bench)
    cases = make_cases(checkpoint, traces, [bench])
    assert cases == make_cases(checkpoint, traces, [bench]) != make_cases(checkpoint, traces, [bench], seed=1)
    for case in cases:
        assert case.other is not None and case.other[:1] == case.own[:1]
        assert all(a != b for a, b in zip(case.other[1:], case.own[1:], strict=True))
        assert case.ids(True) != case.ids(False) and len(case.ids(True)) == len(case.trace.ids)
    early = make_cases(checkpoint, traces, [bench], number=1)
    assert all(case.other is None and case.donor is not None and case.number == 1 for case in early)
    assert early[0].stop == early[0].blocks[2].memento_end + 1
    short = replace(bench, counterfactual=lambda problem, number, rng: (["1"], "1"))
    with pytest.raises(UserError, match="a donor must be as long as its block: 1 tokens"):
        make_cases(checkpoint, traces, [short])


def test_what_cannot_be_traced_is_refused() -> None:
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h1", 2)
    traces = reference_traces(checkpoint, bench)
    for policy in ({"keep_last_n_blocks": 1}, {"keep_last_n_blocks": -1}, {"keep_last_block_for_answer": True}):
        with pytest.raises(UserError, match="trace needs keep_last_n_blocks 0"):
            make_cases(replace(checkpoint, policy=replace(checkpoint.policy, **policy)), traces)
    plain = TokenTrace("file", "0", traces[0].prompt, [4, 10, 11])
    end = find_blocks(traces[0].ids, checkpoint.markup)[-1].memento_end + 2 - len(traces[0].prompt)
    ends = replace(traces[0], response=traces[0].response[:end])
    for number, some in ((-1, [plain]), (4, traces), (-5, traces), (3, [ends])):
        with pytest.raises(UserError, match=f"no trace has a memento of block {number}"):
            make_cases(checkpoint, some, number=number)
    assert len(make_cases(checkpoint, [plain, *traces])) == 2
