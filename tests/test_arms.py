"""The arms on all model families: their guarantees, and positive controls that each comparison can fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.arm_matrix import ERASE, KEEP, MATRIX, TRACES, donor, other_blocks
from helpers.families import FAMILIES, tiny
from helpers.traces import MARKUP
from torch import Tensor

from ghosttrace.ablation.arms import (
    ARMS,
    Arm,
    Memento,
    Noise,
    Part,
    Rerotated,
    Restart,
    RestartBare,
    RestartRenumbered,
    SealDelimiters,
    SealMementos,
    Swap,
)
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.masks import Visibility
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.cache import KVCache
from ghosttrace.model.rotary import rerotate
from ghosttrace.model.session import Session

PARTS = {
    "layers": Part(layers=(1, 2)),
    "heads": Part(heads=(1,)),
    "keys": Part(kv=("k",)),
    "values": Part(kv=("v",)),
}


def replay(
    family: str, arm: Arm, policy: Policy, tokens: list[list[int]], size: int = 4
) -> tuple[Session, list[Tensor]]:
    """Feed traces to a session under an arm; return the session and the logits after every token."""
    parts: list[list[Tensor]] = [[] for _ in tokens]
    with attending(tiny(family)) as model:
        session = Session(model, MARKUP, arm.adapt_policy(policy), [(row,) for row in range(len(tokens))], arm.eraser)
        for begin in range(0, max(map(len, tokens)), size):
            for row, logits in enumerate(session.advance([t[begin : begin + size] for t in tokens], all_logits=True)):
                parts[row].append(logits)
    return session, [torch.cat(rows) for rows in parts]


def states(cache: KVCache, row: int) -> list[Tensor]:
    """Return the keys and values of a row, layer by layer."""
    length = cache.slots.length[row]
    return [s[row, :, :length].clone() for layer in cache.layers for s in (layer.keys, layer.values)]


def retained(tokens: list[int], policy: Policy) -> np.ndarray:
    return np.flatnonzero(expiry(tokens, MARKUP, policy) == NEVER)


def test_every_arm_is_in_the_matrix() -> None:
    assert MATRIX.keys() == ARMS.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MATRIX)
def test_arms_differ_from_memento_where_they_should(name: str, family: str) -> None:
    case = MATRIX[name]
    _, logits = replay(family, case.arm, case.policy, TRACES)
    _, reference = replay(family, Memento(), case.policy, TRACES)
    for row, tokens in enumerate(TRACES):
        first = find_blocks(tokens, MARKUP)[0].memento_end
        gap = (logits[row] - reference[row]).abs().amax(-1)
        assert gap[:first].max() <= 1e-5
        if case.differs_from_memento:
            assert gap[first:].max() > 1e-3
        else:
            assert gap.max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [ERASE, KEEP], ids=["erase-delimiters", "keep-delimiters"])
@pytest.mark.parametrize("arm", [Restart(), RestartRenumbered()], ids=lambda arm: arm.name)
def test_sealed_cache_does_not_depend_on_block_content(family: str, policy: Policy, arm: Arm) -> None:
    """Cache and logits are bitwise equal for different contents of the erased blocks."""
    session, logits = replay(family, arm, policy, TRACES)
    changed = [other_blocks(tokens) for tokens in TRACES]
    changed_session, others = replay(family, arm, policy, changed)
    for row, tokens in enumerate(TRACES):
        last = find_blocks(tokens, MARKUP)[-1].memento_end
        kept = states(session.cache, row), states(changed_session.cache, row)
        assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
        assert torch.equal(logits[row][last:], others[row][last:])


OTHER_POLICIES = {
    "last-1": replace(ERASE, keep_last_n_blocks=1),
    "before-summary-end": replace(KEEP, erase_at="before_summary_end"),
    "for-answer": replace(ERASE, keep_last_block_for_answer=True),
}


@pytest.mark.parametrize("name", OTHER_POLICIES)
def test_sealing_holds_under_other_policies(name: str) -> None:
    """The retained cache is bitwise independent of the expired tokens."""
    policy = OTHER_POLICIES[name]
    session, _ = replay("olmo3", Restart(), policy, TRACES)
    for row, tokens in enumerate(TRACES):
        times = expiry(tokens, MARKUP, policy)
        changed = [o if times[k] <= len(tokens) else t for k, (t, o) in enumerate(zip(tokens, other_blocks(tokens)))]  # noqa: B905
        assert changed != tokens
        both = [changed if number == row else other for number, other in enumerate(TRACES)]
        other_session, _ = replay("olmo3", Restart(), policy, both)
        pairs = zip(states(session.cache, row), states(other_session.cache, row), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in MATRIX if name not in ("full", "swap")])
@pytest.mark.parametrize("policy", [ERASE, KEEP, *OTHER_POLICIES.values()])
def test_logits_do_not_depend_on_chunk_size(name: str, policy: Policy) -> None:
    """Feeding token by token, in chunks or at once gives the same logits."""
    arm = MATRIX[name].arm
    if name in ("seal-delimiters", "restart-bare") and policy.mask_delimiters:
        pytest.skip("this arm needs kept delimiters")
    results = [replay("qwen3", arm, policy, TRACES, size)[1] for size in (1, 7, 1000)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_cache_depends_on_block_content(family: str) -> None:
    """Positive control: the comparison used for sealed caches fails for `memento`."""
    session, _ = replay(family, Memento(), ERASE, TRACES)
    changed_session, _ = replay(family, Memento(), ERASE, [other_blocks(tokens) for tokens in TRACES])
    assert any(
        not torch.equal(a, b) for a, b in zip(states(session.cache, 0), states(changed_session.cache, 0), strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [ERASE, KEEP, replace(KEEP, keep_last_n_blocks=1)], ids=["erase", "keep", "last-1"])
@pytest.mark.parametrize("renumber", [False, True])
def test_restart_equals_one_fresh_prefill(family: str, policy: Policy, renumber: bool) -> None:
    """Sealing memento by memento equals one prefill of the retained text, with stock attention."""
    model, arm = tiny(family), (RestartRenumbered() if renumber else Restart())
    ended = [tokens[: find_blocks(tokens, MARKUP)[-1].memento_end + 1] for tokens in TRACES]
    session, logits = replay(family, arm, policy, ended)
    for row, tokens in enumerate(ended):
        held = session.cache.held_indices(row)
        np.testing.assert_array_equal(held, np.flatnonzero(expiry(tokens, MARKUP, policy) > len(tokens)))
        position = torch.arange(len(held)) if renumber else torch.from_numpy(held)
        index = torch.arange(len(held))[None]
        with attending(model) as inside:
            visibility = Visibility(index, index, torch.full_like(index, NEVER), position[None], position[None])
            fresh = inside(
                input_ids=torch.tensor([[tokens[k] for k in held]]),
                position_ids=position[None],
                use_cache=False,
                expiry=visibility,
            ).logits[0]
        torch.testing.assert_close(logits[row][-1], fresh[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_renumbered_restart_equals_stock_transformers(family: str) -> None:
    """The reference uses no code of this package: the unmodified model prefills the retained text."""
    ended = [tokens[: find_blocks(tokens, MARKUP)[-1].memento_end + 1] for tokens in TRACES]
    _, logits = replay(family, RestartRenumbered(), ERASE, ended)
    for row, tokens in enumerate(ended):
        text = [tokens[k] for k in retained(tokens, ERASE)]
        fresh = tiny(family)(torch.tensor([text]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row][-1], fresh, atol=1e-5, rtol=1e-5)


def test_bare_restart_equals_restart_if_delimiters_are_erased() -> None:
    _, bare = replay("qwen3", RestartBare(), KEEP, TRACES)
    _, restarted = replay("qwen3", Restart(), ERASE, TRACES)
    assert all(torch.equal(a, b) for a, b in zip(bare, restarted, strict=True))
    with pytest.raises(UserError, match="use restart"):
        RestartBare().adapt_policy(ERASE)


@pytest.mark.parametrize("family", FAMILIES)
def test_rerotating_there_and_back_changes_nothing(family: str) -> None:
    session, _ = replay(family, Memento(), ERASE, TRACES[:1])
    before, position = states(session.cache, 0), session.cache.held_indices(0).copy()
    rerotate(tiny(family), session.cache, 0, np.arange(len(position)))
    moved = states(session.cache, 0)
    rerotate(tiny(family), session.cache, 0, position)
    for there, _away, back in zip(before, moved, states(session.cache, 0), strict=True):
        torch.testing.assert_close(back, there, atol=1e-5, rtol=1e-5)
    assert (before[0] - moved[0]).abs().max() > 1e-2 and torch.equal(before[1], moved[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_rerotated_first_layer_keys_are_those_of_the_new_positions(family: str) -> None:
    """First-layer keys depend on token and position alone, so re-rotated keys must equal those of a fresh prefill."""
    session, _ = replay(family, Rerotated(), ERASE, TRACES[:1])
    text = [TRACES[0][k] for k in session.cache.held_indices(0)]
    fresh, _ = replay(family, Memento(), replace(ERASE, keep_last_n_blocks=-1), [text])
    torch.testing.assert_close(states(session.cache, 0)[0], states(fresh.cache, 0)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_sealing_a_part_changes_only_that_part(name: str) -> None:
    """States outside the part are bitwise those of `memento`, and inside it those of `restart`."""
    part, policy = PARTS[name], KEEP
    traces = [TRACES[0][: find_blocks(TRACES[0], MARKUP)[0].memento_end + 1]]
    live, sealed, mixed = (
        states(replay("qwen3", arm, policy, traces, size=1000)[0].cache, 0)
        for arm in (Memento(), Restart(), Restart(part))
    )
    changed = 0
    for number, (a, b, c) in enumerate(zip(live, sealed, mixed, strict=True)):
        layer, kind = number // 2, "kv"[number % 2]
        for head in range(2):
            inside = (
                (part.layers is None or layer in part.layers)
                and (part.heads is None or head in part.heads)
                and kind in part.kv
            )
            assert torch.equal(c[head], (b if inside else a)[head])
            changed += inside and not torch.equal(a[head], b[head])
    assert changed


def test_sealing_a_carrier_changes_only_that_carrier() -> None:
    """`seal-delimiters` changes only kept delimiters, and `seal-mementos` only mementos."""
    tokens = TRACES[0][: find_blocks(TRACES[0], MARKUP)[0].memento_end + 1]
    block, held = find_blocks(tokens, MARKUP)[0], retained(tokens, KEEP)
    live, delimiters, mementos = (
        states(replay("llama", arm, KEEP, [tokens], size=1000)[0].cache, 0)[-1]
        for arm in (Memento(), SealDelimiters(), SealMementos())
    )
    is_memento = torch.from_numpy(held >= block.memento_start)
    is_end = torch.from_numpy(held == block.end)
    for sealed, expected in ((delimiters, is_end), (mementos, is_memento)):
        moved = (sealed - live).abs().amax((0, 2)) > 0
        assert torch.equal(moved, expected)


def test_positions_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="layer 7 is out of range: the model has 4 layers"):
        Part(layers=(7,)).check(4, 2)
    with pytest.raises(UserError, match="head 2 is out of range"):
        Part(heads=(2,)).check(4, 2)
    with pytest.raises(UserError, match="seal-delimiters needs retained delimiters"):
        SealDelimiters().adapt_policy(ERASE)
    for name in set(MATRIX) - {"full", "memento"}:
        with pytest.raises(UserError, match="keep_last_n_blocks"):
            MATRIX[name].arm.adapt_policy(replace(KEEP, keep_last_n_blocks=-1))
    with pytest.raises(UserError, match="swap needs keep_last_n_blocks 0"):
        Swap(donor).adapt_policy(Policy(True, keep_last_n_blocks=1))


def test_swap_equals_memento_with_the_donor_block() -> None:
    """After the swap, the cache equals that of a trace with the donor's block."""
    tokens = TRACES[0]
    block = find_blocks(tokens, MARKUP)[2]
    replaced = [*tokens[: block.start + 1], *donor((0,), 2, 0), *tokens[block.end :]]  # type: ignore[misc]
    _, swapped = replay("qwen3", Swap(donor), ERASE, [tokens])
    _, expected = replay("qwen3", Memento(), ERASE, [replaced])
    torch.testing.assert_close(swapped[0][block.memento_end :], expected[0][block.memento_end :], atol=1e-5, rtol=1e-5)


