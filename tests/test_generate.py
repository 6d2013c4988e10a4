"""Physical eviction equals masking, on every family; decoding, sampling and KV accounting."""

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, tiny
from helpers.traces import MARKUP, trace
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, Policy, alive, erasures, expiry
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.generate import Request, generate
from ghosttrace.model.sampling import Sampling, probabilities, sample
from ghosttrace.model.session import Session

TRACES = [trace(seed, blocks) for seed, blocks in ((0, 5), (1, 6), (2, 7))]
POLICIES = [
    Policy(True),
    Policy(False),
    Policy(True, keep_last_n_blocks=1),
    Policy(False, erase_at="before_summary_end"),
    Policy(False, keep_last_block_for_answer=True),
]


def masked(family: str, policy: Policy) -> list[torch.Tensor]:
    batch = pad_batch(TRACES, [expiry(tokens, MARKUP, policy) for tokens in TRACES], pad_id=0)
    with attending(tiny(family)) as model:
        logits = model(**batch.inputs, use_cache=False).logits
    return [row[: len(tokens)] for row, tokens in zip(logits, TRACES, strict=True)]


def replay(family: str, policy: Policy, size: int) -> tuple[Session, list[torch.Tensor]]:
    """Feed the traces to an evicting session, `size` tokens at a time."""
    parts: list[list[torch.Tensor]] = [[] for _ in TRACES]
    with attending(tiny(family)) as model:
        session = Session(model, MARKUP, policy, [(row,) for row in range(len(TRACES))])
        for begin in range(0, max(map(len, TRACES)), size):
            for row, logits in enumerate(session.advance([t[begin : begin + size] for t in TRACES], all_logits=True)):
                parts[row].append(logits)
    return session, [torch.cat(rows) for rows in parts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("policy", POLICIES[:2], ids=["erase-delimiters", "keep-delimiters"])
def test_eviction_equals_masking(family: str, size: int, policy: Policy) -> None:
    _session, evicted = replay(family, policy, size)
    assert all(len(erasures(tokens, MARKUP, policy)) >= 5 for tokens in TRACES)
    for row, expected in enumerate(masked(family, policy)):
        torch.testing.assert_close(evicted[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES[2:], ids=["keep-last-1", "before-summary-end", "for-answer"])
@pytest.mark.parametrize("family", ["qwen3", "olmo3"])
def test_eviction_equals_masking_under_other_policies(family: str, policy: Policy) -> None:
    _, evicted = replay(family, policy, 3)
    for row, expected in enumerate(masked(family, policy)):
        torch.testing.assert_close(evicted[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_cache_contents_follow_the_law(policy: Policy) -> None:
    """At every step the cached keys are those that the law keeps visible, and the allocation follows."""
    session, _ = replay("llama", policy, 1)
    for row, tokens in enumerate(TRACES):
        times = expiry(tokens, MARKUP, policy)
        assert session.rows[row].kv_tokens == alive(times).tolist()
        np.testing.assert_array_equal(session.cache.held_indices(row), np.flatnonzero(times > len(tokens)))
    slots, layer = session.cache.slots, session.cache.layers[0]
    assert layer.keys.shape[2] == slots.capacity <= max(map(max, (r.kv_tokens for r in session.rows))) * 9 // 8 + 65


def test_memory_is_released_after_erasure() -> None:
    """The memory of a block of 2,000 tokens is released after its erasure."""
    tokens = [1, 3, 4, *[9] * 2000, 5, 6, 9, 7, 9]
    with attending(tiny("qwen3")) as model:
        session = Session(model, MARKUP, Policy(True), [(0,)])
        session.advance([tokens[:2004]])
        full = session.cache.nbytes
        session.advance([tokens[2004:]])
    assert session.cache.slots.length[0] == 6 and session.cache.nbytes < full / 20


def forced(tokens: list[int]):  # type: ignore[no-untyped-def]
    """Return a harness that forces the response in `tokens`."""
    begin = tokens.index(3) + 1

    def put(tracker: ExpiryTracker) -> int | None:
        index = tracker.block_tracker.num_read
        return tokens[index] if begin <= index < len(tokens) else None

    return Request(tokens[:begin], (0, begin), put)


def test_generation_reports_the_kv_curve() -> None:
    policy, limit = Policy(True), max(map(len, TRACES))
    done = generate(tiny("qwen3"), [forced(t) for t in TRACES], MARKUP, policy, Sampling(limit))
    for generation, tokens in zip(done, TRACES, strict=True):
        sequence = generation.prompt + generation.tokens
        assert sequence[: len(tokens)] == tokens and generation.blocks >= 5
        curve = alive(expiry(sequence[:-1], MARKUP, policy))
        assert generation.kv_tokens.tolist() == curve.tolist()
        response = curve[len(generation.prompt) :]
        assert (generation.peak_kv_tokens, generation.auc_kv_tokens) == (curve.max(), response.sum())


def test_blocks_in_prompts_are_erased_during_prefill() -> None:
    """In a multi-turn prompt, the cache never holds all earlier blocks of the assistant."""
    prompt = [*TRACES[2], 2, 1, 9, 3]
    (done,) = generate(tiny("qwen3"), [Request(prompt)], MARKUP, Policy(True), Sampling(4))
    sequence = done.prompt + done.tokens
    curve = alive(expiry(sequence[:-1], MARKUP, Policy(True)))
    assert done.kv_tokens.tolist() == curve.tolist()
    assert done.peak_kv_tokens == curve.max() < len(prompt)


def test_empty_batches_and_prompts() -> None:
    assert generate(tiny("llama"), [], MARKUP, Policy(True), Sampling(4)) == []
    with pytest.raises(UserError, match="prompt is empty"):
        generate(tiny("llama"), [Request([])], MARKUP, Policy(True), Sampling(4))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_greedy_decoding_equals_transformers(family: str) -> None:
    """Without blocks, tokens equal those of `model.generate`, and rows end independently."""
    model = tiny(family)
    prompts = [[1, 20, 30, 3], [1, 9, 3], [1, 50, 51, 52, 53, 3]]
    done = generate(model, [Request(p) for p in prompts], MARKUP, Policy(True), Sampling(40))
    for prompt, generation in zip(prompts, done, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0].tolist()
        assert generation.prompt + generation.tokens == out
        assert generation.finish_reason == ("eos" if out[-1] == 2 else "length")


def test_stop_at_eos_and_stream() -> None:
    ends = [forced([1, 3, 9, 9, 2]), forced([1, 3, 9, 9, 9, 9, 9, 2])]
    streamed: list[tuple[int, int]] = []
    done = generate(
        tiny("llama"),
        ends,
        MARKUP,
        Policy(True),
        Sampling(20),
        on_token=lambda row, token: streamed.append((row, token)),
    )
    assert [g.tokens for g in done] == [[9, 9, 2], [9, 9, 9, 9, 9, 2]] and {g.finish_reason for g in done} == {"eos"}
    assert [token for row, token in streamed if row == 1] == done[1].tokens


def test_max_block_tokens_forces_the_block_to_end() -> None:
    request = Request([1, 3], (0,), lambda tracker: 4 if tracker.block_tracker.num_read == 2 else None)
    (done,) = generate(tiny("llama"), [request], MARKUP, Policy(True), Sampling(12, max_block_tokens=5))
    assert done.tokens[0] == 4 and done.tokens.index(5) <= 6


SAMPLINGS = [Sampling(1, 0.6, 0.95, 20), Sampling(1, 1.0, min_p=0.05), Sampling(1, 1.3, top_p=0.7), Sampling(1, 1.0)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["paper", "min-p", "top-p", "plain"])
def test_probabilities_equal_the_warpers_of_transformers(sampling: Sampling) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).double() * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    expected = warpers(torch.zeros(4, 1, dtype=torch.long), logits).softmax(-1)
    ids, p = probabilities(logits, sampling)
    torch.testing.assert_close(torch.zeros_like(expected).scatter(-1, ids, p), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["paper", "min-p", "top-p", "plain"])
def test_samples_follow_their_distribution(sampling: Sampling) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5]])
    ids, p = probabilities(logits, sampling)
    grid = (np.arange(20_000) + 0.5) / 20_000
    drawn = sample(logits.expand(len(grid), -1), sampling, grid)
    share = np.bincount(drawn, minlength=5) / len(grid)
    expected = torch.zeros(5, dtype=torch.float64).scatter(0, ids[0], p[0]).numpy()
    np.testing.assert_allclose(share, expected, atol=1e-4)
    assert sample(logits, sampling, np.array([1 - 1e-17])) in [[i] for i in np.flatnonzero(expected)]


def test_invalid_sampling_is_refused() -> None:
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 2.0}, {"max_block_tokens": 0}):
        with pytest.raises(UserError):
            Sampling(4, **bad)  # type: ignore[arg-type]
