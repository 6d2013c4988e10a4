"""Reading of defended caches: the retained keys and values of sessions under a defence."""

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
from ghosttrace.model.pool import ModelPool
from ghosttrace.model.session import Session
from ghosttrace.model.states import States, check_finite, gather_tokens
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.features import Features, StateSelection, extract_features
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.sweep import state_selections
from ghosttrace.runs.progress import Progress

SINGLE_PASS_CONDITIONS: dict[Arm, str] = {Memento(): "open", Restart(): "sealed"}
"""Arms whose cache can be read in a single masked forward pass, with the name of its layout."""


def run_session(
    checkpoint: Checkpoint, arm: Arm, ids: Sequence[Sequence[int] | np.ndarray], keys: Sequence[tuple[int, ...]]
) -> Session:
    """Read B sequences under an arm, evicting keys and values as in serving. Call it inside `attending`.

    Args:
        checkpoint: Model, tokenizer and law.
        arm: What happens to the cache when tokens expire.
        ids: Token ids of B sequences.
        keys: Key of each row's stream of random numbers.
    """
    law = arm.adapt_law(checkpoint.law)
    session = Session(checkpoint.model, checkpoint.markup, checkpoint.policy, keys, arm.eraser, law)
    session.advance([[int(token) for token in row] for row in ids])
    return session


def read_retained_states(session: Session, indices: Sequence[np.ndarray]) -> States:
    """Return retained keys and values at given token indices.

    Args:
        session: Session with B rows.
        indices: For each row, int64[P] token indices.

    Raises:
        UserError: A token is not retained.
    """
    slots = []
    for row, row_indices in enumerate(indices):
        held = session.cache.held_indices(row)
        row_slots = np.searchsorted(held, row_indices).clip(max=len(held) - 1)
        if (held[row_slots] != row_indices).any():
            raise UserError("this defence evicts tokens that the probes read: choose other carriers")
        slots.append(row_slots)
    slot_tensor = torch.from_numpy(np.stack(slots)).to(session.model.device)
    keys, values = (
        torch.stack([gather_tokens(getattr(layer, name), slot_tensor) for layer in session.cache.layers])
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
    """Read retained states; with the first three arguments bound, a `ghosttrace.probing.features.StateReader`."""
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
    pool: ModelPool | None = None,
) -> dict[str, Features]:
    """Extract the features of all traces that the probes read.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        task: Traces with secrets.
        settings: Sites and settings of the probes.
        arm: Arm of the fitted defence.
        folder: Folder for the shards.
        batch_tokens: Tokens per batch, padding included.
        progress: Called with (name of the cache, traces done, total traces).
        pool: Workers that read; None reads here.

    Returns:
        Features of the defended cache (`open`), of the sealed cache (`sealed`), and of the secret's own tokens before
        they are erased (`unerased`).
    """
    secret = secret_carrier(task.samples)
    defended, sealed = state_selections(checkpoint, settings, secret)
    retained_carriers = tuple(carrier for carrier in defended.carriers if carrier.kind != "secret")
    name = SINGLE_PASS_CONDITIONS.get(arm, f"defended-{sha256(repr(arm).encode()).hexdigest()[:12]}")
    selections = {
        "open": StateSelection(name, retained_carriers, defended.layers),
        "sealed": sealed,
        "unerased": StateSelection("open", (secret,), defended.layers),
    }
    readers = (
        {} if arm in SINGLE_PASS_CONDITIONS else {"open": partial(read_defended_states, checkpoint, arm, settings.seed)}
    )
    return {
        condition: extract_features(
            checkpoint,
            task,
            selection,
            folder / condition,
            batch_tokens,
            partial(progress, f"{condition} cache"),
            readers.get(condition),
            pool,
        )
        for condition, selection in selections.items()
    }
