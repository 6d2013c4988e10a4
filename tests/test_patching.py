"""Patching: against states patched by hand and against the arms, and the choice of patch cases."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.families import FAMILIES
from helpers.patching import POLICIES, case_in, case_of, checkpoint_of, patched_by_hand, results_of
from helpers.traces import MARKUP, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttrace.ablation.arms import Memento, Restart, Swap
from ghosttrace.bench import Counterfactual, load_bench
from ghosttrace.bench.ledger import BLOCK_TOKENS
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.law.expiry import expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import load
from ghosttrace.patching.cases import batch_cases, make_cases
from ghosttrace.patching.patcher import Patch, Patcher, PatchScore
from ghosttrace.patching.sites import ALL, PatchSite, all_sites, carrier_token_indices, count_runs
from ghosttrace.patching.summary import failed_controls

MATRIX = [("qwen3", name) for name in POLICIES]
MATRIX += [("phi3-window", "erase"), ("olmo3", "keep"), ("gemma3", "keep"), ("gemma3", "before")]


@pytest.mark.parametrize(("family", "policy"), MATRIX)
def test_patches_equal_states_patched_by_hand(family: str, policy: str) -> None:
    checkpoint, cases = checkpoint_of(family, POLICIES[policy]), [case_of(0, 3), case_of(2, 4, 1)]
    patcher = Patcher(checkpoint, cases, ("seal", "swap"), 2)
    rng, patches = np.random.default_rng(0), []
    for number, case in enumerate(cases):
        sites = [site for site in all_sites(carrier_token_indices(case, checkpoint, 2), 4) if site.carrier != "placebo"]
        for reading in ("seal", "swap"):
            single = [(sites[n],) for n in rng.choice(len(sites), 4, replace=False)]
            joint = tuple(sites[n] for n in rng.choice(len(sites), 3, replace=False))
            patches += [
                Patch(number, reading, site_tuple, case.own_continuation)
                for site_tuple in [(), *single, joint, (PatchSite("everything"),)]
            ]
        if case.donor_continuation is not None:
            patches.append(Patch(number, "swap", (PatchSite("memento", 1, 2, "v"),), case.donor_continuation))
    changed = 0
    for patch, score in zip(patches, patcher.score(patches, 700), strict=True):
        case = cases[patch.case_index]
        expected = patched_by_hand(
            checkpoint, case, patch.cache_name, patch.sites, patch.continuation == case.own_continuation
        )
        np.testing.assert_allclose(score.log2p, expected, atol=1e-4)
        unpatched = patched_by_hand(checkpoint, case, patch.cache_name, (), patch.continuation == case.own_continuation)
        changed += bool(np.abs(expected - unpatched).max() > 0.01)
    assert changed > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_everything_equals_the_arm(family: str) -> None:
    checkpoint, cases = checkpoint_of(family), [case_of(0), case_of(1, 3)]
    patcher = Patcher(checkpoint, cases, ("seal", "swap"), 2)

    def donors(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
        return list(cases[key[0]].donor or ()) if number == cases[key[0]].block_index else None

    for reading, arm in (("seal", Restart()), ("swap", Swap(donors))):
        patches = [
            Patch(number, reading, (PatchSite("everything"),), case.own_continuation)
            for number, case in enumerate(cases)
        ]
        expected = log2_probabilities(checkpoint, arm, [case.trace.ids for case in cases])
        clean = log2_probabilities(checkpoint, Memento(), [case.trace.ids for case in cases])
        for case, score, expected_log2p, clean_log2p in zip(
            cases, patcher.score(patches, 10_000), expected, clean, strict=True
        ):
            after = slice(case.prefix_end, None)
            np.testing.assert_allclose(score.log2p, expected_log2p[after], atol=1e-4)
            assert np.abs(expected_log2p[after] - clean_log2p[after]).max() > 1e-3


@pytest.mark.parametrize("family", ["phi3-window", "gemma3"])
@pytest.mark.parametrize("number", [-1, 0, 1])
def test_patch_has_no_effect_where_states_are_equal(family: str, number: int) -> None:
    cases = [case_of(seed, 3, number) for seed in range(2)]
    results, _ = results_of(checkpoint_of(family), cases, parts=1)
    assert failed_controls(results) == () and results["valid"].all()
    rows = results.set_index(["intervention", "carrier", "offset", "layer", "kv"])["bits"].sort_index()
    for kind in ("seal", "swap"):
        for carrier in ("placebo", "prompt", "arm"):
            assert abs(rows[kind, carrier, "all", "all", "kv"]) < 1e-4
        if kind == "swap" or number == 0:
            assert rows[kind, "delimiters", 0].abs().max() < 1e-4  # <|block_start|> has seen no changed block
        assert rows[kind, "memento", "all", 0].abs().max() < 1e-4  # layer 0: keys and values depend on the token alone
        assert rows[kind].abs().max() > 0.01
    if number:
        assert rows["swap", "earlier"].abs().max() < 1e-4
        if family == "gemma3":  # its layer 2 has full attention
            assert rows["seal", "earlier"].abs().max() > 1e-4
    else:
        assert "earlier" not in set(results["carrier"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4), st.sampled_from(sorted(POLICIES)), st.data())
def test_carriers_partition_the_retained_tokens(
    seed: int, blocks: int, number: int, name: str, data: st.DataObject
) -> None:
    ids = trace(seed, blocks)
    for index in reversed([k for k, token in enumerate(ids) if token in MARKUP.delimiters]):
        ids[index:index] = [20] * data.draw(st.integers(0, 1))  # text before, between and after the pairs
    case = case_in(TokenTrace("s", "0", [], ids), number)
    block = find_blocks(ids, MARKUP)[number % blocks]
    runs = data.draw(st.integers(0, block.memento_end - block.memento_start - 1))
    site_indices = carrier_token_indices(case, checkpoint_of("llama", POLICIES[name]), runs)
    before = ids[: case.prefix_end]
    held = [k for k, expires_at in enumerate(expiry(before, MARKUP, POLICIES[name])) if expires_at > len(before)]
    by_carrier = {carrier: list(indices) for (carrier, run), indices in site_indices.items() if run == ALL}
    assert by_carrier.pop("everything") == by_carrier.pop("placebo") == held
    assert sorted(k for indices in by_carrier.values() for k in indices) == held
    for carrier in ("delimiters", "memento"):
        pieces = [
            k for (other, run), indices in site_indices.items() if other == carrier and run != ALL for k in indices
        ]
        if carrier in by_carrier and (runs or carrier == "delimiters"):
            assert pieces == by_carrier[carrier]


def test_results_do_not_depend_on_batch_size() -> None:
    cases = [case_of(seed, 3) for seed in range(4)]
    assert [len(batch) for batch in batch_cases(cases, 1)] == [1] * 4 and len(batch_cases(cases, 10_000)) == 1
    other = replace(cases[0], trace=replace(cases[0].trace, source="another"))
    assert [len(batch) for batch in batch_cases([*cases, other], 10_000)] == [1, 4]
    assert [len(batch) for batch in batch_cases([*cases, replace(cases[0], block_label=-2)], 10_000)] == [1, 4]
    one_batch, _ = results_of(checkpoint_of("olmo3"), cases)
    small, _ = results_of(checkpoint_of("olmo3"), cases, batch_tokens=1_000)
    np.testing.assert_allclose(one_batch["bits"], small["bits"], atol=1e-4)


def test_donors_are_drawn_reproducibly() -> None:
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h3", 6)
    traces = reference_traces(checkpoint, bench)
    cases = make_cases(checkpoint, traces, [bench], -1)
    assert cases == make_cases(checkpoint, traces, [bench], -1) != make_cases(checkpoint, traces, [bench], -1, seed=1)
    for case in cases:
        assert case.donor_continuation is not None and case.donor_continuation[:1] == case.own_continuation[:1]
        assert all(a != b for a, b in zip(case.donor_continuation[1:], case.own_continuation[1:], strict=True))
        assert case.ids(True) != case.ids(False) and len(case.ids(True)) == len(case.trace.ids)
    short = replace(bench, counterfactual=lambda problem, number, rng: Counterfactual(["1"], "1"))
    with pytest.raises(UserError, match="a donor must be as long as its block: 1 tokens"):
        make_cases(checkpoint, traces, [short])
    block = ["1"] * BLOCK_TOKENS
    unknown = replace(bench, counterfactual=lambda problem, number, rng: Counterfactual(block, "1"))
    assert all(case.donor and case.donor_continuation is None for case in make_cases(checkpoint, traces, [unknown]))
    other = replace(bench, counterfactual=lambda problem, number, rng: Counterfactual(block, "1", "<think>"))
    with pytest.raises(UserError, match="must differ from the response only in its block until the memento ends"):
        make_cases(checkpoint, traces, [other])


def test_every_block_has_a_donor_whose_continuation_differs_in_the_models_own_digits() -> None:
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h1", 3)
    traces = reference_traces(checkpoint, bench)
    cases = make_cases(checkpoint, traces, [bench])
    assert [(case.trace.name, case.block_label) for case in cases[:5]] == [
        *((traces[0].name, label) for label in (-1, -2, -3, -4)),
        (traces[1].name, -1),
    ]
    assert [case.block_index for case in cases[:4]] == [3, 2, 1, 0]
    for case in cases:
        assert case.donor_continuation is not None and len(case.donor_continuation) == len(case.own_continuation)
        differs = [a != b for a, b in zip(case.own_continuation, case.donor_continuation, strict=True)]
        assert any(differs) and case.own_forced == case.donor_forced and len(case.own_forced) == len(differs)
        assert not any(d and forced for d, forced in zip(differs, case.own_forced, strict=True))
        assert sum(case.own_forced) == (0 if case.block_label == -1 else 11)  # five notes, six increments
        if case.block_label != -1:
            blocks = find_blocks(case.trace.ids, checkpoint.markup)
            assert sum(differs) == 2 and case.end_index == blocks[case.block_index + 1].memento_end + 1
    absolute = make_cases(checkpoint, traces, [bench], 1)
    assert [(case.block_label, case.block_index) for case in absolute] == [(1, 1)] * 3


def test_greedy_text_ignores_the_tokens_that_a_harness_forces() -> None:
    score = PatchScore(np.zeros(3), np.array([True, False, True]))
    assert not score.is_greedy(()) and not score.is_greedy((True, True, False, True))
    assert score.is_greedy((False, False, True, False))


def test_unpatchable_traces_are_refused() -> None:
    checkpoint = load("toy-mixed")
    (bench,) = load_bench("ledger-h1", 2)
    traces = reference_traces(checkpoint, bench)
    for policy in ({"keep_last_n_blocks": 1}, {"keep_last_n_blocks": -1}, {"keep_last_block_for_answer": True}):
        with pytest.raises(UserError, match="patch needs keep_last_n_blocks 0"):
            make_cases(replace(checkpoint, policy=replace(checkpoint.policy, **policy)), traces)
    without_blocks = TokenTrace("file", "0", traces[0].prompt, [4, 10, 11])
    end = find_blocks(traces[0].ids, checkpoint.markup)[-1].memento_end + 2 - len(traces[0].prompt)
    ends = replace(traces[0], response=traces[0].response[:end])
    for number, some in ((-1, [without_blocks]), (4, traces), (-5, traces), (3, [ends])):
        with pytest.raises(UserError, match=f"no trace has a memento of block {number}"):
            make_cases(checkpoint, some, block=number)
    assert len(make_cases(checkpoint, [without_blocks, *traces], block=-1)) == 2
    assert len(make_cases(checkpoint, [without_blocks, *traces])) == 8
    with pytest.raises(UserError, match=r"no trace has a memento with text after it: give other traces$"):
        make_cases(checkpoint, [without_blocks])


def test_traces_without_a_counterfactual_are_only_sealed() -> None:
    """Mementos of unequal length are split into as many runs as the shortest has tokens."""
    cases = [replace(case_of(seed, 3, 1), donor=None, donor_continuation=None) for seed in range(4)]
    blocks = [find_blocks(case.trace.ids, MARKUP)[case.block_index] for case in cases]
    lengths, checkpoint = [block.memento_end - block.memento_start - 1 for block in blocks], checkpoint_of("qwen3")
    assert (
        len(set(lengths)) > 1
        and count_runs(cases, checkpoint, 8) == {("random", -1): min(lengths)}
        and count_runs(cases, checkpoint, 1)["random", -1] == 1
    )
    results, _ = results_of(checkpoint_of("qwen3"), cases)
    assert set(results["intervention"]) == {"seal"} and results["valid"].all()
    assert results["follows_donor"].isna().all() and results["keeps_original"].isna().all()
    memento = results[(results["carrier"] == "memento") & (results["offset"] != "all")]
    assert set(memento["offset"]) == set(range(min(lengths) + 2))
    single, _ = results_of(checkpoint_of("qwen3"), cases[:1])
    assert single["bits_low"].isna().all() and single["valid"].all()
