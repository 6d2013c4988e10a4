"""Training examples and batches: the loss is that of the law written out, each token counted once, traces apart."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import brute_force
from torch import Tensor
from traces import MARKUP, trace
from transformers import DynamicCache, PreTrainedModel

from ghosttrace.attention import attending
from ghosttrace.errors import UserError
from ghosttrace.expiry import Policy, erasures, expiry
from ghosttrace.masks import Kernel
from ghosttrace.train.collate import Collator
from ghosttrace.train.examples import (
    IGNORED,
    STAGES,
    Example,
    Kind,
    Stage,
    check_expiry,
    disorder,
    kinds,
    make_example,
    stage_policy,
    truncate,
)

POLICIES = [Policy(True), Policy(False), Policy(False, erase_at="before_summary_end")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def labelled(tokens: list[int]) -> list[int]:
    """Labels on the completion alone."""
    begin = tokens.index(3) + 1
    return [IGNORED] * begin + tokens[begin:]


def example(tokens: list[int], stage: Stage, policy: Policy = POLICIES[0]) -> Example:
    return make_example(tokens, labelled(tokens), MARKUP, policy, stage)


def packed(*parts: Example) -> dict[str, Any]:
    """A row as `trl.pack_dataset` makes it."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return columns | {"seq_lengths": [len(part.input_ids) for part in parts]}


def nll(model: PreTrainedModel, rows: list[dict[str, Any]], kernel: Kernel = "stretches") -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each labelled column of a batch, and its labels: [B, W - 1] each."""
    batch = Collator(0)(rows)
    labels = batch["labels"][:, 1:]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "expiry", "attention_mask")}
    with attending(model, kernel):
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=IGNORED, reduction="none"), labels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["stretches", "sdpa", "matmul"])
def test_the_loss_of_a_batch_is_that_of_the_law_written_out(family: str, kernel: Kernel) -> None:
    """Padding, packing and windows included; the reference reads one query at a time."""
    model = tiny(family)
    sequences = [trace(seed, blocks) for seed, blocks in ((0, 4), (1, 2), (2, 3))]
    made = [example(tokens, "memento", policy) for tokens, policy in zip(sequences, POLICIES, strict=True)]
    losses, labels = nll(model, [packed(made[0], made[1]), packed(made[2])], kernel)
    total, count = losses.sum(), int((labels != IGNORED).sum())
    expected = torch.zeros(())
    for tokens, policy in zip(sequences, POLICIES, strict=True):
        logits = brute_force(model, tokens, expiry(tokens, MARKUP, policy))
        told = torch.tensor(labelled(tokens))[1:]
        expected += torch.nn.functional.cross_entropy(logits[:-1], told, ignore_index=IGNORED, reduction="sum")
    assert count == sum(label != IGNORED for tokens in sequences for label in labelled(tokens))
    torch.testing.assert_close(total / count, expected / count, **CLOSE)


def in_two_passes(model: PreTrainedModel, tokens: list[int], policy: Policy) -> Tensor:
    """The sealed stage's loss with a cache that is cut back and written again, gradients included; no windows."""
    cache = DynamicCache()
    found: list[Tensor] = []
    told = torch.tensor([*labelled(tokens)[1:], IGNORED])

    def read(places: range, learn: range) -> None:
        at = torch.tensor([list(places)])
        mask = torch.ones(1, cache.get_seq_length() + len(places), dtype=torch.int64)
        logits = model(
            torch.tensor([[tokens[place] for place in places]]),
            position_ids=at,
            past_key_values=cache,
            attention_mask=mask,
        ).logits[0]
        rows = [place - places.start for place in learn]
        targets = told[list(learn)]
        found.append(torch.nn.functional.cross_entropy(logits[rows], targets, ignore_index=IGNORED, reduction="sum"))

    done = 0
    for erasure in erasures(tokens, MARKUP, policy):
        held = cache.get_seq_length() + erasure.keys.start - done
        read(range(done, erasure.at), range(done, erasure.at - 1))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :held], layer.values[:, :, :held]
        read(range(erasure.keys.stop, erasure.at), range(erasure.at - 1, erasure.at))
        done = erasure.at
    read(range(done, len(tokens)), range(done, len(tokens)))
    return torch.stack(found).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_sealed_stage_is_two_passes_gradients_too(family: str, policy: Policy) -> None:
    """Windows are too wide to matter here; `test_probe_data` holds sealed layouts with windows to `restart`."""
    model = copy.deepcopy(tiny(family)).requires_grad_(True)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 500
    tokens, gradients = trace(7, 3), []
    losses, _ = nll(model, [packed(example(tokens, "sealed", policy))])
    for loss in (losses.sum(), in_two_passes(model, tokens, policy)):
        model.zero_grad()
        loss.backward()
        gradients.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (mine, grads), (reference, wanted) = gradients
    torch.testing.assert_close(mine, reference, **CLOSE)
    assert len(grads) == len(wanted)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()) + 1e-7, rtol=1e-4)


