"""LEACE and its placebo: the concept is removed on the fitted traces, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.defences import (
    CLASSES,
    covariance,
    memento_states,
    run_session,
    secrets,
    tiny_checkpoint,
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
def test_leace_removes_linear_information_on_train_traces(family: str, block: int) -> None:
    """The theorem of LEACE on the fitted traces: no cross-covariance, so least squares predicts the base rate."""
    checkpoint, (task, split) = tiny_checkpoint(family), secrets(block)
    fitted = split.train[::2]  # attackers also train on the others
    labels = one_hot(task, fitted)
    before, after, random = (
        memento_states(checkpoint, parse_defence(name).fit(checkpoint, task, split), task, fitted, block)
        for name in ("none", "leace", "random-direction")
    )
    n_informative = 0
    for number, sites in enumerate(zip(before, after, random, strict=True)):
        for token in range(4):
            original, cleaned, other = (torch.stack(site)[:, token] for site in sites)
            size = covariance(original, labels)
            if number < 2:  # the first layer depends on the text alone
                assert size < 1e-5
                continue
            n_informative += 1
            assert covariance(cleaned, labels) < 1e-4 * size
            assert 0.3 * size < covariance(other, labels) < size
            predicted = [
                x @ torch.linalg.pinv(x, rtol=1e-3) @ (labels - labels.mean(0))
                for x in (s - s.mean(0) for s in (original, cleaned))
            ]
            assert predicted[0].abs().max() > 0.2 and predicted[1].abs().max() < 0.02
            assert (cleaned - original).abs().max() < 20 * original.std()  # the oblique projection must stay bounded
    assert n_informative == 24


def test_leace_pools_tokens_of_mementos_of_unequal_length() -> None:
    checkpoint, (task, split) = tiny_checkpoint(), secrets(0, uneven=True)
    arm = parse_defence("leace").fit(checkpoint, task, split)
    assert all(len(removal.mean) == 1 for both in arm.removals for removal in both)  # type: ignore[attr-defined]
    fitted = split.train[::2]
    for site in memento_states(checkpoint, arm, task, fitted, 0)[2:]:
        labels = one_hot(task, fitted)
        lengths = torch.tensor([len(tokens) for tokens in site])
        pooled = torch.cat(site)
        assert lengths.unique().tolist() == [4, 5, 6]
        assert covariance(pooled, labels.repeat_interleave(lengths, 0)) < 1e-4 * float(pooled.std())


def test_leace_fits_train_traces_and_changes_only_their_mementos() -> None:
    checkpoint, (task, split) = tiny_checkpoint(), secrets(1)
    other = list(task.samples)
    for row in split.test:
        other[row] = replace(other[row], labels=((other[row].labels[0] + 1) % CLASSES,), block=0)
    fitted, repeated = (
        fit_removals(checkpoint, which, split.train) for which in (task, replace(task, samples=tuple(other)))
    )
    assert fitted[1] == repeated[1] == (1,)
    for a, b in zip(sum(fitted[0], ()), sum(repeated[0], ()), strict=True):
        assert torch.equal(a.left, b.left) and torch.equal(a.right, b.right) and torch.equal(a.mean, b.mean)
    original, cleaned = (
        memento_states(checkpoint, arm, task, split.test, 0)
        for arm in (Memento(), LeaceDefence().fit(checkpoint, task, split))
    )
    assert all(torch.equal(a, b) for x, y in zip(original, cleaned, strict=True) for a, b in zip(x, y, strict=True))


def test_random_directions_have_equal_rank_and_are_orthogonal() -> None:
    checkpoint, (task, split) = tiny_checkpoint(), secrets()
    leace, _ = fit_removals(checkpoint, task, split.train)
    random = parse_defence("random-direction:3").fit(checkpoint, task, split)
    same = parse_defence("random-direction:3").fit(checkpoint, task, split)
    for random_removal, leace_removal, same_removal in zip(
        sum(random.removals, ()), sum(leace, ()), sum(same.removals, ()), strict=True
    ):  # type: ignore[attr-defined]
        assert random_removal.ranks == leace_removal.ranks and torch.equal(random_removal.left, same_removal.left)
        projected = random_removal.left @ random_removal.right
        torch.testing.assert_close(projected @ projected, projected, atol=1e-9, rtol=0)
        torch.testing.assert_close(projected, projected.mT, atol=1e-9, rtol=0)
    assert max(leace[-1][1].ranks) == CLASSES - 1  # one-hot labels sum to 1


def test_a_high_tolerance_removes_nothing() -> None:
    checkpoint, (task, split) = tiny_checkpoint(), secrets()
    removals, _ = fit_removals(checkpoint, task, split.train, tolerance=0.9)
    assert all(removal.ranks == [0] * 4 for both in removals for removal in both)


@pytest.mark.parametrize("spec", ["leace", "random-direction", "partial:1", "scrub"])
def test_predictions_do_not_depend_on_chunk_size(spec: str) -> None:
    checkpoint, (task, split) = tiny_checkpoint(), secrets(1)
    arm = parse_defence(spec).fit(checkpoint, task, split)
    ids = [list(task.samples[row].ids) for row in (0, 1)]
    results = [run_session(checkpoint, arm, ids, size)[1] for size in (1, 5, 1000)]
    _, undefended = run_session(checkpoint, Memento(), ids)
    assert (results[0][0] - undefended[0]).abs().max() > 1e-3
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_token_after_a_memento_is_predicted_from_the_changed_cache() -> None:
    """The hidden state of `<|summary_end|>` saw the block, so the next token must not be predicted from it."""
    checkpoint, (task, split) = tiny_checkpoint(), secrets()
    end = find_blocks(task.samples[0].ids, MARKUP)[0].memento_end
    ids = [list(task.samples[0].ids)[: end + 1]]
    arm = LeaceDefence().fit(checkpoint, task, split)
    session, logits = run_session(checkpoint, arm, ids)
    cache_copy = session.cache.copy_rows([0])
    cache_copy.truncate(0, end)
    with attending(checkpoint.model):
        fresh = session.forward(cache_copy, [[7]], [np.array([end])], [np.array([end])])
    torch.testing.assert_close(logits[0][-1], fresh[0, -1], atol=1e-6, rtol=1e-6)


def test_missing_labels_are_no_class() -> None:
    task, _ = secrets()
    two = replace(
        task,
        samples=(replace(task.samples[0], labels=(1, -1)), replace(task.samples[1], labels=(2, 0))),
        targets=(*task.targets, Target("other", ("x", "y"))),
    )
    assert one_hot(two, np.array([0, 1])).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
