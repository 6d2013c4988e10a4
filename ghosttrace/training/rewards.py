"""Rewards for reinforcement learning: by name with a weight, or functions of the user's own.

A reward is a function in TRL's form. It takes the columns of a batch by name, one value per response, and returns one
finite number per response: `prompts` (ids of the problems), `question`, `answer`, `completion_ids`, and those of
`ghosttrace.training.rollouts.Rollouts`.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from ghosttrace.errors import UserError

Reward = Callable[..., list[float]]


def correct(correct: Sequence[bool], **_: Any) -> list[float]:
    """Return 1 for each response with the right answer, as the benchmark grades it, else 0."""
    return [float(value) for value in correct]


def format(format: Sequence[bool], **_: Any) -> list[float]:
    """Return 1 for each response that ends by itself with finished blocks and all delimiters in order, else 0."""
    return [float(value) for value in format]


def compression(compression: Sequence[float], correct: Sequence[bool], **_: Any) -> list[float]:
    """Return for each right answer the share of tokens that were not held at the peak, else 0.

    A wrong answer earns nothing for being short.
    """
    return [value if right else 0.0 for value, right in zip(compression, correct, strict=True)]


def channel(channel: Sequence[float], **_: Any) -> list[float]:
    """Return for each response the ghost bits at its answer, at least 0. A negative weight penalises them.

    Negative bits count as 0. Otherwise a penalty would reward answers that a sealed cache makes likelier, whatever they
    say, without a bound.

    A response without a finished block has no bits, so that a penalty is given together with the reward `format`.
    """
    return [max(value, 0.0) for value in channel]


REWARDS: dict[str, Reward] = {"correct": correct, "format": format, "compression": compression, "channel": channel}


def parse_rewards(text: str) -> tuple[list[Reward], list[float]]:
    """Return the rewards and weights of a specification such as `correct,format:0.1`.

    Raises:
        UserError: A reward does not exist, or a weight is not a finite number.
    """
    rewards, weights = [], []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in REWARDS:
            raise UserError(f"there is no reward {name!r}: choose --rewards from {', '.join(REWARDS)}")
        try:
            weights.append(float(weight or 1))
        except ValueError:
            raise UserError(f"the weight of the reward {name} must be a number, not {weight!r}") from None
        if not math.isfinite(weights[-1]):
            raise UserError(f"the weight of the reward {name} must be finite, not {weight!r}")
        rewards.append(REWARDS[name])
    return rewards, weights


def checked(reward: Reward) -> Reward:
    """Return the reward with a check that every value is a finite number.

    TRL would leave out a value that is not, and train on the others.
    """

    @wraps(reward)
    def call(*args: Any, **columns: Any) -> list[float]:
        values = reward(*args, **columns)
        for row, value in enumerate(values):
            if value is None or not math.isfinite(value):
                text = columns["text"][row][:80]
                raise UserError(
                    f"the reward {reward.__name__} returned {value} for the response {text!r}: "
                    "return a finite number for every response"
                )
        return values

    return call