def test_a_sealed_example_differs_from_a_memento_one() -> None:
    """The positive control of the test above."""
    model, tokens = tiny("qwen3"), trace(7, 3)
    first, second = (nll(model, [packed(example(tokens, stage))])[0].sum() for stage in ("memento", "sealed"))
    assert (first - second).abs() > 0.1


@pytest.mark.parametrize("kernel", ["stretches", "sdpa", "matmul"])
@pytest.mark.parametrize("stage", STAGES)
def test_packed_traces_do_not_see_each_other(stage: Stage, kernel: Kernel) -> None:
    """What stands in one trace of a pack changes no other one."""
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
    alone, _ = nll(model, [packed(parts[2])], kernel)
    torch.testing.assert_close(after[0, end:], alone[0], **CLOSE)


streams = st.lists(st.sampled_from([4, 5, 6, 7, 8, 9, 2, 3]), max_size=60).map(lambda body: [1, 8, 3, *body])


@settings(max_examples=200)
@given(streams, st.sampled_from(POLICIES), st.sampled_from(STAGES))
def test_each_token_carries_loss_once(tokens: list[int], policy: Policy, stage: Stage) -> None:
    """On any stream at all, malformed ones included."""
    made = example(tokens, stage, policy)
    learned = made.labels != IGNORED
    assert sorted(made.position_ids[learned].tolist()) == list(range(3, len(tokens)))
    assert (made.labels[learned] == made.input_ids[learned]).all()
    assert (made.input_ids == np.array(tokens)[made.position_ids]).all()
    assert (made.kind == kinds(tokens, MARKUP, policy)[made.position_ids]).all()
    if stage != "sealed":
        law = expiry(tokens, MARKUP, stage_policy(policy, stage))
        assert (made.expiry == np.minimum(law, len(tokens))).all()
    predicted = np.flatnonzero(learned)
    assert (made.position_ids[predicted] - made.position_ids[predicted - 1] == 1).all()  # from the place before


@settings(max_examples=200)
@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 90), st.sampled_from(POLICIES), st.sampled_from(STAGES))
def test_truncation_leaves_whole_pairs_and_wastes_none(
    seed: int, blocks: int, width: int, policy: Policy, stage: Stage
) -> None:
    tokens = trace(seed, blocks)
    kept = truncate(tokens, MARKUP, policy, stage, width)
    lay = partial(make_example, markup=MARKUP, policy=policy, stage=stage)
    assert disorder(tokens[:kept], MARKUP, policy) is None
    assert len(lay(tokens[:kept], labelled(tokens)[:kept]).input_ids) <= width
    for more in range(kept + 1, len(tokens) + 1):
        fits = len(lay(tokens[:more], labelled(tokens)[:more]).input_ids) <= width
        assert not fits or disorder(tokens[:more], MARKUP, policy) is not None


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([1, 3, 4, 8, 5, 6, 8, 7], None),
        ([1, 3, 4, 8, 5, 6, 8], "it ends before summary_end"),
        ([1, 3, 4, 8, 6, 8, 7], "summary_start where block_end is due"),
        ([1, 3, 8, 5], "block_end where block_start is due"),
        ([1, 4, 3, 8], None),  # the prompt may hold what it likes
    ],
)
def test_disorder_is_named(tokens: list[int], said: str | None) -> None:
    assert disorder(tokens, MARKUP, POLICIES[0]) == said


def test_kinds() -> None:
    tokens = [1, 3, 9, 4, 8, 8, 5, 6, 8, 7, 9, 4, 8, 5, 6, 8, 7, 9, 9]
    found = "".join("tbmda"[kind] for kind in kinds(tokens, MARKUP, POLICIES[0]))
    assert found == "tttdbbddmdtdbddmdaa"
    assert [kind.name for kind in Kind] == ["TEXT", "BLOCK", "MEMENTO", "DELIMITER", "ANSWER"]


def test_an_expiry_column_is_held_to_the_law() -> None:
    tokens = trace(1, 2)
    made = example(tokens, "memento")
    check_expiry(expiry(tokens, MARKUP, POLICIES[0]).tolist(), made, "row 3")
    for wrong in ([*made.expiry[:-1]], [*made.expiry[:5], 6, *made.expiry[6:]]):
        with pytest.raises(UserError, match=r"row 3: its expiry column disagrees .* at token"):
            check_expiry(wrong, made, "row 3")
