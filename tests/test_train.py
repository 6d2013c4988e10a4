"""Training examples and batches: losses equal brute force, each token counts once, and packed traces are separate."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from helpers.brute_force import brute_force
from helpers.families import FAMILIES, tiny
from helpers.losses import nll, packed
from helpers.traces import MARKUP, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy, erasures, expiry
from ghosttrace.law.markup import DELIMITERS, find_blocks
from ghosttrace.law.masks import Kernel
from ghosttrace.model import attention
from ghosttrace.training.examples import (
    IGNORE_INDEX,
    STAGES,
    Example,
    Stage,
    TokenKind,
    check_expiry,
    delimiter_error,
    delimiter_outside_turn,
    make_example,
    stage_policy,
    token_kinds,
    truncated_length,
)
from ghosttrace.training.format_samples import read_prompts
from ghosttrace.training.prepare import PreparationReport

POLICIES = [Policy(True), Policy(False), Policy(False, erase_at="before_summary_end")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def segments_of_any_length() -> Iterator[None]:
    """Use segments for short traces too, which would otherwise use the dense mask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MIN_MEAN_SEGMENT_TOKENS", 1)
        yield


def labelled(tokens: list[int]) -> list[int]:
    """Return labels for the completion alone."""
    begin = tokens.index(3) + 1
    return [IGNORE_INDEX] * begin + tokens[begin:]


def example(tokens: list[int], stage: Stage, policy: Policy = POLICIES[0]) -> Example:
    return make_example(tokens, labelled(tokens), MementoLaw(MARKUP, policy), stage)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["segments", "sdpa", "matmul"])
def test_batch_loss_equals_brute_force(family: str, kernel: Kernel) -> None:
    """Includes padding, packing and sliding windows; the reference computes one query at a time."""
    model = tiny(family)
    sequences = [trace(seed, blocks) for seed, blocks in ((0, 4), (1, 2), (2, 3))]
    made = [example(tokens, "memento", policy) for tokens, policy in zip(sequences, POLICIES, strict=True)]
    losses, labels = nll(model, [packed(made[0], made[1]), packed(made[2])], kernel)
    total, count = losses.sum(), int((labels != IGNORE_INDEX).sum())
    expected = torch.zeros(())
    for tokens, policy in zip(sequences, POLICIES, strict=True):
        logits = brute_force(model, tokens, expiry(tokens, MARKUP, policy))
        targets = torch.tensor(labelled(tokens))[1:]
        expected += torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=IGNORE_INDEX, reduction="sum")
    assert count == sum(label != IGNORE_INDEX for tokens in sequences for label in labelled(tokens))
    torch.testing.assert_close(total / count, expected / count, **CLOSE)


