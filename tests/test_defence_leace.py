"""LEACE and its placebo: what is removed is gone where it was fitted, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.defences import (
    CLASSES,
    checkpoint,
    covariance,
    memento_states,
    run_session,
    secrets,
)
from helpers.traces import MARKUP

from ghosttrace.ablation.arms import Memento
from ghosttrace.auditing.defences import parse_defence
from ghosttrace.auditing.defences.leace import LeaceDefence, fit_removals, one_hot
from ghosttrace.data.task import Target
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("block", [0, 1])
def test_after_leace_no_linear_probe_tells_train_traces_apart(family: str, block: int) -> None:
    """LEACE's theorem where it was fitted: no cross-covariance, so least squares predicts the base rate."""
    one, (task, split) = checkpoint(family), secrets(block)
    fitted = split.train[::2]  # attackers learn on the others too
    labels = one_hot(task, fitted)
    before, after, random = (
        memento_states(one, parse_defence(name).fit(one, task, split), task, fitted, block)
        for name in ("none", "leace", "random-direction")
    )
    told = 0
    for number, sites in enumerate(zip(before, after, random, strict=True)):
        for place in range(4):
            plain, clean, other = (torch.stack(site)[:, place] for site in sites)
            size = covariance(plain, labels)
            if number < 2:  # the first layer knows nothing but the text
                assert size < 1e-5
                continue
            told += 1
            assert covariance(clean, labels) < 1e-4 * size
            assert 0.3 * size < covariance(other, labels) < size
            predicted = [
                x @ torch.linalg.pinv(x, rtol=1e-3) @ (labels - labels.mean(0))
                for x in (s - s.mean(0) for s in (plain, clean))
            ]
            assert predicted[0].abs().max() > 0.2 and predicted[1].abs().max() < 0.02
            assert (clean - plain).abs().max() < 20 * plain.std()  # oblique, but no blow-up
    assert told == 24


def test_leace_of_mementos_of_several_lengths_is_about_their_tokens_together() -> None:
    one, (task, split) = checkpoint(), secrets(0, uneven=True)
    arm = parse_defence("leace").fit(one, task, split)
    assert all(len(removal.mean) == 1 for both in arm.removals for removal in both)  # type: ignore[attr-defined]
    fitted = split.train[::2]
    for site in memento_states(one, arm, task, fitted, 0)[2:]:
        labels = one_hot(task, fitted)
        lengths = torch.tensor([len(tokens) for tokens in site])
        pooled = torch.cat(site)
        assert lengths.unique().tolist() == [4, 5, 6]
        assert covariance(pooled, labels.repeat_interleave(lengths, 0)) < 1e-4 * float(pooled.std())


def test_leace_learns_from_train_traces_alone_and_cleans_those_mementos_alone() -> None:
    one, (task, split) = checkpoint(), secrets(1)
    other = list(task.samples)
    for row in split.test:
        other[row] = replace(other[row], labels=((other[row].labels[0] + 1) % CLASSES,), block=0)
    fitted, again = (fit_removals(one, which, split.train) for which in (task, replace(task, samples=tuple(other))))
    assert fitted[1] == again[1] == (1,)
    for a, b in zip(sum(fitted[0], ()), sum(again[0], ()), strict=True):
        assert torch.equal(a.left, b.left) and torch.equal(a.right, b.right) and torch.equal(a.mean, b.mean)
    plain, clean = (
        memento_states(one, arm, task, split.test, 0) for arm in (Memento(), LeaceDefence().fit(one, task, split))
    )
    assert all(torch.equal(a, b) for x, y in zip(plain, clean, strict=True) for a, b in zip(x, y, strict=True))


def test_random_directions_are_as_many_and_orthogonal() -> None:
    one, (task, split) = checkpoint(), secrets()
    leace, _ = fit_removals(one, task, split.train)
    random = parse_defence("random-direction:3").fit(one, task, split)
    same = parse_defence("random-direction:3").fit(one, task, split)
    for mine, theirs, again in zip(sum(random.removals, ()), sum(leace, ()), sum(same.removals, ()), strict=True):  # type: ignore[attr-defined]
        assert mine.ranks == theirs.ranks and torch.equal(mine.left, again.left)
        projected = mine.left @ mine.right
        torch.testing.assert_close(projected @ projected, projected, atol=1e-9, rtol=0)
        torch.testing.assert_close(projected, projected.mT, atol=1e-9, rtol=0)
    assert max(leace[-1][1].ranks) == CLASSES - 1  # one-hot labels sum to 1


def test_a_high_tolerance_removes_nothing() -> None:
    one, (task, split) = checkpoint(), secrets()
    removals, _ = fit_removals(one, task, split.train, tolerance=0.9)
    assert all(removal.ranks == [0] * 4 for both in removals for removal in both)


@pytest.mark.parametrize("spec", ["leace", "random-direction", "partial:1", "scrub"])
def test_predictions_do_not_depend_on_how_a_trace_is_cut(spec: str) -> None:
    one, (task, split) = checkpoint(), secrets(1)
    arm = parse_defence(spec).fit(one, task, split)
    ids = [list(task.samples[row].ids) for row in (0, 1)]
    results = [run_session(one, arm, ids, size)[1] for size in (1, 5, 1000)]
    _, plain = run_session(one, Memento(), ids)
    assert (results[0][0] - plain[0]).abs().max() > 1e-3
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_token_behind_a_cleaned_memento_is_predicted_from_the_cleaned_cache() -> None:
    """The hidden state of `<|summary_end|>` saw the block; what is predicted from must not be that one."""
    one, (task, split) = checkpoint(), secrets()
    end = find_blocks(task.samples[0].ids, MARKUP)[0].memento_end
    ids = [list(task.samples[0].ids)[: end + 1]]
    arm = LeaceDefence().fit(one, task, split)
    session, logits = run_session(one, arm, ids)
    again = session.cache.copy_rows([0])
    again.truncate(0, end)
    with attending(one.model):
        fresh = session.forward(again, [[7]], [np.array([end])], [np.array([end])])
    torch.testing.assert_close(logits[0][-1], fresh[0, -1], atol=1e-6, rtol=1e-6)


def test_labels_that_do_not_apply_are_no_class() -> None:
    task, _ = secrets()
    two = replace(
        task,
        samples=(replace(task.samples[0], labels=(1, -1)), replace(task.samples[1], labels=(2, 0))),
        targets=(*task.targets, Target("other", ("x", "y"))),
    )
    assert one_hot(two, np.array([0, 1])).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
