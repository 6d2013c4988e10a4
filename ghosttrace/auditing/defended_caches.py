"""What an insider reads: the cache that a session under a defence leaves."""

from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm, Memento, Restart
from ghosttrace.data.task import Task
from ghosttrace.errors import UserError
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.model.states import States, check_finite, gather_tokens
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.features import Features, StateSelection, extract_features
from ghosttrace.probing.sweep import ProbeSettings, state_selections
from ghosttrace.runs.progress import Progress

SINGLE_PASS_CONDITIONS: dict[Arm, str] = {Memento(): "open", Restart(): "sealed"}
"""What one masked pass reads as a session would."""


def run_session(
    checkpoint: Checkpoint, arm: Arm, ids: Sequence[Sequence[int] | np.ndarray], keys: Sequence[tuple[int, ...]]
) -> Session:
    """Read B sequences under an arm, evicting as a server would; inside `attending`.

    Args:
        checkpoint: the model and its law.
        arm: what becomes of the cache when blocks expire.
        ids: B token lists.
        keys: what each row's randomness belongs to.
    """
    session = Session(checkpoint.model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), keys, arm.eraser)
    session.advance([[int(token) for token in row] for row in ids])
    return session


def read_retained_states(session: Session, indices: Sequence[np.ndarray]) -> States:
    """The retained states at places of each sequence, int64[P] each.

    Raises:
        UserError: one of them is not retained.
    """
    slots = []
    for row, asked in enumerate(indices):
        held = session.cache.held_indices(row)
        found = np.searchsorted(held, asked).clip(max=len(held) - 1)
        if (held[found] != asked).any():
            raise UserError("this defence evicts tokens that are to be read: choose other carriers")
        slots.append(found)
    at = torch.from_numpy(np.stack(slots)).to(session.model.device)
    keys, values = (
        torch.stack([gather_tokens(getattr(layer, name), at) for layer in session.cache.layers])
        for name in ("keys", "values")
    )
    states = States(keys, values)
    check_finite(states)
    return states


def read_defended_states(
    checkpoint: Checkpoint,
    arm: Arm,
    seed: int,
    ids: Sequence[np.ndarray],
    rows: Sequence[int],
    indices: Sequence[np.ndarray],
) -> States:
    """A `StateReader` of `ghosttrace.probing.features`, the first three arguments bound."""
    with attending(checkpoint.model):
        return read_retained_states(run_session(checkpoint, arm, ids, [(seed, row) for row in rows]), indices)


def read_caches(
    checkpoint: Checkpoint,
    task: Task,
    settings: ProbeSettings,
    arm: Arm,
    folder: Path,
    batch_tokens: int,
    progress: Progress,
) -> dict[str, Features]:
    """Features of the defended cache, of the sealed one, and of the secret's own tokens before they go.

    Args:
        checkpoint: the model and its law.
        task: traces with secrets.
        settings: where probes look.
        arm: the defence.
        folder: for the shards.
        batch_tokens: traces read together, padding included.
        progress: called with (which cache, traces done, traces in all).
    """
    secret = secret_carrier(task.samples)
    defended, sealed = state_selections(checkpoint, settings, secret)
    kept = tuple(carrier for carrier in defended.carriers if carrier.kind != "secret")
    name = SINGLE_PASS_CONDITIONS.get(arm, f"defended-{sha256(repr(arm).encode()).hexdigest()[:12]}")
    parts = {
        "open": StateSelection(name, kept, defended.layers),
        "sealed": sealed,
        "unerased": StateSelection("open", (secret,), defended.layers),
    }
    readers = (
        {} if arm in SINGLE_PASS_CONDITIONS else {"open": partial(read_defended_states, checkpoint, arm, settings.seed)}
    )
    return {
        part: extract_features(
            checkpoint, task, what, folder / part, batch_tokens, partial(progress, f"{part} cache"), readers.get(part)
        )
        for part, what in parts.items()
    }
