"""The law of expiry: which query sees which key.

`expiry[k]` is the token index of the first query that no longer sees key `k`. Query `q` sees key `k` if and only
if `k <= q < expiry[k]`. Training masks, physical eviction, KV accounting, probes and audits all derive from this
one vector, and the tests check each of them against it. The vector follows from the erasures of a law
(`ghosttrace.law.law`), whichever it is.

Memento's law (arXiv 2604.09852, sections 3 and 5) is defined here: once `<|summary_end|>` of memento i is generated, no
later token attends to block i. Positions continue as if nothing had been removed.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.law import Erasure, Law, Tokens, Tracker
from ghosttrace.law.markup import Block, BlockTracker, Markup, delimiter_events, find_blocks

NEVER = np.iinfo(np.int64).max

ERASE_AT = ("after_summary_end", "before_summary_end")


@dataclass(frozen=True)
class Policy:
    """Rules for when blocks expire. The policy belongs to a checkpoint and must match its training.

    Attributes:
        mask_delimiters: True erases `<|block_start|>` and `<|block_end|>` with their block (Phi);
            False keeps them (Qwen3, Olmo 3). There is no safe default.
        keep_last_n_blocks: -1 never erases, 0 erases each finished block at once, N keeps the last
            N finished blocks.
        erase_at: `after_summary_end`: `<|summary_end|>` itself still sees its block. `before_summary_end`: the
            block expires one token earlier (as in the published vLLM overlay when it schedules synchronously).
        keep_last_block_for_answer: a block that is due to expire is retained until the next `<|block_start|>`.
        require_assistant_section: only delimiters in an assistant's turn count.
    """

    mask_delimiters: bool
    keep_last_n_blocks: int = 0
    erase_at: Literal["after_summary_end", "before_summary_end"] = "after_summary_end"
    keep_last_block_for_answer: bool = False
    require_assistant_section: bool = True

    def __post_init__(self) -> None:
        if self.erase_at not in ERASE_AT:
            raise UserError(f"erase_at must be one of {', '.join(ERASE_AT)}, not {self.erase_at!r}")
        if self.keep_last_n_blocks < -1:
            raise UserError("keep_last_n_blocks must be -1 (never erase), 0, or the number of blocks to keep")

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as stored in a checkpoint's config.json."""
        return asdict(self)

    @property
    def erases_after_reading(self) -> bool:
        """Whether keys expire as soon as `<|summary_end|>` has been processed.

        If False, the next token triggers the erasure before it is processed itself: `<|summary_end|>`, or a later
        `<|block_start|>` with `keep_last_block_for_answer`.
        """
        return self.erase_at == "after_summary_end" and not self.keep_last_block_for_answer

    @property
    def min_blocks(self) -> int | None:
        """Number of finished blocks from which on a sequence has an erased block; None if nothing is ever erased.

        With `keep_last_block_for_answer`, a sequence with one block fewer has an erased block if it opens another one.
        """
        if self.keep_last_n_blocks < 0:
            return None
        return self.keep_last_n_blocks + 1 + self.keep_last_block_for_answer

    def erased_indices(self, block: Block) -> range:
        """Return the token indices that expire with a block."""
        if self.mask_delimiters:
            return range(block.start, block.end + 1)
        return range(block.start + 1, block.end)


@dataclass(frozen=True)
class BlockErasure(Erasure):
    """Expiry of one block.

    Attributes:
        keys: token indices that expire with it.
        block: the finished block.
    """

    keys: range
    block: Block

    @property
    def carriers(self) -> range:
        # An empty block between kept delimiters erases no keys, but its end delimiter comes after it.
        return range(self.keys.start if self.keys else self.block.end, self.expires_at)

    @property
    def first_affected(self) -> int:
        return max(self.expires_at, self.block.memento_end + 1)


@dataclass(frozen=True)
class MementoLaw(Law):
    """Memento's grammar: finished blocks expire when their memento is complete.

    Attributes:
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.
    """

    name = "memento"
    markup: Markup
    policy: Policy

    @property
    def erases_after_reading(self) -> bool:
        return self.policy.erases_after_reading

    def tracker(self) -> "ExpiryTracker":
        return ExpiryTracker(self.markup, self.policy)

    def erasures(self, token_ids: Tokens) -> list[BlockErasure]:
        markup, policy = self.markup, self.policy
        keep = policy.keep_last_n_blocks
        if keep < 0:
            return []
        tokens = np.asarray(token_ids, dtype=np.int64)
        blocks = find_blocks(tokens, markup, policy.require_assistant_section)
        due = np.array([block.memento_end for block in blocks[keep:]], dtype=np.int64)
        if policy.keep_last_block_for_answer:
            indices, letters = delimiter_events(tokens, markup, policy.require_assistant_section)
            block_starts = indices[np.array([letter == "B" for letter in letters], dtype=bool)]
            times = np.append(block_starts, NEVER)[np.searchsorted(block_starts, due)]
        else:
            times = due + (policy.erase_at == "after_summary_end")
        return [
            BlockErasure(policy.erased_indices(block), int(expires_at), block)
            for block, expires_at in zip(blocks, times, strict=False)
            if expires_at != NEVER
        ]


