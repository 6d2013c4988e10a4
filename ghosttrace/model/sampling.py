"""Sampling by inverse CDF, so that arms can share uniform draws.

The sampled token is the first, in order of token id, at which the cumulative distribution exceeds a uniform draw. Two
arms that use the same draw at the same problem, repetition and step differ only if their distributions differ.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Attributes:
        max_new_tokens: maximum length of a response; longer ones are truncated.
        temperature: sampling temperature; 0 is greedy decoding.
        top_p, top_k, min_p: as in transformers, applied in the order top-k, top-p, min-p; disabled by 1, 0 and 0.
        max_block_tokens: number of tokens in a block after which `<|block_end|>` is forced; None for no limit.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_block_tokens: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < inf and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise UserError("sampling requires temperature >= 0, 0 < top-p <= 1, top-k >= 0 and 0 <= min-p <= 1")
        if self.max_new_tokens < 1 or (self.max_block_tokens is not None and self.max_block_tokens < 1):
            raise UserError("max-new-tokens and max-block-tokens must be at least 1")


def probabilities(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Apply temperature, top-k, top-p and min-p and return the resulting distribution.

    Args:
        logits: float[B, V].
        sampling: sampling settings with a temperature above 0.

    Returns:
        int64[B, C], candidate token ids in ascending order, and float64[B, C], their probabilities, which sum to 1.
    """
    scaled = logits.double() / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1:  # sorting a large vocabulary can take as long as the model
        p = scaled.softmax(dim=-1)
        p = p * (p >= sampling.min_p * p.amax(dim=-1, keepdim=True))
        return torch.arange(p.shape[-1], device=p.device).expand_as(p), p / p.sum(dim=-1, keepdim=True)
    count = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    top, ids = scaled.topk(count, dim=-1)
    p = top.softmax(dim=-1)
    p = p * (p.cumsum(dim=-1) - p < sampling.top_p)
    p = p * (p >= sampling.min_p * p[:, :1])
    ids, order = ids.sort(dim=-1)
    p = p.gather(-1, order)
    return ids, p / p.sum(dim=-1, keepdim=True)


def sample(logits: Tensor, sampling: Sampling, uniform: np.ndarray) -> list[int]:
    """Sample one token per row.

    Args:
        logits: float[B, V].
        sampling: sampling settings.
        uniform: float64[B] in [0, 1), one uniform draw per row.

    Returns:
        B token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    ids, p = probabilities(logits, sampling)
    exceeds = p.cumsum(dim=-1) > torch.from_numpy(uniform).to(p.device)[:, None]
    # By rounding, the total may stay below the draw. In this case, use the last token with a positive probability.
    possible = (p > 0).long()
    last = possible.shape[-1] - 1 - possible.flip(-1).argmax(dim=-1)
    chosen = torch.where(exceeds.any(-1), exceeds.long().argmax(dim=-1), last)
    return ids.gather(-1, chosen[:, None])[:, 0].tolist()


def random_stream(*key: int) -> np.random.Generator:
    """Return the stream of random numbers for a key, such as (seed, problem, repetition)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
