"""What an insider reads: the cache that a session under a defence leaves behind."""

from collections.abc import Sequence

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm
from ghosttrace.errors import UserError
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.model.states import States, check_finite, take


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
    session = Session(checkpoint.model, checkpoint.markup, arm.law(checkpoint.policy), keys, arm.eraser)
    session.advance([[int(token) for token in row] for row in ids])
    return session


def states_at(session: Session, places: Sequence[np.ndarray]) -> States:
    """The retained states at places of each sequence, int64[P] each.

    Raises:
        UserError: one of them is not retained.
    """
    slots = []
    for row, wanted in enumerate(places):
        held = session.cache.held(row)
        found = np.searchsorted(held, wanted).clip(max=len(held) - 1)
        if (held[found] != wanted).any():
            raise UserError("this defence evicts tokens that are to be read: choose other carriers")
        slots.append(found)
    at = torch.from_numpy(np.stack(slots)).to(session.model.device)
    keys, values = (
        torch.stack([take(getattr(layer, name), at) for layer in session.cache.layers]) for name in ("keys", "values")
    )
    states = States(keys, values)
    check_finite(states)
    return states


def read_defended(
    checkpoint: Checkpoint,
    arm: Arm,
    seed: int,
    ids: Sequence[np.ndarray],
    rows: Sequence[int],
    places: Sequence[np.ndarray],
) -> States:
    """A `Reader` of `ghosttrace.probing.features`, the first three arguments bound."""
    with attending(checkpoint.model):
        return states_at(run_session(checkpoint, arm, ids, [(seed, row) for row in rows]), places)
