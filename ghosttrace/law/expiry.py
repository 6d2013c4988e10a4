"""The law of expiry, on which everything else stands.

`expiry[k]` is the first query position that no longer sees key `k`; query `q` sees key `k` iff
`k <= q < expiry[k]`. Training masks, physical eviction, KV accounting, probes and audits are
readings of this one vector, and the tests hold each of them to it.

The rule itself is Memento's (arXiv 2604.09852, sections 3 and 5): when `<|summary_end|>` of memento
i is produced, block i leaves every later token's attention, positions going on as if nothing had
been removed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.markup import Block, BlockTracker, Markup, delimiter_events, find_blocks

NEVER = np.iinfo(np.int64).max

ERASE_AT = ("after_summary_end", "before_summary_end")


@dataclass(frozen=True)
class Policy:
    """When blocks expire. A part of the checkpoint: it must match the checkpoint's training.

    Attributes:
        mask_delimiters: True erases `<|block_start|>` and `<|block_end|>` with their block (Phi);
            False keeps them (Qwen3, Olmo 3). There is no safe default.
        keep_last_n_blocks: -1 never erases, 0 erases each finished block at once, N keeps the last
            N finished blocks.
        erase_at: `after_summary_end`, so that `<|summary_end|>` itself still sees its block, or
            `before_summary_end`, one position earlier (the published vLLM overlay when it
            schedules synchronously).
        keep_last_block_for_answer: a block due to expire stays until the next `<|block_start|>`.
        require_assistant_section: only delimiters in an assistant's turn count.
    """

    mask_delimiters: bool
    keep_last_n_blocks: int = 0
    erase_at: Literal["after_summary_end", "before_summary_end"] = "after_summary_end"
    keep_last_block_for_answer: bool = False
    require_assistant_section: bool = True

    def __post_init__(self) -> None:
        if self.erase_at not in ERASE_AT:
            raise UserError(f"erase_at is one of {', '.join(ERASE_AT)}, not {self.erase_at!r}")
        if self.keep_last_n_blocks < -1:
            raise UserError("keep_last_n_blocks is -1 (never erase), 0, or the number of blocks to keep")

    def to_dict(self) -> dict[str, Any]:
        """The policy as it is stored in a checkpoint's config.json."""
        return asdict(self)

    @property
    def erases_after_reading(self) -> bool:
        """Keys expire once `<|summary_end|>` is read; else only when it, or a later token, is chosen."""
        return self.erase_at == "after_summary_end" and not self.keep_last_block_for_answer

    def erased_indices(self, block: Block) -> range:
        """Positions that expire with a block."""
        if self.mask_delimiters:
            return range(block.start, block.end + 1)
        return range(block.start + 1, block.end)


class Erasure(NamedTuple):
    """One block's expiry: query `expires_at` is the first that no longer sees `keys`."""

    block: Block
    keys: range
    expires_at: int


def erasures(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> list[Erasure]:
    """Every expiry in a finished sequence, in order of time.

    Args:
        token_ids: int[T], one unpadded sequence, positions counted from 0.
        markup: the ids of the delimiters and of the assistant's header.
        policy: when blocks expire.
    """
    keep = policy.keep_last_n_blocks
    if keep < 0:
        return []
    tokens = np.asarray(token_ids, dtype=np.int64)
    blocks = find_blocks(tokens, markup, policy.require_assistant_section)
    due = np.array([block.memento_end for block in blocks[keep:]], dtype=np.int64)
    if policy.keep_last_block_for_answer:
        positions, letters = delimiter_events(tokens, markup, policy.require_assistant_section)
        starts = positions[np.array([letter == "B" for letter in letters], dtype=bool)]
        at = np.append(starts, NEVER)[np.searchsorted(starts, due)]
    else:
        at = due + (policy.erase_at == "after_summary_end")
    return [
        Erasure(block, policy.erased_indices(block), int(t)) for block, t in zip(blocks, at, strict=False) if t != NEVER
    ]


def expiry(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> np.ndarray:
    """The law, as a vector.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: the ids of the delimiters and of the assistant's header.
        policy: when blocks expire.

    Returns:
        int64[T]: the first query position that no longer sees each key; `NEVER` if it stays.
    """
    times = np.full(len(token_ids), NEVER, dtype=np.int64)
    for erasure in erasures(token_ids, markup, policy):
        times[erasure.keys.start : erasure.keys.stop] = erasure.expires_at
    return times


class ExpiryTracker:
    """The law, one token at a time: the state machine that generation is driven by.

    Attributes:
        block_tracker: the reading of the stream so far.
        blocks: finished pairs so far.
    """

    def __init__(self, markup: Markup, policy: Policy) -> None:
        self.policy = policy
        self.block_tracker = BlockTracker(markup, policy.require_assistant_section)
        self.blocks: list[Block] = []
        self._due: list[Block] = []

    def push(self, token: int) -> list[Erasure]:
        """Read the token at position p; return what expires at p or, at the latest, at p + 1."""
        position = self.block_tracker.num_read
        finished = self.block_tracker.push(token)
        expired: list[Erasure] = []
        if self._due and self.block_tracker.open_delimiters == [position]:
            expired, self._due = [self._erasure(block, position) for block in self._due], []
        if finished is None:
            return expired
        self.blocks.append(finished)
        keep = self.policy.keep_last_n_blocks
        if 0 <= keep < len(self.blocks):
            block = self.blocks[-1 - keep]
            if self.policy.keep_last_block_for_answer:
                self._due.append(block)
            else:
                expired.append(self._erasure(block, position + (self.policy.erase_at == "after_summary_end")))
        return expired

    def _erasure(self, block: Block, at: int) -> Erasure:
        return Erasure(block, self.policy.erased_indices(block), at)


def alive(expiry: np.ndarray) -> np.ndarray:
    """KV tokens held at each step: the number of keys with `k <= t < expiry[k]`.

    Args:
        expiry: int64[T].

    Returns:
        int64[T]. Its maximum is the peak, its sum the area under the curve (token-steps).
    """
    steps = len(expiry)
    gone = np.bincount(expiry[expiry < steps], minlength=steps)[:steps]
    return np.arange(1, steps + 1) - np.cumsum(gone)
