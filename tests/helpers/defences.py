"""Tiny models, traces with a secret, and sessions under an arm, for the tests of defences."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ghosttrace.ablation.arms import Arm
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.probing.split import Split
from helpers.families import tiny
from helpers.traces import MARKUP, trace

TRACES = [trace(seed, blocks) for seed, blocks in ((0, 4), (1, 5))]
ERASE, KEEP = Policy(True), Policy(False)
CLASSES = 3


def tiny_checkpoint(family: str = "llama", policy: Policy = ERASE) -> Checkpoint:
    """Return a tiny random model of a family as a checkpoint with this policy."""
    return Checkpoint(family, tiny(family), None, MARKUP, policy)


def run_session(
    checkpoint: Checkpoint, arm: Arm, traces: list[list[int]], size: int = 1000
) -> tuple[Session, list[Tensor]]:
    """Feed traces to a session under an arm, `size` tokens at a time.

    Returns:
        The session, and the logits float[T, V] of each trace.
    """
    parts: list[list[Tensor]] = [[] for _ in traces]
    with attending(checkpoint.model) as model:
        keys = [(row,) for row in range(len(traces))]
        session = Session(model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), keys, arm.eraser)
        for begin in range(0, max(map(len, traces)), size):
            for row, logits in enumerate(session.advance([t[begin : begin + size] for t in traces], all_logits=True)):
                parts[row].append(logits)
    return session, [torch.cat(rows) for rows in parts]


def states(session: Session, row: int) -> list[Tensor]:
    """Return the keys and values of a row: a list of [H, T, D] tensors, keys then values of each layer."""
    length = session.cache.slots.length[row]
    return [s[row, :, :length].clone() for layer in session.cache.layers for s in (layer.keys, layer.values)]


def secret_trace(rng: np.random.Generator, label: int, block: int, memento: int) -> list[int]:
    """Return three block-memento pairs; block `block` contains the label, and all mementos have the same text."""
    tokens = [1, 20, 3]
    for number in range(3):
        text = rng.integers(30, 96, 3).tolist()
        if number == block:
            text[1] = 10 + label
        tokens += [4, *text, 5, 6, *range(21, 21 + memento), 7]
    return [*tokens, 25, 26]


@cache
def secrets(block: int = 0, uneven: bool = False, n: int = 160) -> tuple[Task, Split]:
    """Return a task with one secret, and a split with a quarter of the samples as test set."""
    rng = np.random.default_rng(5)
    samples = []
    for number in range(n):
        label = int(rng.integers(CLASSES))
        ids = secret_trace(rng, label, block, 2 + (uneven and number % 3))
        samples.append(Sample(ids, str(number), "", block, (), (label,)))
    task = Task("tiny", tuple(samples), (Target("letter", tuple("abc")),))
    train, test = np.arange(n - n // 4), np.arange(n - n // 4, n)
    return task, Split(train, test[:0], test, np.arange(n), "base traces")


def memento_states(checkpoint: Checkpoint, arm: Arm, task: Task, rows: np.ndarray, block: int) -> list[list[Tensor]]:
    """Return memento states under an arm: for each layer and kind (k, v), a list of float[P, d], one per trace."""
    states_by_trace: list[list[Tensor]] = []
    session, _ = run_session(checkpoint, arm, [list(task.samples[row].ids) for row in rows])
    for session_row, row in enumerate(rows):
        pair, held = find_blocks(task.samples[row].ids, MARKUP)[block], session.cache.held_indices(session_row)
        in_memento = (held >= pair.memento_start) & (held <= pair.memento_end)
        states_by_trace.append(
            [s[:, in_memento].transpose(0, 1).flatten(1).double() for s in states(session, session_row)]
        )
    return [list(site) for site in zip(*states_by_trace, strict=True)]


def covariance(states: Tensor, labels: Tensor) -> float:
    """Return the norm of the cross-covariance of states float[n, d] and labels float[n, C]."""
    return float(((states - states.mean(0)).T @ (labels - labels.mean(0)) / len(states)).norm())
