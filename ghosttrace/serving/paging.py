"""Erasure in a paged cache: which slot holds which token of a request. This module does not depend on vLLM.

Expiry counts a request's tokens by *token index*, and the cache counts them by *slot*. If `erased` earlier keys have
been erased when the token at index i is computed, the token is stored in slot i - erased. The contents of the slots
are a function of the tokens alone. Therefore a request whose cache was lost, or whose prompt contains finished blocks,
reaches the same cache when its tokens are computed again.

There are two ways to erase a block:

- Under `memento`, its keys are removed when they expire, and the later slots are moved to fill the gap.
- Under the sealed arms (`restart`, `restart-renumbered`), the cache is truncated to the start of the block, and the
  retained tokens after the block are recomputed. The next token is then predicted from a `<|summary_end|>` that never
  saw the block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import BlockErasure, ExpiryTracker, Policy
from ghosttrace.law.markup import Markup

PagedArm = Literal["full", "memento", "placebo", "restart", "restart-renumbered"]
PAGED_ARMS: tuple[PagedArm, ...] = get_args(PagedArm)
SEALED_ARMS: tuple[PagedArm, ...] = ("restart", "restart-renumbered")
RECOMPUTING_ARMS: tuple[PagedArm, ...] = (*SEALED_ARMS, "placebo")
"""Arms that compute some tokens twice or never."""


class Compaction(NamedTuple):
    """Copy of slots `start` to `stop` (exclusive) to the slots from `target` on; slots after the copy become free."""

    start: int
    stop: int
    target: int

    @property
    def slots_after(self) -> int:
        """Return the number of slots in use after the compaction."""
        return self.target + self.stop - self.start


class SlotTracker:
    """Tracker of the slots that hold one request's tokens.

    Args:
        markup: token ids of the delimiters and of the assistant's header.
        policy: when blocks expire.
        arm: how blocks are erased.

    Attributes:
        arm: how blocks are erased.
        tracker: expiry state after all tokens so far.
        erased: number of erased keys before the next token to compute.
        first_block_index: index of the `<|block_start|>` of the first block; None if there is no block yet. The slots
            before it never move and may be shared with other requests.

    Raises:
        UserError: if a paged cache does not support the arm.
    """

    def __init__(self, markup: Markup, policy: Policy, arm: PagedArm = "memento") -> None:
        if arm not in PAGED_ARMS:
            raise UserError(f"a paged cache does not support the arm {arm!r}: choose one of {', '.join(PAGED_ARMS)}")
        self.arm, self.tracker = arm, ExpiryTracker(markup, policy)
        self.first_block_index: int | None = None
        self._erasures: list[BlockErasure] = []
        self.clear()

    @property
    def has_erasures(self) -> bool:
        """Return whether keys have been or will be erased; if not, every slot equals its token index."""
        return bool(self._erasures)

    @property
    def shareable_length(self) -> int | None:
        """Return the number of leading tokens whose slots other requests may share; None if there is no limit."""
        return None if self.arm == "full" else self.first_block_index

    def clear(self) -> None:
        """Reset to an empty cache, for a request whose tokens are all computed again."""
        self.erased = self._erasures_done = 0
        self._last_erasure = 0  # token index at which the last erasure was applied
        self._recomputing = False  # placebo: the tokens that the next erasure retains are being recomputed

    def update(self, tokens: Sequence[int]) -> None:
        """Read the new tokens of the request; `tokens` holds all its tokens, including those already read."""
        num_read = self.tracker.block_tracker.num_read
        if num_read == len(tokens):
            return
        for index in range(num_read, len(tokens)):
            erasures = self.tracker.push(tokens[index])
            if self.first_block_index is None and self.tracker.block_tracker.in_block:
                self.first_block_index = index
            if self.arm != "full":
                self._erasures += [erasure for erasure in erasures if erasure.keys]

    def chunk_limit(self, index: int) -> int | None:
        """Return the token index at which a chunk of tokens must end because of the next erasure.

        Args:
            index: token index at which the chunk starts.

        Returns:
            The index after the last token of the chunk; None if no erasure follows.
        """
        if self._erasures_done == len(self._erasures):
            return None
        erasure = self._erasures[self._erasures_done]
        # With a prefix-cache hit, a sealed request may start at the start of its block; it must compute one token.
        return max(erasure.keys.start, index + 1) if self.arm in SEALED_ARMS else erasure.expires_at

    def apply_erasures(self, index: int) -> tuple[int, list[Compaction]]:
        """Apply the erasures that must precede the computation of a token.

        Args:
            index: token index of the next token to compute.

        Returns:
            The index of the next token to compute, which `placebo` and the sealed arms may change, and the compactions
            in the order in which they must be applied.

        Raises:
            RuntimeError: if the token lies after an erasure that was not applied.
        """
        compactions: list[Compaction] = []
        while self._erasures_done < len(self._erasures):
            erasure = self._erasures[self._erasures_done]
            start, stop = erasure.keys.start - self.erased, erasure.keys.stop - self.erased
            if self.arm in SEALED_ARMS:
                if index < erasure.keys.start:
                    break
                compactions.append(Compaction(start, start, start))
                index = erasure.keys.stop
            elif self.arm == "placebo" and not self._recomputing and index >= self._known_from(erasure):
                index = max(erasure.keys.stop, self._last_erasure)
                slot = index - self.erased
                compactions.append(Compaction(slot, slot, slot))
                self._recomputing = True
                break
            elif index < erasure.expires_at:
                break
            elif index > erasure.expires_at:
                raise RuntimeError(
                    f"token {index} was scheduled after the unapplied erasure at {erasure.expires_at}: report this bug"
                )
            else:
                compactions.append(Compaction(stop, index - self.erased, start))
                self._last_erasure, self._recomputing = index, False
            self.erased += len(erasure.keys)
            self._erasures_done += 1
        return index, compactions

    def peak_slots(self, length: int) -> int:
        """Return the peak number of slots in use while the first `length` tokens are computed from an empty cache."""
        erased = peak = 0
        for erasure in self._erasures:
            if erasure.expires_at > length:
                break
            peak = max(peak, (erasure.keys.start if self.arm in SEALED_ARMS else erasure.expires_at) - erased)
            erased += len(erasure.keys)
        return max(peak, length - erased)

    def _known_from(self, erasure: BlockErasure) -> int:
        """Return the number of computed tokens at which every token that an erasure retains is known."""
        return erasure.expires_at - self.tracker.policy.erases_after_reading