def test_noise_is_the_same_for_the_same_key_and_grows_with_size() -> None:
    runs = {size: [replay("llama", Noise(size), ERASE, TRACES)[1][0] for _ in range(2)] for size in (0.0, 0.1, 1.0)}
    assert all(torch.equal(*pair) for pair in runs.values())
    _, reference = replay("llama", Memento(), ERASE, TRACES)
    gaps = [(runs[size][0] - reference[0]).abs().mean() for size in (0.0, 0.1, 1.0)]
    assert gaps[0] == 0 < gaps[1] < gaps[2]


def test_removing_a_row_leaves_other_rows_unchanged() -> None:
    """Removing a row from the batch does not change the logits of other rows, under every arm."""
    for name, case in MATRIX.items():
        arm = case.arm
        with attending(tiny("qwen3")) as model:
            session = Session(model, MARKUP, arm.adapt_policy(case.policy), [(0,), (1,)], arm.eraser)
            session.advance([t[:25] for t in TRACES])
            session.select([1])
            (logits,) = session.advance([TRACES[1][25:]], all_logits=True)
        _, expected = replay("qwen3", arm, case.policy, [TRACES[0], TRACES[1]], size=25)
        torch.testing.assert_close(logits, expected[1][25:], atol=1e-5, rtol=1e-5, msg=name)


def test_memento_equals_the_masked_forward_pass() -> None:
    """The arm `memento` gives the logits of a forward pass with the expiry mask."""
    batch = pad_batch(TRACES, [expiry(tokens, MARKUP, ERASE) for tokens in TRACES], pad_id=0)
    with attending(tiny("mistral")) as model:
        masked = model(**batch.inputs, use_cache=False).logits
    _, logits = replay("mistral", Memento(), ERASE, TRACES)
    for row, tokens in enumerate(TRACES):
        torch.testing.assert_close(logits[row], masked[row, : len(tokens)], atol=1e-5, rtol=1e-5)
