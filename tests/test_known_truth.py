"""Benchmarks with a known truth: the exact posterior against enumeration, and probes that find it.

A benchmark with `secrets` needs a row in `MATRIX`, which enumerates all traces with the same retained text.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ghosttrace as gt
from ghosttrace.bench import GENERATED_BENCHES, SECRET_BENCHES, Bench, Grade, Protocol
from ghosttrace.bench.ledger import N_DIGITS, N_NOTES, SECRET_STREAM, Ledger, ledger, ledger_task
from ghosttrace.data.task import Target, Task
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.results import open_run

World = tuple[list[int], str]
"""Token ids of a trace, and the class of a target in it."""


@cache
def toy() -> Checkpoint:
    return gt.load("toy-open", device="cpu")


@dataclass(frozen=True)
class Truth:
    """A benchmark and an enumeration of all traces with the same retained text.

    Attributes:
        bench: Benchmark with `secrets`.
        blocks: Blocks that can contain a secret.
        worlds: Maps (block, target) to all equally likely traces with the retained text of the first sample of seed 0.
        answers: Yields all equally likely pairs (text retained before the answer, answer) with one retained text.
            None if the benchmark states no ceiling.
    """

    bench: Bench
    blocks: tuple[int, ...]
    worlds: Callable[[int, str], Iterator[World]]
    answers: Callable[[], Iterator[tuple[tuple[int, ...], str]]] | None = None


def ids_of(ledger: Ledger) -> list[int]:
    return [*toy().prompt_ids(ledger.prompt), *toy().tokenizer.convert_tokens_to_ids(ledger.response())]


def retained(ids: Any) -> tuple[int, ...]:
    """Return the tokens that are never erased."""
    times = expiry(ids, toy().markup, toy().policy)
    return tuple(token for token, time in zip(ids, times, strict=True) if time == NEVER)


def ledger_worlds(level: int, block: int, target: str) -> Iterator[World]:
    """Yield all traces with the same retained text: other notes, or hidden digits changed and then restored."""
    ledger = Ledger.sample(np.random.default_rng([0, level, SECRET_STREAM]), level)
    kind, digit_index = target.split("-")
    if kind == "note":
        for digit in range(10):
            notes = ledger.notes.copy()
            notes[block, int(digit_index)] = digit
            yield ids_of(replace(ledger, notes=notes)), str(digit)
        return
    for shift in np.ndindex(*[10] * level):
        increments = ledger.increments.copy()
        for number, sign in ((block, 1), (block + 1, -1)):
            increments[number, 0, N_DIGITS - level :] += sign * np.array(shift)
        other = replace(ledger, increments=increments % 10)
        yield ids_of(other), str(other.states[block, -1, N_DIGITS - level + int(digit_index)])


def ledger_answers(level: int) -> Iterator[tuple[tuple[int, ...], str]]:
    ledger = Ledger.sample(np.random.default_rng(level), level)
    for shift in np.ndindex(*[10] * level):
        increments = ledger.increments.copy()
        increments[-1, 0, N_DIGITS - level :] += np.array(shift, dtype=np.int64)
        other = replace(ledger, increments=increments % 10)
        yield retained(ids_of(other))[: -N_DIGITS - 1], other.answer


def parity_task(checkpoint: Checkpoint, samples: int, seed: int, block: int) -> Task:
    """Return a task: whether the first digit hidden by a memento of `ledger` is odd."""
    task = ledger_task(checkpoint, samples, seed, block, level=3)
    odd = [
        replace(
            sample,
            secret_indices=sample.secret_indices[N_NOTES : N_NOTES + 1],
            labels=(sample.labels[N_NOTES] % 2,),
            secret=sample.secret[N_NOTES:],
        )
        for sample in task.samples
    ]
    exact = {"parity": np.full((samples, 2), -np.log(2))}
    return Task("parity", tuple(odd), (Target("parity", ("even", "odd")),), exact)


def parity_worlds(block: int, target: str) -> Iterator[World]:
    for ids, digit in ledger_worlds(3, block, "hidden-0"):
        yield ids, ("even", "odd")[int(digit) % 2]


PARITY = Bench("parity", (), Protocol(0.0, 128, 1), lambda problem, text: Grade(False, None, ""), "a test")
MATRIX = {
    f"ledger-h{level}": Truth(
        ledger(level, 1), tuple(range(4 - bool(level))), partial(ledger_worlds, level), partial(ledger_answers, level)
    )
    for level in range(4)
}
MATRIX["parity"] = Truth(replace(PARITY, secrets=parity_task), (0, 1, 2), parity_worlds)
PLACES = [(name, block) for name, truth in MATRIX.items() for block in truth.blocks]


def task_of(name: str, samples: int, seed: int = 0, block: int = 1) -> Task:
    secrets = MATRIX[name].bench.secrets
    assert secrets is not None
    return secrets(toy(), samples, seed, block)


def test_matrix_lists_every_benchmark_with_secrets() -> None:
    with_secrets = {name for name, make in GENERATED_BENCHES.items() if make(1, 0).secrets}
    in_chats = {"agent-erased"}  # enumerated in `test_chats`
    assert with_secrets == set(SECRET_BENCHES) and with_secrets - in_chats <= MATRIX.keys()


@pytest.mark.parametrize(("name", "block"), PLACES)
def test_exact_posterior_equals_enumeration(name: str, block: int) -> None:
    task = task_of(name, 4, block=block)
    first = list(task.samples[0].ids)
    assert task.exact_log_posteriors.keys() == {target.name for target in task.targets}
    for number, target in enumerate(task.targets):
        worlds = list(MATRIX[name].worlds(block, target.name))
        counts = Counter(label for _, label in worlds)
        assert {retained(ids) for ids, _ in worlds} == {retained(first)}
        assert (first, target.classes[task.samples[0].labels[number]]) in worlds
        shares = [counts[label] / len(worlds) for label in target.classes]
        np.testing.assert_allclose(np.exp(task.exact_log_posteriors[target.name][0]), shares)


@pytest.mark.parametrize("name", [name for name, truth in MATRIX.items() if truth.answers])
def test_ceiling_of_a_sealed_cache_equals_enumeration(name: str) -> None:
    """The ceiling is the accuracy of the best guess of the answer from the retained text."""
    truth = MATRIX[name]
    assert truth.answers is not None
    texts, answers = zip(*truth.answers(), strict=True)
    assert len(set(texts)) == 1
    assert truth.bench.ceiling == pytest.approx(max(Counter(answers).values()) / len(answers))


@pytest.mark.parametrize(("name", "block"), PLACES)
def test_secrets_are_in_their_block_and_reproducible(name: str, block: int) -> None:
    task = task_of(name, 30, block=block)
    assert len({sample.base for sample in task.samples}) == 30
    for sample in task.samples:
        pair = find_blocks(sample.ids, toy().markup)[block]
        assert sample.block == block and all(pair.start < index < pair.end for index in sample.secret_indices)
        assert all(0 <= label < len(t.classes) for label, t in zip(sample.labels, task.targets, strict=True))
    for posterior in task.exact_log_posteriors.values():
        np.testing.assert_allclose(np.exp(posterior).sum(axis=1), 1)
    assert task_of(name, 10, block=block).samples == task.samples[:10]
    assert task_of(name, 30, seed=1, block=block).samples != task.samples


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
def test_probes_find_secrets_in_open_caches_only(name: str) -> None:
    result = gt.probe(toy(), MATRIX[name].bench, samples=500, hops=(0,), layers=(2,), kv=("v",), mlp=False)
    assert result.valid, result.failures
    rows = result.results[result.results["headline"] & (result.results["probe"] == "linear")]
    assert not rows.loc[rows["condition"] == "sealed", "significant"].any()
    assert rows.loc[rows["condition"] == "open", "significant"].all()


@pytest.mark.slow
def test_user_defined_benchmark_runs_in_probe(tmp_path: Path) -> None:
    bench = MATRIX["parity"].bench
    result = gt.probe(toy(), bench, samples=200, hops=(0,), layers=(3,), kv=("v",), mlp=False, out=tmp_path / "run")
    assert result.valid and result.configuration["task"]["name"] == "parity"
    rows = result.results.query("target == 'parity' and probe == 'linear' and hop == 0").set_index("condition")
    assert rows.loc["open", "bits"] > 0.5 and abs(rows.loc["sealed", "bits"]) < 0.05
    assert open_run(tmp_path / "run") == result
    with pytest.raises(gt.UserError, match="mute has no secrets of its own"):
        gt.probe(toy(), replace(bench, name="mute", secrets=None))
