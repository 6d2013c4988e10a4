"""Carriers: the retained tokens that a probe reads, counted in blocks from the block with the secret."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ghosttrace.data.task import Sample
from ghosttrace.errors import UserError
from ghosttrace.law.markup import Block

CarrierKind = Literal["memento", "delimiters", "block", "secret"]
CARRIERS: tuple[CarrierKind, ...] = ("memento", "delimiters", "block")  # `secret` is a control
Pooling = int | Literal["all", "mean"]


@dataclass(frozen=True)
class Carrier:
    """Some tokens of one block-memento pair.

    Attributes:
        kind: `memento`, the memento with `<|summary_start|>` and `<|summary_end|>`; `delimiters`,
            `<|block_start|>` and `<|block_end|>`; `block`, the text between those two; `secret`, the tokens
            that spell the secret, before they are erased.
        hop: Number of pairs after the pair with the secret, which has hop 0. Hop -1 is the pair before it,
            whose states cannot depend on the secret.
        pool: `all` concatenates the states of all tokens, and every trace must have the same number of
            them; an integer n concatenates those of the last n tokens; `mean` averages over tokens.
    """

    kind: CarrierKind
    hop: int = 0
    pool: Pooling = "all"

    @property
    def name(self) -> str:
        """The kind, followed by the pooling unless that is `all`: `memento`, `memento/mean`."""
        return self.kind if self.pool == "all" else f"{self.kind}/{self.pool}"

    @property
    def key(self) -> str:
        """The prefix of the carrier's tensor names in a shard: `memento.0`."""
        return f"{self.name}.{self.hop}"

    def token_indices(self, sample: Sample, blocks: Sequence[Block]) -> np.ndarray:
        """Return the token indices of the carrier in one trace.

        Args:
            sample: The trace.
            blocks: Its finished block-memento pairs.

        Returns:
            int64[P], ascending; empty if the trace has no such carrier.
        """
        number = sample.block + self.hop
        if not 0 <= number < len(blocks):
            return np.zeros(0, dtype=np.int64)
        block = blocks[number]
        indices = {
            "memento": lambda: np.arange(block.memento_start, block.memento_end + 1),
            "delimiters": lambda: np.array([block.start, block.end]),
            "block": lambda: np.arange(block.start + 1, block.end),
            "secret": lambda: np.array(sample.secret_indices, dtype=np.int64),
        }[self.kind]()
        return indices[-self.pool :] if isinstance(self.pool, int) else indices


def secret_carrier(samples: Sequence[Sample]) -> Carrier:
    """Return the carrier of the secret's own tokens, pooled by mean if their number differs between samples."""
    return Carrier("secret", 0, "all" if len({len(sample.secret_indices) for sample in samples}) == 1 else "mean")


def padded_token_indices(
    carrier: Carrier, samples: Sequence[Sample], blocks: Sequence[Sequence[Block]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token indices and pooling weights of a carrier in N traces, padded to one length.

    Args:
        carrier: The carrier.
        samples: N traces.
        blocks: The finished block-memento pairs of each trace.

    Returns:
        Token indices, int64[N, P], and their weights, float32[N, P]. A weight is 1, or 1 / count if the carrier
        is pooled by mean, and 0 for padding.

    Raises:
        UserError: A trace has no such carrier, or the carrier is not pooled and its length differs between traces.
    """
    indices = [carrier.token_indices(sample, pairs) for sample, pairs in zip(samples, blocks, strict=True)]
    counts = np.array([len(row) for row in indices])
    if not counts.any():
        last = max(len(pairs) - 1 - sample.block for sample, pairs in zip(samples, blocks, strict=True))
        raise UserError(f"no trace has {carrier.kind} tokens at hop {carrier.hop}: give hops up to {last}")
    if not counts.all():
        lacking = samples[int(np.argmin(counts))].base
        raise UserError(
            f"trace {lacking} has no {carrier.kind} tokens at hop {carrier.hop}: remove the trace or the hop"
        )
    width = int(counts.max())
    if carrier.pool != "mean" and counts.min() < width:
        raise UserError(
            f"{carrier.name} at hop {carrier.hop} has {counts.min()} tokens in one trace and {width} in another: "
            f"pool them with --pool mean or --pool {counts.min()}"
        )
    padded = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in indices])
    inside = np.arange(width) < counts[:, None]
    weights = inside / counts[:, None] if carrier.pool == "mean" else inside
    return padded, weights.astype(np.float32)