def erasures(token_ids: Tokens, markup: Markup, policy: Policy) -> list[BlockErasure]:
    """Return every erasure of Memento's law in a complete sequence, ordered by `expires_at`.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.

    Returns:
        One `BlockErasure` per block that expires within or right after the sequence.
    """
    return MementoLaw(markup, policy).erasures(token_ids)


def as_law(law: Law | Markup, policy: Policy | None) -> Law:
    """Return a law unchanged, or Memento's law under a markup and a policy."""
    if isinstance(law, Markup):
        if policy is None:
            raise UserError("a markup alone is no law: give the policy as well")
        return MementoLaw(law, policy)
    return law


def expiry(token_ids: Tokens, law: Law | Markup, policy: Policy | None = None) -> np.ndarray:
    """Compute the expiry of every key of a sequence.

    Args:
        token_ids: int[T], one unpadded sequence.
        law: which tokens leave the cache and when. A markup stands for Memento's law, together with `policy`.
        policy: when blocks expire; only with a markup.

    Returns:
        int64[T]: for each key, the token index of the first query that no longer sees it; `NEVER` if it is retained.

    Example:
        Tokens 1 to 4 are the delimiters. The block (indices 1 to 3) expires after the memento's last token.

        >>> markup = Markup(block_start=1, block_end=2, summary_start=3, summary_end=4)
        >>> policy = Policy(mask_delimiters=True, require_assistant_section=False)
        >>> expiry([9, 1, 8, 2, 3, 7, 4, 9], markup, policy)[1:4]
        array([7, 7, 7])
    """
    times = np.full(len(token_ids), NEVER, dtype=np.int64)
    for erasure in as_law(law, policy).erasures(token_ids):
        times[erasure.selector] = erasure.expires_at
    return times


class ExpiryTracker(Tracker):
    """Incremental form of `MementoLaw`: a state machine that generation feeds one token at a time.

    Attributes:
        policy: when blocks expire.
        block_tracker: tracker of the delimiters read so far.
        blocks: finished block-memento pairs so far.
    """

    def __init__(self, markup: Markup, policy: Policy) -> None:
        self.policy = policy
        self.block_tracker = BlockTracker(markup, policy.require_assistant_section)
        self.blocks: list[Block] = []
        self._first_block: int | None = None  # token index of the first delimiter that opened a block
        self._due: list[Block] = []

    @property
    def first_erasable(self) -> int | None:
        return self._first_block

    def push(self, token: int) -> list[BlockErasure]:
        """Process the next token and return the erasures that it triggers.

        Args:
            token: id of the token at index p, where p is the number of tokens pushed before.

        Returns:
            Erasures whose `expires_at` is p or p + 1; usually none.
        """
        index = self.block_tracker.num_read
        finished = self.block_tracker.push(token)
        if self._first_block is None and self.block_tracker.in_block:
            self._first_block = index
        expired: list[BlockErasure] = []
        if self._due and self.block_tracker.open_delimiters == [index]:
            expired, self._due = [self._erasure(block, index) for block in self._due], []
        if finished is None:
            return expired
        self.blocks.append(finished)
        keep = self.policy.keep_last_n_blocks
        if 0 <= keep < len(self.blocks):
            block = self.blocks[-1 - keep]
            if self.policy.keep_last_block_for_answer:
                self._due.append(block)
            else:
                expired.append(self._erasure(block, index + (self.policy.erase_at == "after_summary_end")))
        return expired

    def _erasure(self, block: Block, expires_at: int) -> BlockErasure:
        return BlockErasure(self.policy.erased_indices(block), expires_at, block)


def alive(expiry: np.ndarray) -> np.ndarray:
    """Count the tokens whose keys and values are held at each step t: the keys k with `k <= t < expiry[k]`.

    Args:
        expiry: int64[T], as returned by `expiry`.

    Returns:
        int64[T]. The maximum is the peak; the sum is the area under the curve, in token-steps.

    Example:
        >>> alive(np.array([NEVER, 2, NEVER, NEVER]))
        array([1, 2, 2, 3])
    """
    steps = len(expiry)
    num_expired = np.bincount(expiry[expiry < steps], minlength=steps)[:steps]
    return np.arange(1, steps + 1) - np.cumsum(num_expired)
