"""Defences: equivalence with arms, options, costs counted by hand, and utility."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.defences import (
    ERASE,
    KEEP,
    TRACES,
    run_session,
    secrets,
    states,
    tiny_checkpoint,
)
from helpers.families import FAMILIES
from helpers.traces import MARKUP

from ghosttrace.ablation.arms import Memento, Part, Restart, SealMementos
from ghosttrace.auditing.cost import CountingSession, accuracy_utility, cost, likelihood_utility
from ghosttrace.auditing.defences import DEFENCES, parse_defence
from ghosttrace.auditing.defences.leace import LeaceDefence
from ghosttrace.auditing.defences.noise import NoiseDefence
from ghosttrace.auditing.defences.partial import PartialDefence
from ghosttrace.auditing.defences.random_direction import RandomDirectionDefence
from ghosttrace.auditing.defences.scrub import ScrubDefence
from ghosttrace.bench.ledger import Ledger, ledger
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.law.expiry import Policy
from ghosttrace.law.layout import sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.states import read_states


def test_defences_are_listed_under_their_names() -> None:
    expected = {"none", "restart", "restart-renumbered", "partial", "scrub", "drop-delimiters", "leace"}
    assert DEFENCES.keys() == expected | {"random-direction", "noise"}
    assert all(parse_defence(name) == kind() and kind.name == name for name, kind in DEFENCES.items())
    assert "no privacy claim" in NoiseDefence.summary


def test_options_are_parsed() -> None:
    assert parse_defence("noise:0.25") == NoiseDefence(0.25)
    assert parse_defence("scrub:2,3") == ScrubDefence((2, 3))
    assert parse_defence("partial:2") == PartialDefence(2) and parse_defence("partial:2,1") == PartialDefence(2, 1)
    assert parse_defence("leace:0.1") == LeaceDefence(0.1)
    assert parse_defence("random-direction:7") == RandomDirectionDefence(7)


@pytest.mark.parametrize(
    "spec", ["restart", "partial:2,1", "scrub:2,3", "leace:0.1", "random-direction:7", "noise:0.25", "scrub:3"]
)
def test_defence_repr_is_its_specification(spec: str) -> None:
    assert parse_defence(spec).spec == spec
    assert all(parse_defence(kind().spec) == kind() for kind in DEFENCES.values() if kind is not ScrubDefence)
    assert ScrubDefence().spec == "scrub"


@pytest.mark.parametrize(
    "spec", ["noise:loud", "noise:-1", "noise:nan", "noise:", "scrub:last", "scrub:1,,2", "partial:0"]
)
def test_invalid_options_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=f"the defence {spec.partition(':')[0]} is given as"):
        parse_defence(spec)


@pytest.mark.parametrize(
    "spec", ["partial:1,2,3", "leace:0", "leace:all", "random-direction:x", "random-direction:1,2"]
)
def test_other_invalid_options_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match="is given as"):
        parse_defence(spec)


def test_unknown_defences_and_extra_options_are_refused() -> None:
    with pytest.raises(UserError, match="no defence 'hope': choose from none, restart,"):
        parse_defence("hope")
    with pytest.raises(UserError, match="takes no options: give restart alone"):
        parse_defence("restart:2")


@pytest.mark.parametrize(
    ("spec", "policy", "message"),
    [
        ("drop-delimiters", ERASE, "already erases delimiters: give none"),
        ("scrub:0,4", ERASE, "layer 4 is out of range: the model has 4 layers"),
        ("partial:3,4", ERASE, "the model has layers 0 to 3: give a lower layer"),
        ("leace", replace(ERASE, keep_last_n_blocks=1), "keep_last_n_blocks 0"),
        ("random-direction", replace(ERASE, keep_last_n_blocks=-1), "keep_last_n_blocks 0"),
        ("restart", replace(ERASE, keep_last_n_blocks=-1), "erases none: give --keep-last-n-blocks 0"),
        ("noise", replace(ERASE, keep_last_n_blocks=-1), "erases none: give --keep-last-n-blocks 0"),
    ],
)
def test_inapplicable_defence_is_refused(spec: str, policy: Policy, message: str) -> None:
    checkpoint, chosen = tiny_checkpoint(policy=policy), parse_defence(spec)
    with pytest.raises(UserError, match=message):
        chosen.check(checkpoint)
    with pytest.raises(UserError, match=message):
        chosen.fit(checkpoint, *secrets())


@pytest.mark.parametrize("family", ["qwen3", "olmo3"])
@pytest.mark.parametrize("policy", [ERASE, KEEP], ids=["erase", "keep"])
def test_restart_leaves_sealed_states(family: str, policy: Policy) -> None:
    checkpoint = tiny_checkpoint(family, policy)
    session, _ = run_session(checkpoint, parse_defence("restart").fit(checkpoint, *secrets()), TRACES)
    for row, ids in enumerate(TRACES):
        sealed = read_states(checkpoint.model, [sealed_layout(ids, MARKUP, policy)], [session.cache.held_indices(row)])
        for layer in range(4):
            for actual, kind in zip(states(session, row)[2 * layer :], (sealed.keys, sealed.values)):  # noqa: B905
                torch.testing.assert_close(actual, kind[layer, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_defence_changes_nothing_and_noise_does(family: str) -> None:
    checkpoint = tiny_checkpoint(family)
    _, memento = run_session(checkpoint, Memento(), TRACES)
    _, none = run_session(checkpoint, parse_defence("none").fit(checkpoint, *secrets()), TRACES)
    _, noise = run_session(checkpoint, parse_defence("noise:0.5").fit(checkpoint, *secrets()), TRACES)
    first = find_blocks(TRACES[0], MARKUP)[0].memento_end
    assert torch.equal(none[0], memento[0])
    assert torch.equal(noise[0][:first], memento[0][:first]) and (noise[0] - memento[0]).abs().max() > 1e-3


@pytest.mark.parametrize("policy", [ERASE, KEEP], ids=["erase", "keep"])
def test_partial_of_whole_mementos_is_seal_mementos(policy: Policy) -> None:
    checkpoint = tiny_checkpoint("qwen3", policy)
    for spec in ("partial:99", "partial:99,0"):
        _, partial = run_session(checkpoint, parse_defence(spec).fit(checkpoint, *secrets()), TRACES)
        _, sealed = run_session(checkpoint, SealMementos(), TRACES)
        assert all(torch.equal(a, b) for a, b in zip(partial, sealed, strict=True))


def test_partial_changes_only_last_tokens_of_upper_layers() -> None:
    """After the first memento: states of `restart` in the part, and of `memento` elsewhere."""
    checkpoint = tiny_checkpoint("qwen3")
    block = find_blocks(TRACES[0], MARKUP)[0]
    ids = [TRACES[0][: block.memento_end + 1]]
    live, sealed, mixed = (
        run_session(checkpoint, arm, ids)[0]
        for arm in (Memento(), Restart(), parse_defence("partial:2,1").fit(checkpoint, *secrets()))
    )
    last = torch.from_numpy(live.cache.held_indices(0) > block.memento_end - 2)
    assert last.sum() == 2
    for number, (a, b, c) in enumerate(zip(states(live, 0), states(sealed, 0), states(mixed, 0), strict=True)):
        inside = last if number // 2 >= 1 else torch.zeros_like(last)
        assert torch.equal(c[:, inside], b[:, inside]) and torch.equal(c[:, ~inside], a[:, ~inside])
        assert number < 2 or not torch.equal(a[:, inside], b[:, inside])


def test_part_with_last_tokens_needs_mementos() -> None:
    for bad in ({"last": 2}, {"last": 2, "carrier": "delimiters"}, {"last": 0, "carrier": "mementos"}):
        with pytest.raises(UserError, match="last selects tokens of mementos"):
            Part(**bad)  # type: ignore[arg-type]


def test_scrubbing_all_layers_equals_restart() -> None:
    checkpoint = tiny_checkpoint("qwen3")
    restart, expected = run_session(checkpoint, Restart(), TRACES)
    scrubbed, logits = run_session(checkpoint, parse_defence("scrub:0,1,2,3").fit(checkpoint, *secrets()), TRACES)
    for row in range(2):
        torch.testing.assert_close(logits[row], expected[row], atol=1e-5, rtol=1e-5)
        for a, b in zip(states(scrubbed, row), states(restart, row), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    ids = [TRACES[0][: find_blocks(TRACES[0], MARKUP)[0].memento_end + 1]]
    live, sealed, last = (
        states(run_session(checkpoint, arm, ids)[0], 0)
        for arm in (Memento(), Restart(), ScrubDefence().arm(checkpoint))
    )
    assert all(torch.equal(a, b) for a, b in zip(last[:6], live[:6], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(last[6:], sealed[6:], strict=True))
    assert not torch.equal(live[7], sealed[7])


def test_drop_delimiters_removes_only_delimiters() -> None:
    checkpoint = tiny_checkpoint("llama", KEEP)
    arm = parse_defence("drop-delimiters").fit(checkpoint, *secrets())
    assert arm.adapt_policy(KEEP) == ERASE
    block = find_blocks(TRACES[0], MARKUP)[0]
    ids = [TRACES[0][: block.memento_end + 1]]
    live, dropped = (run_session(checkpoint, which, ids)[0] for which in (Memento(), arm))
    kept = ~np.isin(live.cache.held_indices(0), [block.start, block.end])
    np.testing.assert_array_equal(dropped.cache.held_indices(0), live.cache.held_indices(0)[kept])
    for a, b in zip(states(live, 0), states(dropped, 0), strict=True):
        torch.testing.assert_close(a[:, torch.from_numpy(kept)], b, atol=1e-6, rtol=1e-6)


@cache
def toy() -> tuple[Checkpoint, list[list[int]]]:
    checkpoint = load("toy-open", device="cpu")
    problems = [Ledger.sample(np.random.default_rng(seed), 1) for seed in range(2)]
    answers = [checkpoint.tokenizer.convert_tokens_to_ids(problem.response()) for problem in problems]
    return checkpoint, [[*checkpoint.prompt_ids(p.prompt), *a] for p, a in zip(problems, answers, strict=True)]


def test_cost_equals_a_count_by_hand() -> None:
    checkpoint, traces = toy()
    blocks = find_blocks(traces[0], checkpoint.markup)
    mementos = sum(block.memento_end + 1 - block.memento_start for block in blocks)
    prompt, length = blocks[0].start, blocks[0].memento_end + 1 - blocks[0].start
    kept = length - (blocks[0].end + 1 - blocks[0].start)
    peak = prompt + 3 * kept + length  # at the end of the last memento
    restart = cost(checkpoint, Restart(), traces[:1], turns=1)
    assert mementos == 20 and restart.extra_prefill_tokens == mementos
    assert restart.prefill_ratio == pytest.approx(1 + mementos / len(traces[0]))
    # the live cache without its block, the sealed cache before the last memento, and its copy after it
    assert restart.kv_ratio == pytest.approx((3 * prompt + (4 + 3 + 4) * kept) / peak)
    assert restart.latency_ratio > 0


def test_other_costs() -> None:
    checkpoint, keep = tiny_checkpoint(), tiny_checkpoint(policy=KEEP)
    free = cost(checkpoint, Memento(), TRACES[:1], turns=1)
    assert (free.extra_prefill_tokens, free.prefill_ratio, free.kv_ratio) == (0, 1, 1)
    blocks = find_blocks(TRACES[0], MARKUP)
    recomputed = sum(block.memento_end + 1 - block.memento_start for block in blocks) + len(blocks)
    assert cost(checkpoint, PartialDefence().arm(checkpoint), TRACES[:1], turns=1).extra_prefill_tokens == recomputed
    dropped = cost(keep, parse_defence("drop-delimiters").arm(keep), TRACES[:1], turns=1)
    assert dropped.extra_prefill_tokens == 0 and dropped.kv_ratio < 1
    with pytest.raises(UserError, match="give at least one"):
        cost(checkpoint, Restart(), [])


def test_counting_changes_nothing() -> None:
    checkpoint, traces = toy()
    with attending(checkpoint.model) as model:
        session = CountingSession(model, checkpoint.markup, checkpoint.policy, [(0,)])
        session.advance([traces[0]])
    assert session.forwarded_tokens == len(traces[0])
    uncounted, _ = run_session(checkpoint, Memento(), traces[:1])
    assert all(torch.equal(a, b) for a, b in zip(states(session, 0), states(uncounted, 0), strict=True))


def test_utility_on_ledger() -> None:
    checkpoint, _ = toy()
    none, restart = (
        accuracy_utility(checkpoint, parse_defence(name).arm(checkpoint), [ledger(1, 10)])
        for name in ("none", "restart")
    )
    assert (none.defended.value, none.undefended.value, none.effect.value) == (1, 1, 0)
    assert restart.undefended.value == 1 and restart.defended.value <= 0.2
    assert restart.effect.value == pytest.approx(restart.defended.value - 1)
    assert restart.effect.high < 0 and none.unit == "accuracy" and none.n == 10


def test_likelihood_utility_is_the_mean_gap_after_the_first_erasure() -> None:
    checkpoint, traces = toy()
    utility = likelihood_utility(checkpoint, Restart(), [traces[0], traces[0][:10], traces[1]])
    gaps = []
    for ids in traces:
        first = find_blocks(ids, checkpoint.markup)[0].memento_end + 1
        restarted, memento = (
            log2_probabilities(checkpoint, arm, [ids])[0][first - 1 :] for arm in (Restart(), Memento())
        )
        gaps.append(restarted - memento)
    assert utility.effect.value == pytest.approx(np.concatenate(gaps).mean(), abs=1e-4) and utility.effect.value < -0.5
    assert utility.n == 2 and utility.defended.value - utility.undefended.value == pytest.approx(utility.effect.value)
    assert likelihood_utility(checkpoint, Memento(), traces).effect.value == 0
    with pytest.raises(UserError, match="give traces with finished mementos"):
        likelihood_utility(checkpoint, Memento(), [traces[0][:10]])
