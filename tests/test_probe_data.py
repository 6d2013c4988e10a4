"""Carriers, splits, tasks, sealed sequences, states and shards."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, tiny
from helpers.traces import MARKUP, trace
from hypothesis import given
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.bench.ledger import ledger_task
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.model.states import read_states
from ghosttrace.probing import features as features_module
from ghosttrace.probing.carriers import Carrier, MementoParts, padded_token_indices
from ghosttrace.probing.features import StateSelection, extract_features
from ghosttrace.probing.split import split

POLICIES = [
    Policy(mask_delimiters=masked, **more)  # type: ignore[arg-type]
    for masked in (True, False)
    for more in ({}, {"erase_at": "before_summary_end"}, {"keep_last_block_for_answer": True})
]


def sample(number: int, block: int = 1, **more: object) -> Sample:
    ids = trace(number)
    begin = find_blocks(ids, MARKUP)[block].start + 1
    return replace(Sample(ids, str(number), f"s{number}", block, (begin,), (number % 2,)), **more)


def tiny_checkpoint(family: str, policy: Policy) -> Checkpoint:
    return Checkpoint(family, tiny(family), gt.load("toy-open").tokenizer, MARKUP, policy)


def task_of(samples: list[Sample]) -> Task:
    return Task("random", tuple(samples), (Target("odd", ("no", "yes")),))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("arm", "layout"), [("memento", open_layout), ("restart", sealed_layout)])
def test_states_of_one_pass_equal_the_evicting_cache(family, policy, arm, layout) -> None:
    """The reference is a session with physical eviction, and for `restart` with recomputation block by block."""
    model, traces = tiny(family), [trace(number) for number in range(3)]
    with attending(model):
        session = Session(
            model, MARKUP, ARMS[arm]().adapt_policy(policy), [(row,) for row in range(3)], ARMS[arm]().eraser
        )
        session.advance(traces)
    count = int(session.cache.slots.length.min())
    indices = [session.cache.held_indices(row)[-count:] for row in range(3)]
    states = read_states(model, [layout(ids, MARKUP, policy) for ids in traces], indices)
    for row in range(3):
        held = slice(int(session.cache.slots.length[row]) - count, int(session.cache.slots.length[row]))
        for number, layer in enumerate(session.cache.layers):
            torch.testing.assert_close(states.keys[number, row], layer.keys[row, :, held], atol=1e-5, rtol=0)
            torch.testing.assert_close(states.values[number, row], layer.values[row, :, held], atol=1e-5, rtol=0)


def test_open_and_sealed_states_differ_where_a_block_was_seen() -> None:
    """Positive control of the test above: states of a memento depend on its block."""
    model, policy, ids = tiny("qwen3"), POLICIES[0], trace(0)
    block = find_blocks(ids, MARKUP)[1]
    indices = [np.array([block.start - 1, block.memento_end])]
    opened, sealed = (read_states(model, [make(ids, MARKUP, policy)], indices) for make in (open_layout, sealed_layout))
    apart = (opened.values - sealed.values).abs().amax(dim=(1, 2, 4))  # [L, P]
    assert apart[1:, 1].min() > 1e-2
    assert apart[0].max() < 1e-6  # first-layer values depend on the token alone


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(seed=st.integers(0, 10**6), other=st.integers(0, 10**6))
def test_sealed_layout_hides_erased_text(policy: Policy, seed: int, other: int) -> None:
    """From a retained column no erased token can be reached, directly or through other columns."""
    ids = trace(seed, blocks=3)
    layout = sealed_layout(ids, MARKUP, policy)
    erased = expiry(ids, MARKUP, policy) < NEVER
    columns = len(layout.token_index)
    index = np.arange(columns)
    sees = (index[None, :] <= index[:, None]) & (index[:, None] < layout.expiry[None, :])
    kept = np.flatnonzero(~erased)
    last = layout.columns(kept)
    reached = np.zeros(columns, dtype=bool)
    frontier = last[(layout.expiry[last] == NEVER)]
    while len(frontier):
        reached[frontier] = True
        frontier = np.flatnonzero(sees[frontier].any(axis=0) & ~reached)
    assert not erased[layout.token_index[reached]].any()
    assert (layout.token_index[layout.columns(range(len(ids)))] == np.arange(len(ids))).all()


def test_a_policy_that_keeps_blocks_cannot_be_sealed_in_one_pass() -> None:
    with pytest.raises(UserError, match="keep_last_n_blocks 0"):
        sealed_layout(trace(0), MARKUP, Policy(mask_delimiters=True, keep_last_n_blocks=1))


def test_hidden_states_equal_transformers_and_hooks_are_removed() -> None:
    model, ids = tiny("llama"), trace(3)
    layout = open_layout(ids, MARKUP, Policy(mask_delimiters=True, keep_last_n_blocks=-1))

    def hooks() -> list[int]:
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    before = hooks()
    states = read_states(model, [layout], [np.arange(len(ids))], hidden=True)
    assert hooks() == before
    with torch.no_grad():
        expected = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for number, hidden in enumerate(expected[1:-1]):  # the last hidden state comes after the final norm
        torch.testing.assert_close(states.hidden[number], hidden, atol=1e-5, rtol=0)


def test_error_for_nonfinite_states_names_the_layer() -> None:
    model = tiny("llama")
    weight = model.model.layers[2].self_attn.v_proj.weight
    before = weight[0, 0].item()
    weight.data[0, 0] = float("nan")
    try:
        with pytest.raises(UserError, match="values of layer 2 are not finite"):
            read_states(model, [open_layout(trace(0), MARKUP, POLICIES[0])], [np.array([3])])
    finally:
        weight.data[0, 0] = before


def test_token_indices_of_carriers() -> None:
    example = sample(0)
    blocks = find_blocks(example.ids, MARKUP)
    ids, parts = np.array(example.ids), MementoParts(example, blocks)
    direct = Carrier("memento").token_indices(parts)
    assert (ids[direct[0]], ids[direct[-1]]) == (MARKUP.summary_start, MARKUP.summary_end)
    assert list(ids[Carrier("delimiters", 1).token_indices(parts)]) == [MARKUP.block_start, MARKUP.block_end]
    before = Carrier("memento", -1).token_indices(parts)
    assert before[-1] < blocks[1].start < example.secret_indices[0] < direct[0]
    assert list(Carrier("memento", 0, 2).token_indices(parts)) == list(direct[-2:])
    assert not len(Carrier("memento", 9).token_indices(parts))


def test_carriers_of_unequal_length_are_refused() -> None:
    samples = [sample(number) for number in range(6)]

    def parts(traces: list[Sample]) -> list[MementoParts]:
        return [MementoParts(item, find_blocks(item.ids, MARKUP)) for item in traces]

    with pytest.raises(UserError, match="--pool mean"):
        padded_token_indices(Carrier("memento"), parts(samples))
    with pytest.raises(UserError, match="no trace has memento tokens at hop 7"):
        padded_token_indices(Carrier("memento", 7), parts(samples))
    short = [*samples[:5], sample(5, ids=trace(5, blocks=2))]
    with pytest.raises(UserError, match="trace 5 has no memento tokens at hop 1"):
        padded_token_indices(Carrier("memento", 1), parts(short))
    indices, weights = padded_token_indices(Carrier("memento", 0, "mean"), parts(samples))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert indices.shape == weights.shape


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=40, max_size=80),
    st.integers(0, 5),
)
def test_splits_share_neither_secret_nor_base(pairs: list[tuple[int, int]], seed: int) -> None:
    samples = [replace(sample(0), base=f"b{base}", secret=f"s{secret}") for base, secret in pairs]
    try:
        parts = split(samples, seed)
    except UserError:  # secrets and bases overlap; the assertions below hold anyway
        return
    sides = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(sides).tolist()) == list(range(len(samples)))
    for name in ("base", "secret"):
        held = [{getattr(samples[row], name) for row in side} for side in sides]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


def test_few_traces_are_split_within_traces_only_on_request() -> None:
    samples = [replace(sample(0), base=f"b{number % 2}", secret=f"s{number}") for number in range(40)]
    with pytest.raises(UserError, match="--within-traces"):
        split(samples)
    parts = split(samples, within_traces=True)
    assert parts.shares == "secrets"
    assert len(np.unique(parts.cluster)) == 40


@pytest.mark.parametrize("within", [False, True])
def test_clusters_are_base_traces_or_secrets(within: bool) -> None:
    order = np.random.default_rng(0).permutation(160)
    samples = [replace(sample(0), base=f"b{number // 2}", secret=f"s{number // 4}") for number in order]
    named = np.array([item.secret if within else item.base for item in samples])
    cluster = split(samples, within_traces=within).cluster
    assert ((cluster[:, None] == cluster) == (named[:, None] == named)).all()


def test_identical_traces_are_in_one_cluster() -> None:
    samples = [replace(sample(0), base="b", secret="", ids=trace(number // 3)) for number in range(120)]
    parts = split(samples, within_traces=True)
    assert parts.shares == "traces alike token for token"
    number = np.arange(120) // 3
    assert ((parts.cluster[:, None] == parts.cluster) == (number[:, None] == number)).all()
    for group in range(40):
        assert len(set(parts.split_names()[number == group])) == 1


def test_unlearnable_tasks_are_refused() -> None:
    few = task_of([sample(0)])
    with pytest.raises(UserError, match="1 samples for 2 classes"):
        few.check()
    once = [sample(number, labels=(int(number == 3),)) for number in range(9)]
    with pytest.raises(UserError, match="'yes' in one sample alone"):
        task_of(once).check()
    with pytest.raises(UserError, match="same label everywhere"):
        task_of([sample(number, labels=(0,)) for number in range(9)]).check()


@pytest.mark.parametrize("family", ["qwen3", "olmo3", "gemma3"])
def test_shards_equal_reading_one_trace_at_a_time(family: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(features_module, "TRACES_PER_SHARD", 3)
    policy = Policy(mask_delimiters=False)
    model, samples = tiny_checkpoint(family, policy), [sample(number) for number in range(7)]
    last, mean = Carrier("memento", 1, 1), Carrier("memento", 0, "mean")
    layouts = {"open": open_layout, "sealed": sealed_layout}
    for cache, layout in layouts.items():
        wanted = StateSelection(cache, (last, mean), (0, 3), hidden=True)
        features = extract_features(model, task_of(samples), wanted, tmp_path, batch_tokens=100)
        assert len(features.paths) == 3
        for row, example in enumerate(samples):
            block = find_blocks(example.ids, MARKUP)
            indices = [np.array([block[2].memento_end]), np.arange(block[1].memento_start, block[1].memento_end + 1)]
            expected = [
                read_states(model.model, [layout(example.ids, MARKUP, policy)], [wanted_indices], hidden=True)
                for wanted_indices in indices
            ]
            keys = expected[0].keys[3, 0].transpose(0, 1).flatten(1)
            torch.testing.assert_close(features.load(last, 3, "k")[row], keys, atol=1e-5, rtol=0)
            torch.testing.assert_close(
                features.load(last, 3, "k", [1])[row], keys[:, keys.shape[1] // 2 :], atol=1e-5, rtol=0
            )
            values = expected[1].values[0, 0].transpose(0, 1).flatten(1).mean(0, keepdim=True)
            torch.testing.assert_close(features.load(mean, 0, "v")[row], values, atol=1e-5, rtol=0)
            torch.testing.assert_close(
                features.load(last, 3, "hidden")[row], expected[0].hidden[3, 0], atol=1e-4, rtol=0
            )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("hops", [(0,), (0, 1)])
def test_block_kept_for_the_answer_is_sealed_in_shards(masked: bool, hops: tuple, tmp_path: Path) -> None:
    """Under this policy the last block is erased only at the next block, after all tokens read here."""
    policy = Policy(mask_delimiters=masked, keep_last_block_for_answer=True)
    model, samples = tiny_checkpoint("qwen3", policy), [sample(number) for number in range(3)]
    carriers = tuple(Carrier("memento", hop, 1) for hop in hops)
    features = extract_features(model, task_of(samples), StateSelection("sealed", carriers, (3,)), tmp_path)
    for (row, example), carrier in product(enumerate(samples), carriers):
        indices = carrier.token_indices(MementoParts(example, find_blocks(example.ids, MARKUP)))
        expected = read_states(model.model, [sealed_layout(example.ids, MARKUP, policy)], [indices]).values[3, 0]
        torch.testing.assert_close(
            features.load(carrier, 3, "v")[row], expected[:, 0].reshape(1, -1), atol=1e-5, rtol=0
        )


def test_existing_shards_are_reused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(features_module, "TRACES_PER_SHARD", 2)
    model, samples = tiny_checkpoint("llama", POLICIES[0]), [sample(number) for number in range(6)]
    wanted = StateSelection("open", (Carrier("memento", 0, 1),), (0,))
    paths = extract_features(model, task_of(samples), wanted, tmp_path).paths
    contents = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(contents[2][:50])
    stamps = paths[0].stat().st_mtime_ns
    extract_features(model, task_of(samples), wanted, tmp_path)
    assert [path.read_bytes() for path in paths] == contents
    assert paths[0].stat().st_mtime_ns == stamps
    extract_features(model, task_of(samples[::-1]), wanted, tmp_path)  # other traces: the shards are recomputed
    assert paths[0].read_bytes() != contents[0]


def test_erased_delimiters_and_kept_blocks_are_refused(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(3)]
    wanted = StateSelection("open", (Carrier("delimiters"),), (0,))
    with pytest.raises(UserError, match="no trace keeps its delimiters"):
        extract_features(tiny_checkpoint("llama", POLICIES[0]), task_of(samples), wanted, tmp_path)
    keeps = tiny_checkpoint("llama", Policy(mask_delimiters=True, keep_last_n_blocks=-1))
    with pytest.raises(UserError, match="never erased"):
        extract_features(keeps, task_of(samples), StateSelection("open", (Carrier("memento", 0, 1),), (0,)), tmp_path)


def test_secret_indices_of_ledger_point_at_the_labels() -> None:
    model = gt.load("toy-open")
    task = ledger_task(model, 20, level=2)
    spelled = [
        [int(model.tokenizer.decode([example.ids[index]])) for index in example.secret_indices]
        for example in task.samples
    ]
    assert spelled == [list(example.labels) for example in task.samples]
