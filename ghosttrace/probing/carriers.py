"""Carriers: the retained tokens in which a probe looks, counted in blocks from the one that holds the secret."""

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
        kind: `memento`, with `<|summary_start|>` and `<|summary_end|>`; `delimiters`, `<|block_start|>`
            and `<|block_end|>`; `block`, the text between them; `secret`, the tokens that spell the
            secret, before they are erased.
        hop: which pair, counted from the secret's own (0); at -1 nothing can know the secret yet.
        pool: `all` tokens side by side, of which every trace must have as many; the last so many of
            them; or their `mean`.
    """

    kind: CarrierKind
    hop: int = 0
    pool: Pooling = "all"

    @property
    def name(self) -> str:
        """The kind, and how its tokens are put together where not side by side."""
        return self.kind if self.pool == "all" else f"{self.kind}/{self.pool}"

    @property
    def key(self) -> str:
        """The name of its features in a shard."""
        return f"{self.name}.{self.hop}"

    def token_indices(self, sample: Sample, blocks: Sequence[Block]) -> np.ndarray:
        """int64[P], ascending: where in the sequence the carrier stands; empty if the trace has none.

        Args:
            sample: the trace.
            blocks: its finished pairs.
        """
        number = sample.block + self.hop
        if not 0 <= number < len(blocks):
            return np.zeros(0, dtype=np.int64)
        block = blocks[number]
        found = {
            "memento": lambda: np.arange(block.memento_start, block.memento_end + 1),
            "delimiters": lambda: np.array([block.start, block.end]),
            "block": lambda: np.arange(block.start + 1, block.end),
            "secret": lambda: np.array(sample.secret_indices, dtype=np.int64),
        }[self.kind]()
        return found[-self.pool :] if isinstance(self.pool, int) else found


def secret_carrier(samples: Sequence[Sample]) -> Carrier:
    """The secret's own tokens; their mean where secrets are spelled in more or fewer of them."""
    return Carrier("secret", 0, "all" if len({len(sample.secret_indices) for sample in samples}) == 1 else "mean")


def padded_token_indices(
    carrier: Carrier, samples: Sequence[Sample], blocks: Sequence[Sequence[Block]]
) -> tuple[np.ndarray, np.ndarray]:
    """A carrier's places in many traces.

    Returns:
        int64[N, P], and float32[N, P], what each place weighs: 1 each, or 1 / count if pooled by mean;
        shorter rows are filled up with places that weigh nothing.

    Raises:
        UserError: a trace has no such carrier, or `all` of it differs in length.
    """
    found = [carrier.token_indices(sample, pairs) for sample, pairs in zip(samples, blocks, strict=True)]
    counts = np.array([len(places) for places in found])
    if not counts.any():
        last = max(len(pairs) - 1 - sample.block for sample, pairs in zip(samples, blocks, strict=True))
        raise UserError(f"no trace has {carrier.kind} tokens at hop {carrier.hop}: hops here end at {last}")
    if not counts.all():
        lacking = samples[int(np.argmin(counts))].base
        raise UserError(
            f"trace {lacking} has no {carrier.kind} tokens at hop {carrier.hop}: leave out the trace or the hop"
        )
    width = int(counts.max())
    if carrier.pool != "mean" and counts.min() < width:
        raise UserError(
            f"{carrier.name} at hop {carrier.hop} has {counts.min()} tokens in one trace and {width} in another: "
            f"take their mean, or the last {counts.min()} (--pool mean or --pool {counts.min()})"
        )
    places = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in found])
    inside = np.arange(width) < counts[:, None]
    weights = inside / counts[:, None] if carrier.pool == "mean" else inside
    return places, weights.astype(np.float32)
