"""Patching under other laws than Memento's: sites against the definition, patches against the arms and by hand."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.families import tiny
from helpers.laws import CHAT, MARKUP, TEXT, TOOL_TURNS, chat_trace, log, streams
from helpers.patching import TOKENIZER, patched_by_hand, results_of
from helpers.paths import requires_data
from helpers.stock import NEEDED, stock
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.bench import Counterfactual, Problem, load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.cli import main as cli
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER
from ghosttrace.law.law import Law
from ghosttrace.law.parse import parse_law
from ghosttrace.law.tools import find_tool_results
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import MAX_CONTINUATION_TOKENS, PatchCase, make_cases
from ghosttrace.patching.patcher import Patch, Patcher
from ghosttrace.patching.sites import ALL, PatchSite, all_sites, carrier_token_indices
from ghosttrace.patching.summary import failed_controls

SPECS = ("window:24,5,prompt=3", "chunks:12,4,prompt=3", "turns:2,1", "tools:0", "tools:1")


def under(law: Law, chat: Chat = CHAT) -> Checkpoint:
    checkpoint = Checkpoint("llama", tiny("llama"), TOKENIZER, MARKUP, gt.Policy(False, -1), other_law=law)
    vars(checkpoint)["chat"] = chat  # in place of that of the tokenizer
    return checkpoint


def cases_of(checkpoint: Checkpoint) -> list[PatchCase]:
    traces = [TokenTrace("random", str(seed), [], chat_trace(seed)) for seed in range(3)]
    return make_cases(checkpoint, traces)


@settings(max_examples=60, deadline=None)
@given(streams, st.sampled_from([*SPECS, "sinks:2,9", "log"]), st.booleans(), st.integers(0, 3))
def test_sites_are_retained_tokens_on_their_side_of_what_left(
    tokens: list[int], spec: str, tool_turns: bool, runs: int
) -> None:
    """Against the definition, token by token, on arbitrary streams."""
    chat = TOOL_TURNS if tool_turns else CHAT
    law = log(tokens) if spec == "log" else parse_law(spec, chat)
    checkpoint = under(law, chat)
    try:
        cases = make_cases(checkpoint, [TokenTrace("s", "0", [], tokens)])
    except gt.UserError:  # nothing leaves, or the prompt does not fit into the window
        return
    times, special = gt.expiry(tokens, law), {*chat.turn_starts, chat.turn_end, chat.tool_close, *chat.tool_open[:1]}
    ends = sorted({int(time) for time in times if time != NEVER})
    for case in cases:
        end = case.prefix_end
        assert ends[case.block_index] == end and case.block_label == case.block_index - len(ends)
        following = next((later for later in ends if later > end), len(tokens))
        assert case.end_index == min(following, end + MAX_CONTINUATION_TOKENS) >= end + 2
        leaving = [key for key in range(len(tokens)) if times[key] == end]
        assert list(case.content) == list(range(leaving[0], leaving[-1] + 1))
        indices = {key: found.tolist() for key, found in carrier_token_indices(case, checkpoint, runs).items()}
        held = [key for key in range(end) if times[key] > end]
        begin = min(key for key in range(end) if times[key] <= end)
        carriers = [key for key in held if key > leaving[0]]
        expected = {
            "everything": held,
            "placebo": held,
            "prompt": [key for key in held if key < begin],
            "earlier": [key for key in held if begin < key < leaving[0]],
            "carriers": carriers,
            "delimiters": [key for key in carriers if tokens[key] in special],
        }
        assert {name: found for (name, part), found in indices.items() if part == ALL} == {
            name: found for name, found in expected.items() if found
        }
        parts = {(name, part): found for (name, part), found in indices.items() if part != ALL}
        assert all(len(found) == 1 for (name, _), found in parts.items() if name == "delimiters")
        covered = sorted(key for found in parts.values() for key in found)
        assert covered == (carriers if runs else expected["delimiters"])


def test_a_continuation_is_not_endless() -> None:
    checkpoint = under(parse_law("tools:0", CHAT))
    tokens = [*chat_trace(0), *[TEXT] * 2 * MAX_CONTINUATION_TOKENS]
    last, *others = make_cases(checkpoint, [TokenTrace("s", "0", [], tokens)])
    assert last.end_index == last.prefix_end + MAX_CONTINUATION_TOKENS and len(others) == 2
    assert [case.end_index for case in others] == [last.prefix_end, others[0].prefix_end]


@pytest.mark.parametrize("spec", SPECS)
def test_everything_equals_the_arm_and_controls_are_zero(spec: str) -> None:
    checkpoint = under(parse_law(spec, CHAT))
    cases = cases_of(checkpoint)
    patcher = Patcher(checkpoint, cases, ("seal",), 2)
    patches = [Patch(n, "seal", (PatchSite("everything"),), case.own_continuation) for n, case in enumerate(cases)]
    sealed = log2_probabilities(checkpoint, Restart(), [case.ids(False) for case in cases])
    normal = log2_probabilities(checkpoint, Memento(), [case.ids(False) for case in cases])
    apart = 0.0
    for case, score, in_session, unsealed in zip(cases, patcher.score(patches, 2_000), sealed, normal, strict=True):
        np.testing.assert_allclose(score.log2p, in_session[case.prefix_end :], atol=1e-4)
        apart = max(apart, np.abs(in_session - unsealed)[case.prefix_end :].max())
    assert apart > 0.01
    results, _ = results_of(checkpoint, cases[:4], parts=2)
    assert failed_controls(results) == () and results["valid"].all()
    controls = results[results["carrier"].isin(["placebo", "prompt", "arm"])]
    assert controls["control"].all() and controls["size"].max() < 1e-4 < results["size"].max()


@pytest.mark.parametrize("spec", SPECS)
def test_patches_equal_states_patched_by_hand(spec: str) -> None:
    checkpoint, rng = under(parse_law(spec, CHAT)), np.random.default_rng(0)
    cases = cases_of(checkpoint)[:4]
    swappable = spec.startswith(("tools", "window"))  # a random donor does not change what leaves
    if swappable:
        donors = [tuple(rng.integers(TEXT, 96, len(case.content)).tolist()) for case in cases]
        cases = [replace(case, donor=donor) for case, donor in zip(cases, donors, strict=True)]
    patcher, patches = Patcher(checkpoint, cases, ("seal", *(("swap",) if swappable else ())), 2), []
    for number, case in enumerate(cases):
        sites = [site for site in all_sites(carrier_token_indices(case, checkpoint, 2), 4) if site.carrier != "placebo"]
        for reading in ("seal", "swap") if swappable else ("seal",):
            chosen = [(sites[n],) for n in rng.choice(len(sites), 3, replace=False)]
            some = [*chosen, (PatchSite("carriers"),), (PatchSite("everything"),)]
            patches += [Patch(number, reading, each, case.own_continuation) for each in some]
    changed = 0
    for patch, score in zip(patches, patcher.score(patches, 700), strict=True):
        case = cases[patch.case_index]
        expected = patched_by_hand(checkpoint, case, patch.cache_name, patch.sites)
        np.testing.assert_allclose(score.log2p, expected, atol=1e-4)
        changed += bool(np.abs(expected - patched_by_hand(checkpoint, case, patch.cache_name, ())).max() > 1e-3)
    assert changed > 3


@cache
def agent(law: str) -> tuple[Checkpoint, list[PatchCase]]:
    (bench,) = load_bench("agent-erased", 6)
    checkpoint = stock(law)
    return checkpoint, make_cases(checkpoint, reference_traces(checkpoint, bench), [bench])


@requires_data(NEEDED)
@pytest.mark.parametrize("law", ["tools:0", "tools:1", "window:150,100"])
def test_agent_sessions_are_swapped_in_the_number_that_is_asked_for(law: str) -> None:
    checkpoint, cases = agent(law)
    (bench,) = load_bench("agent-erased", 6)
    answers = {problem.id: problem.answer for problem in bench.problems}
    decode = checkpoint.tokenizer.decode
    swapped = [case for case in cases if case.donor is not None]
    assert len({case.trace.name for case in swapped}) >= (1 if law.startswith("window") else 5)
    for case in swapped:
        ids, other = case.ids(False), case.ids(True)
        differs = [k for k, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
        results = find_tool_results(case.trace.ids, checkpoint.chat)
        assert any(set(differs) <= set(result) for result in results) and set(differs) <= set(case.content)
        assert f'"stock": {answers[case.trace.name]}}}' in decode(ids[case.content.start : case.content.stop])
        assert case.donor_continuation is not None and len(case.donor_continuation) == len(case.own_continuation)
        own, donor = (decode(list(text)) for text in (case.own_continuation, case.donor_continuation))
        at_end = case.end_index == len(case.trace.ids)
        assert (own != donor) == at_end == own.endswith(answers[case.trace.name])
    if law == "tools:0":
        assert {case.block_label for case in cases} == {-1, -2, -3} and len(cases) == 18
        names = {case.trace.name for case in swapped}
        assert all(sum(case.trace.name == name for case in swapped) == 1 for name in names)


@requires_data(NEEDED)
def test_a_donor_has_as_many_tokens_as_the_text_that_left() -> None:
    (bench,) = load_bench("agent-erased", 2)
    traces, write = reference_traces(stock("tools:0"), bench), bench.counterfactual
    assert write is not None

    def longer(problem: Problem, number: int, rng: np.random.Generator) -> Counterfactual | None:
        other = write(problem, number, rng)
        if other is None or other.messages is None:
            return None
        wrong = tuple({**each, "content": each["content"].replace(other.answer, "1234")} for each in other.messages)
        return other._replace(messages=wrong)

    cases = make_cases(stock("tools:0"), traces, [replace(bench, counterfactual=longer)])
    assert len(cases) == 6 and all(case.donor is None for case in cases)
    assert sum(case.donor is not None for case in make_cases(stock("tools:0"), traces, [bench])) == 2


@requires_data(NEEDED)
def test_patch_of_agent_sessions(tmp_path: Path) -> None:
    """The swap moves the answer of a random model, through the only token that has seen the result."""
    more = {"limit": 4, "block": -1, "parts": 1, "kind": "swap", "out": tmp_path / "run"}
    run = gt.patch(stock("none"), "agent-erased", law="tools:0", **more)  # type: ignore[arg-type]
    assert run.valid and run.unit == "erasure" and run.configuration["law"]["spec"] == "tools:0"
    rows = run.results[run.results["layer"] == "all"].set_index(["carrier", "offset", "kv"]).sort_index()
    assert rows.loc[("everything", "all", "kv"), "size"] > 1e-3 > rows.loc[("earlier", "all", "kv"), "size"]
    assert rows.loc[("delimiters", 0, "v"), "token"] == "</tool_response>"
    for whole in (("carriers", "all"), ("delimiters", "all")):
        assert rows.loc[whole, "bits"].tolist() == rows.loc[("delimiters", 0), "bits"].tolist()
    assert set(run.figures()) == {"patch-agent-erased-erasure_-1"} and gt.open_run(tmp_path / "run") == run


def test_command_under_another_law(tmp_path: Path) -> None:
    command = [
        "patch",
        "--law",
        "window:70,30",
        "--bench",
        "ledger-h1",
        "--limit",
        "1",
        "--block",
        "-1",
        "--parts",
        "1",
    ]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0 and "ledger-h1, erasure -1" in done.output and "carriers" in done.output
    assert set(gt.open_run(tmp_path / "run").results["intervention"]) == {"seal"}


@requires_data(NEEDED)
@pytest.mark.parametrize(
    ("law", "more", "message"),
    [
        ("sinks:4,40", {}, "at least two tokens between an erasure of the law sinks:4,40 and the next one"),
        ("tools:0", {"block": 7}, "between erasure 7 of the law tools:0 and the next one: .* or another --block"),
        ("tools:0", {"bench": "agent-noted", "kind": "swap"}, "a swap needs counterfactual blocks"),
        ("window:2000,1", {}, "of the law window:2000,1"),
    ],
)
def test_bad_input_is_one_sentence(law: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(gt.UserError, match=message):
        gt.patch(stock(law), **{"bench": "agent-erased", "limit": 1} | more)  # type: ignore[arg-type]
