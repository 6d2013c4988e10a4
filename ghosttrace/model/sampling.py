"""Sampling by inverse CDF, so that arms can share their noise.

A token is the one at which the cumulative distribution, in order of token id, passes a uniform
draw. Two arms given the same draw at the same problem, repetition and step part only where their
distributions do.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: a response longer than this is truncated.
        temperature: 0 is greedy.
        top_p, top_k, min_p: as in transformers, applied in the order top-k, top-p, min-p; 1, 0 and
            0 leave the distribution alone.
        max_block_tokens: force `<|block_end|>` when a block has this many tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_block_tokens: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < inf and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise UserError("sampling needs temperature >= 0, 0 < top-p <= 1, top-k >= 0 and 0 <= min-p <= 1")
        if self.max_new_tokens < 1 or (self.max_block_tokens is not None and self.max_block_tokens < 1):
            raise UserError("max-new-tokens and max-block-tokens are at least 1")


def probabilities(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The truncated distribution over its candidates.

    Args:
        logits: float[B, V].
        sampling: with a temperature above 0.

    Returns:
        Token ids, ascending, int64[B, C], and their probabilities, float64[B, C], summing to 1.
    """
    scaled = logits.double() / sampling.temperature
    count = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    top, ids = scaled.topk(count, dim=-1)
    p = top.softmax(dim=-1)
    p = p * (p.cumsum(dim=-1) - p < sampling.top_p)
    p = p * (p >= sampling.min_p * p[:, :1])
    ids, order = ids.sort(dim=-1)
    p = p.gather(-1, order)
    return ids, p / p.sum(dim=-1, keepdim=True)


def sample(logits: Tensor, sampling: Sampling, uniform: np.ndarray) -> list[int]:
    """One token a row.

    Args:
        logits: float[B, V].
        sampling: how.
        uniform: float64[B] in [0, 1), each row's draw.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    ids, p = probabilities(logits, sampling)
    passed = p.cumsum(dim=-1) > torch.from_numpy(uniform).to(p.device)[:, None]
    # Rounding may leave the last sum a little below the draw: then the last possible token is meant.
    possible = (p > 0).long()
    last = possible.shape[-1] - 1 - possible.flip(-1).argmax(dim=-1)
    chosen = torch.where(passed.any(-1), passed.long().argmax(dim=-1), last)
    return ids.gather(-1, chosen[:, None])[:, 0].tolist()


def random_stream(*key: int) -> np.random.Generator:
    """The stream of draws that belongs to a key, say (seed, problem, repetition)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
