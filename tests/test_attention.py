"""Masked attention equals a brute-force implementation of the law, on every family."""

import numpy as np
import pytest
import torch
from helpers.brute_force import brute_force
from helpers.families import FAMILIES, SIZE, tiny
from helpers.traces import MARKUP, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.masks import FLEX_TILE_SIZE, Visibility, block_mask, segments, visibility_mask
from ghosttrace.model import attention
from ghosttrace.model.attention import attending, pad_batch

POLICIES = [Policy(True), Policy(False), Policy(False, keep_last_n_blocks=1, erase_at="before_summary_end")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kernel", ["segments", "sdpa", "matmul"])
def test_masked_forward_equals_brute_force(
    family: str, side: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MIN_MEAN_SEGMENT_TOKENS", 1)  # even for short sequences
    model = tiny(family)
    sequences = [trace(seed, blocks) for seed, blocks in ((0, 5), (1, 3), (2, 5))]
    expiries = [expiry(tokens, MARKUP, policy) for tokens, policy in zip(sequences, POLICIES, strict=True)]
    assert all((times < NEVER).sum() > 8 for times in expiries)
    batch = pad_batch(sequences, expiries, pad_id=0, side=side)  # type: ignore[arg-type]
    with attending(model, kernel):  # type: ignore[arg-type]
        logits = model(**batch.inputs, use_cache=False).logits
    for row, (tokens, times) in enumerate(zip(sequences, expiries, strict=True)):
        expected = brute_force(model, tokens, times)
        torch.testing.assert_close(logits[row, batch.attention_mask[row] == 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "olmo3"])
def test_flex_equals_sdpa(family: str) -> None:
    """Two families only, with and without sliding windows, because FlexAttention compiles a kernel."""
    model = tiny(family)
    sequences = [trace(3, 12), trace(4, 9)]
    batch = pad_batch(sequences, [expiry(tokens, MARKUP, Policy(True)) for tokens in sequences], pad_id=0)
    logits = {}
    for kernel in ("sdpa", "flex"):
        with attending(model, kernel):  # type: ignore[arg-type]
            logits[kernel] = model(**batch.inputs, use_cache=False).logits
    real = batch.attention_mask == 1
    torch.testing.assert_close(logits["flex"][real], logits["sdpa"][real], atol=1e-5, rtol=1e-5)


@settings(max_examples=150)
@given(st.data())
def test_segments_cover_exactly_the_visible_pairs(data: st.DataObject) -> None:
    """For arbitrary expiries, also with keys that no query sees and queries that see no key; rectangles are tight."""
    rows, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 24))
    times = st.one_of(st.integers(0, steps + 2), st.just(NEVER))
    distinct = data.draw(st.lists(st.lists(times, min_size=steps, max_size=steps), min_size=1, max_size=2))
    expiries = torch.tensor([distinct[data.draw(st.integers(0, len(distinct) - 1))] for _ in range(rows)])
    index = torch.arange(steps).expand(rows, steps)
    position = index + torch.tensor([[data.draw(st.integers(0, 1)) * 3] for _ in range(rows)]) * (index > steps // 2)
    visibility, window = (
        Visibility(index, index, expiries, position, position),
        data.draw(st.sampled_from([None, 1, 5])),
    )
    rebuilt = torch.zeros(rows, steps, steps, dtype=torch.bool)
    for part in segments(visibility, window):
        mask = torch.ones(len(part.queries), len(part.keys)).tril().bool() if part.mask is None else part.mask
        assert part.mask is not None or torch.equal(part.queries, part.keys)
        assert mask.any(0).all() and mask.any(1).all()
        for row in part.rows:
            assert not rebuilt[row, part.queries].any()
            rebuilt[row, part.queries[:, None], part.keys] = mask
    assert torch.equal(rebuilt, visibility_mask(visibility, window)[:, 0])


def test_fully_visible_segments_need_no_mask() -> None:
    """Full attention, and each trace of a pack without erasure, needs no T x T mask."""
    index = torch.arange(300)[None]
    for times, causal in (([NEVER] * 300, [300]), ([100] * 100 + [300] * 200, [100, 200])):
        parts = segments(Visibility(index, index, torch.tensor([times]), index, index))
        assert [len(part.queries) for part in parts] == causal
        assert all(part.mask is None for part in parts)
        windowed = segments(Visibility(index, index, torch.tensor([times]), index, index), window=150)
        assert [part.mask is None for part in windowed] == [steps <= 150 for steps in causal]


def test_segments_follow_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MIN_MEAN_SEGMENT_TOKENS", 1)
    model, sequences = tiny("qwen3"), [trace(3, 6), trace(4, 4)]
    batch = pad_batch(sequences, [expiry(tokens, MARKUP, Policy(True)) for tokens in sequences], pad_id=0)
    logits = {}
    for kernel in ("segments", "sdpa"):
        with attending(model, kernel), torch.autocast("cpu", torch.bfloat16):  # type: ignore[arg-type]
            logits[kernel] = model(**batch.inputs, use_cache=False).logits.float()
    real = batch.attention_mask == 1
    gap = (logits["segments"] - logits["sdpa"])[real].abs().max()
    assert gap < 0.05 * logits["sdpa"][real].abs().max()


def test_short_segments_take_the_dense_mask() -> None:
    """The mask that layers receive shows which kernel runs."""
    model, given_masks = tiny("llama"), []
    layer = model.base_model.layers[0].self_attn  # type: ignore[union-attr]
    layer.register_forward_pre_hook(lambda m, a, kw: given_masks.append(kw["attention_mask"]), with_kwargs=True)
    with attending(model):
        for steps, end in (
            (4 * attention.MIN_MEAN_SEGMENT_TOKENS, 3 * attention.MIN_MEAN_SEGMENT_TOKENS),
            (attention.MIN_MEAN_SEGMENT_TOKENS, 10),
        ):
            times = torch.full((1, steps), NEVER)
            times[:, :5] = end
            model(torch.ones(1, steps, dtype=torch.int64), use_cache=False, expiry=times)
    assert isinstance(given_masks[0], list) and isinstance(given_masks[1], Tensor)


@pytest.mark.parametrize("window", [None, 100, 700])
@pytest.mark.parametrize("steps", [384, 500])
def test_block_mask_covers_exactly_the_visible_pairs(window: int | None, steps: int) -> None:
    """Skipped tiles have no visible pair, full tiles no hidden pair; other tiles are masked in the kernel."""
    rng = np.random.default_rng(steps)
    times = np.full((2, steps), NEVER)
    for row in range(2):
        for start in (60, 250):
            times[row, start : start + 130] = start + 150 + rng.integers(0, 40)
    index = torch.arange(steps).expand(2, steps)
    visibility = Visibility(index, index, torch.from_numpy(times), index, index)
    dense, mask = visibility_mask(visibility, window)[:, 0], block_mask(visibility, window)
    tiles = -(-steps // FLEX_TILE_SIZE)
    for row in range(2):
        partial = _members(mask.kv_num_blocks[row, 0], mask.kv_indices[row, 0])
        full = _members(mask.full_kv_num_blocks[row, 0], mask.full_kv_indices[row, 0])
        assert not partial & full
        for q, k in np.ndindex(tiles, tiles):
            edges = [slice(i * FLEX_TILE_SIZE, min(steps, (i + 1) * FLEX_TILE_SIZE)) for i in (q, k)]
            tile = dense[row, edges[0], edges[1]]
            if (q, k) in full:
                assert tile.all()
            elif (q, k) not in partial:
                assert not tile.any()
        assert len(partial) < tiles * tiles
    position = torch.arange(steps)
    for row in range(2):
        batch = torch.full((), row)
        tested = mask.mask_mod(batch, batch, position[:, None], position[None, :])
        assert (tested == dense[row]).all()


def _members(counts: Tensor, indices: Tensor) -> set[tuple[int, int]]:
    return {(q, int(k)) for q, count in enumerate(counts) for k in indices[q, :count]}


def test_attending_restores_the_model() -> None:
    model = tiny("llama")
    tokens = torch.tensor([trace(0)])
    before = model(tokens, use_cache=False).logits
    with attending(model):
        inside = model(tokens, use_cache=False).logits
        masked = model(tokens, use_cache=False, expiry=torch.zeros_like(tokens) + tokens.shape[1] // 2).logits
        with pytest.raises(UserError, match="one expiry per key"):
            model(tokens, use_cache=False, expiry=torch.zeros(1, 3, dtype=torch.int64))
        after = model(tokens, use_cache=False).logits
    assert model.config._attn_implementation == "sdpa" and not model._forward_pre_hooks
    for logits in (inside, after, model(tokens, use_cache=False).logits):
        torch.testing.assert_close(logits, before, atol=1e-6, rtol=1e-6)
    assert (masked - before).abs().max() > 0.1


def test_nested_contexts_keep_erasing() -> None:
    model, tokens = tiny("llama"), torch.tensor([trace(0)])
    times = torch.from_numpy(expiry(trace(0), MARKUP, Policy(True)))[None]
    with attending(model):
        expected = model(tokens, use_cache=False, expiry=times).logits
        with attending(model):
            assert torch.equal(model(tokens, use_cache=False, expiry=times).logits, expected)
        assert torch.equal(model(tokens, use_cache=False, expiry=times).logits, expected)
    assert model.config._attn_implementation == "sdpa"


def test_unsupported_attention_is_refused() -> None:
    """Chunked and linear attention are refused on entry, attention sinks in the forward pass."""
    model = tiny("qwen2")
    for name, value in (("attention_chunk_size", 8), ("layer_types", ["linear_attention"] * 4)):
        before = getattr(model.config, name, None)
        setattr(model.config, name, value)
        with pytest.raises(UserError, match="has unsupported layers"), attending(model):
            pass
        setattr(model.config, name, before)
    sinks = AutoModelForCausalLM.from_config(GptOssConfig(**SIZE, head_dim=16, num_local_experts=2))
    with pytest.raises(UserError, match="s_aux"), attending(sinks):
        sinks(torch.tensor([[1, 2, 3]]), use_cache=False, expiry=torch.full((1, 3), 9))


def test_masked_logits_differ_from_causal_logits() -> None:
    """Positive control: masked and causal logits differ after the first erasure."""
    tokens = trace(0)
    times = expiry(tokens, MARKUP, Policy(True))
    first = int(times.min())
    for family in FAMILIES:
        model = tiny(family)
        with attending(model):
            masked = model(torch.tensor([tokens]), use_cache=False, expiry=torch.from_numpy(times)[None]).logits[0]
        gap = (masked - model(torch.tensor([tokens]), use_cache=False).logits[0]).abs().amax(-1)
        assert gap[:first].max() < 1e-5 < 1e-2 < gap[first:].max(), family