def test_batches_use_the_segment_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer uses segments, in a batch of unpacked, packed and sealed traces."""
    calls, by_segments = [], attention._attend_by_segments

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return by_segments(*args, **kwargs)

    monkeypatch.setattr(attention, "_attend_by_segments", counted)
    model = tiny("olmo3")
    row = packed(example(trace(1, 3), "memento"), example(trace(2, 3), "sealed"))
    nll(model, [row, packed(example(trace(3, 2), "memento"))])
    assert len(calls) == model.config.num_hidden_layers
    nll(model, [row], "sdpa")
    assert len(calls) == model.config.num_hidden_layers


def sealed_loss_in_two_passes(model: PreTrainedModel, tokens: list[int], policy: Policy) -> Tensor:
    """Return the loss of the sealed stage from a truncated and recomputed cache, with gradients; no sliding windows."""
    cache = DynamicCache()
    losses: list[Tensor] = []
    labels = torch.tensor([*labelled(tokens)[1:], IGNORE_INDEX])

    def read(indices: range, learn: range) -> None:
        position_ids = torch.tensor([list(indices)])
        mask = torch.ones(1, cache.get_seq_length() + len(indices), dtype=torch.int64)
        logits = model(
            torch.tensor([[tokens[index] for index in indices]]),
            position_ids=position_ids,
            past_key_values=cache,
            attention_mask=mask,
        ).logits[0]
        rows = [index - indices.start for index in learn]
        targets = labels[list(learn)]
        losses.append(
            torch.nn.functional.cross_entropy(logits[rows], targets, ignore_index=IGNORE_INDEX, reduction="sum")
        )

    done = 0
    for erasure in erasures(tokens, MARKUP, policy):
        held = cache.get_seq_length() + erasure.keys.start - done
        read(range(done, erasure.expires_at), range(done, erasure.expires_at - 1))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :held], layer.values[:, :, :held]
        read(range(erasure.keys.stop, erasure.expires_at), range(erasure.expires_at - 1, erasure.expires_at))
        done = erasure.expires_at
    read(range(done, len(tokens)), range(done, len(tokens)))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_sealed_loss_and_gradients_equal_two_passes(family: str, policy: Policy) -> None:
    """Windows are too wide to matter here; `test_probe_data` tests sealed layouts with windows."""
    model = copy.deepcopy(tiny(family)).requires_grad_(True)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 500
    tokens, gradients = trace(7, 3), []
    losses, _ = nll(model, [packed(example(tokens, "sealed", policy))])
    for loss in (losses.sum(), sealed_loss_in_two_passes(model, tokens, policy)):
        model.zero_grad()
        loss.backward()
        gradients.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (loss_value, grads), (reference, reference_grads) = gradients
    torch.testing.assert_close(loss_value, reference, **CLOSE)
    assert len(grads) == len(reference_grads)
    for a, b in zip(grads, reference_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()) + 1e-7, rtol=1e-4)


def test_sealed_and_memento_examples_differ() -> None:
    """Positive control of the test above."""
    model, tokens = tiny("qwen3"), trace(7, 3)
    first, second = (nll(model, [packed(example(tokens, stage))])[0].sum() for stage in ("memento", "sealed"))
    assert (first - second).abs() > 0.1


@pytest.mark.parametrize("kernel", ["segments", "sdpa", "matmul"])
@pytest.mark.parametrize("stage", STAGES)
def test_packed_traces_do_not_see_each_other(stage: Stage, kernel: Kernel) -> None:
    """Changing one trace of a pack does not change the losses of the others."""
    model = tiny("olmo3")
    parts = [example(trace(seed, 3), stage) for seed in (1, 2, 3)]
    changed = [word + 1 if word in range(8, 90) else word for word in trace(2, 3)]
    other = example(changed, stage)
    before, _ = nll(model, [packed(*parts)], kernel)
    after, _ = nll(model, [packed(parts[0], other, parts[2])], kernel)
    begin, end = len(parts[0].input_ids), len(parts[0].input_ids) + len(other.input_ids)
    assert (before - after).abs()[0, begin : end - 1].max() > 0.1
    torch.testing.assert_close(before[0, : begin - 1], after[0, : begin - 1])
    torch.testing.assert_close(before[0, end - 1 :], after[0, end - 1 :])
    single, _ = nll(model, [packed(parts[2])], kernel)
    torch.testing.assert_close(after[0, end:], single[0], **CLOSE)


streams = st.lists(st.sampled_from([4, 5, 6, 7, 8, 9, 2, 3]), max_size=60).map(lambda body: [1, 8, 3, *body])


@settings(max_examples=200)
@given(streams, st.sampled_from(POLICIES), st.sampled_from(STAGES))
def test_each_token_has_loss_once(tokens: list[int], policy: Policy, stage: Stage) -> None:
    """For arbitrary streams, including malformed ones."""
    made = example(tokens, stage, policy)
    learned = made.labels != IGNORE_INDEX
    assert sorted(made.position_ids[learned].tolist()) == list(range(3, len(tokens)))
    assert (made.labels[learned] == made.input_ids[learned]).all()
    assert (made.input_ids == np.array(tokens)[made.position_ids]).all()
    assert (made.kind == token_kinds(tokens, MementoLaw(MARKUP, policy))[made.position_ids]).all()
    if stage != "sealed":
        times = expiry(tokens, MARKUP, stage_policy(policy, stage))
        assert (made.expiry == np.minimum(times, len(tokens))).all()
    predicted = np.flatnonzero(learned)
    assert (
        made.position_ids[predicted] - made.position_ids[predicted - 1] == 1
    ).all()  # predicted from the previous column


@settings(max_examples=200)
@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 90), st.sampled_from(POLICIES), st.sampled_from(STAGES))
def test_truncation_keeps_as_many_complete_pairs_as_fit(
    seed: int, blocks: int, width: int, policy: Policy, stage: Stage
) -> None:
    tokens = trace(seed, blocks)
    law = MementoLaw(MARKUP, policy)
    kept = truncated_length(tokens, law, stage, width)
    build = partial(make_example, law=law, stage=stage)
    assert delimiter_error(tokens[:kept], MARKUP, policy) is None
    assert len(build(tokens[:kept], labelled(tokens)[:kept]).input_ids) <= width
    for more in range(kept + 1, len(tokens) + 1):
        fits = len(build(tokens[:more], labelled(tokens)[:more]).input_ids) <= width
        assert not fits or delimiter_error(tokens[:more], MARKUP, policy) is not None


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 3, 4, 8, 5, 6, 8, 7], None),
        ([1, 3, 4, 8, 5, 6, 8], "the trace ends before summary_end"),
        ([1, 3, 4, 8, 6, 8, 7], "summary_start where block_end is expected"),
        ([1, 3, 8, 5], "block_end where block_start is expected"),
        ([1, 4, 3, 8], None),  # the prompt may contain anything
        ([1, 3, 4, 8, 2, 3, 8, 5, 6, 8, 7, 9, 9], "a turn begins or ends where block_end is expected"),
        ([1, 3, 4, 8, 5, 3, 6, 8, 7], "a turn begins or ends where summary_start is expected"),
        ([1, 3, 4, 8, 5, 6, 8, 7, 2, 3, 4, 8, 5, 6, 8, 7, 2], None),
        ([1, 3, 4, 8, 2], "the trace ends before block_end"),
    ],
)
def test_delimiter_errors_are_described(tokens: list[int], message: str | None) -> None:
    assert delimiter_error(tokens, MARKUP, POLICIES[0]) == message


@settings(max_examples=200)
@given(streams)
def test_accepted_delimiters_form_pairs(tokens: list[int]) -> None:
    """Each delimiter of an assistant turn belongs to a pair; a delimiter with loss outside a turn is an error."""
    inside, blocks = False, find_blocks(tokens, MARKUP)
    outside = []
    count = 0
    for index, token in enumerate(tokens):
        inside = token == 3 or (inside and token != 2)
        count += inside and token in MARKUP.delimiters
        if not inside and token in MARKUP.delimiters:
            outside.append(index)
    assert (delimiter_error(tokens, MARKUP, POLICIES[0]) is None) == (count == 4 * len(blocks))
    message = delimiter_outside_turn(tokens, tokens, MARKUP, POLICIES[0])
    assert message == (f"{DELIMITERS[tokens[outside[0]] - 4]} at token {outside[0]}" if outside else None)
    assert delimiter_outside_turn(tokens, [IGNORE_INDEX] * len(tokens), MARKUP, POLICIES[0]) is None


def test_token_kinds() -> None:
    tokens = [1, 3, 9, 4, 8, 8, 5, 6, 8, 7, 9, 4, 8, 5, 6, 8, 7, 9, 9]
    kinds = "".join("tbmda"[kind] for kind in token_kinds(tokens, MementoLaw(MARKUP, POLICIES[0])))
    assert kinds == "tttdbbddmdtdbddmdaa"
    assert [kind.name for kind in TokenKind] == ["TEXT", "BLOCK", "MEMENTO", "DELIMITER", "ANSWER"]


@pytest.mark.parametrize("policy", [*POLICIES, Policy(True, keep_last_n_blocks=-1)])
def test_expiry_column_is_checked_against_the_law(policy: Policy) -> None:
    """For the stage `full`, which erases nothing, the column is checked against the erasure of later stages."""
    tokens = trace(1, 2)
    times = expiry(tokens, MARKUP, stage_policy(policy, "memento"))
    truncated = np.minimum(times, len(tokens)).tolist()
    for column in (times.tolist(), truncated):
        check_expiry(column, tokens, MementoLaw(MARKUP, policy), "row 3")
    for wrong in (truncated[:-1], [*truncated[:5], 6, *truncated[6:]]):
        with pytest.raises(UserError, match=r"row 3: the expiry column disagrees .* at token"):
            check_expiry(wrong, tokens, MementoLaw(MARKUP, policy), "row 3")


def write(path: Path, *made: Example) -> Path:
    names = ("input_ids", "labels", "token_index")
    parquet.write_table(pyarrow.table({name: [item.columns[name].tolist() for item in made] for name in names}), path)
    return path


@pytest.mark.parametrize("policy", [*POLICIES, Policy(True, keep_last_block_for_answer=True)])
def test_prompts_contain_each_token_once(policy: Policy, tmp_path: Path) -> None:
    """Also if a sealed layout repeats mementos before the first label."""
    tokens = trace(1, 3)
    begin = tokens.index(7) + 5  # after the first erasure
    labels = [IGNORE_INDEX] * begin + tokens[begin:]
    rows = [make_example(tokens, labels, MementoLaw(MARKUP, policy), stage) for stage in STAGES]
    assert read_prompts(write(tmp_path / "rows.parquet", *rows), 8) == [tokens[:begin]]


def test_prompts_are_the_first_distinct_prompts(tmp_path: Path) -> None:
    bare = make_example(trace(9), trace(9), MementoLaw(MARKUP, POLICIES[0]), "memento")
    rows = [example(trace(seed), "memento") for seed in (1, 1, 2, 3)]
    starts = [trace(seed)[: trace(seed).index(3) + 1] for seed in (1, 2)]
    assert read_prompts(write(tmp_path / "rows.parquet", bare, *rows), 2) == starts
    with pytest.raises(UserError, match="--samples needs rows with a prompt before the first label"):
        read_prompts(write(tmp_path / "bare.parquet", bare, bare), 2)


def test_compression_counts_tokens_not_columns() -> None:
    """A sealed example has more columns than tokens, but the same peak of cached tokens."""
    by_stage, tokens = {}, trace(7, 3)
    for stage in STAGES:
        report, made = PreparationReport(), example(tokens, stage)
        report.count_used(made)
        peak = max(int((made.expiry[: t + 1] > t).sum()) for t in range(len(made.expiry)))
        by_stage[stage] = (report.compression, len(tokens) / peak)
        assert report.columns == len(made.input_ids)
    assert by_stage["full"][0] == 1.0
    assert all(actual == pytest.approx(expected) for actual, expected in by_stage.values())
