"""Erasure in a paged cache: which slot holds which token of a request. This module does not depend on vLLM.

A law counts a request's tokens by *token index*, and the cache counts them by *slot*. If `erased` earlier keys have
been erased when the token at index i is computed, the token is stored in slot i - erased. The contents of the slots
are a function of the tokens alone. Therefore a request whose cache was lost, or whose prompt contains erasures,
reaches the same cache when its tokens are computed again.

There are two ways to erase:

- Under `memento`, the keys are removed when they expire, and the later slots are moved to fill the gap.
- Under the sealed arms (`restart`, `restart-renumbered`), the cache is truncated to the first of the keys, and the
  retained tokens after them are recomputed. The next token is then predicted from a token that never saw what left:
  under Memento's law, from a `<|summary_end|>` that never saw its block.

The laws that can be served erase ranges of tokens, and never tokens before those that have left.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, MementoLaw
from ghosttrace.law.law import Erasure, KeepAll, Law

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
        law: which tokens leave the cache and when.
        arm: how they are erased.

    Attributes:
        arm: how tokens are erased.
        tracker: state of the law after all tokens so far.
        erased: number of erased keys before the next token to compute.
        error: why the law cannot hold for the tokens so far; None if it can. Nothing more is then erased.

    Raises:
        UserError: if a paged cache does not support the arm.
    """

    def __init__(self, law: Law, arm: PagedArm = "memento") -> None:
        if arm not in PAGED_ARMS:
            raise UserError(f"a paged cache does not support the arm {arm!r}: choose one of {', '.join(PAGED_ARMS)}")
        counts_blocks = isinstance(law, MementoLaw)
        self.arm, self.tracker = arm, (law if arm != "full" or counts_blocks else KeepAll()).tracker()
        self.error: str | None = None
        self._erases_after_reading = law.erases_after_reading
        self._num_read = 0
        self._erasures: list[Erasure] = []  # of all tokens read, by time
        self._num_erased = self._peak = 0  # after all these erasures: erased keys, and the peak of slots in use
        self.clear()

    @property
    def num_blocks(self) -> int:
        """Return the number of finished blocks; 0 under another law than Memento's."""
        return len(self.tracker.blocks) if isinstance(self.tracker, ExpiryTracker) else 0

    @property
    def has_erasures(self) -> bool:
        """Return whether keys have been or will be erased; if not, every slot equals its token index."""
        return bool(self._erasures)

    @property
    def shareable_length(self) -> int | None:
        """Return the number of leading tokens whose slots other requests may share; None if there is no limit."""
        return None if self.arm == "full" else self.tracker.first_erasable

    def clear(self) -> None:
        """Reset to an empty cache, for a request whose tokens are all computed again."""
        self.erased = self._erasures_done = 0
        self._last_erasure = 0  # token index at which the last erasure was applied
        self._recomputing: int | None = None  # placebo: the time of the erasure before which tokens are recomputed

    def update(self, tokens: Sequence[int]) -> None:
        """Read the new tokens of the request; `tokens` holds all its tokens, including those already read."""
        while self._num_read < len(tokens) and self.error is None:
            try:
                erasures = self.tracker.push(tokens[self._num_read])
            except UserError as error:
                self.error = str(error)
                return
            self._num_read += 1
            if self.arm != "full":
                for erasure in erasures:
                    self._add(erasure)

    def _add(self, erasure: Erasure) -> None:
        """Add the next erasure to those that are known."""
        keys = _key_range(erasure)
        if not keys:
            return
        reached = keys.start if self.arm in SEALED_ARMS else erasure.expires_at
        self._peak = max(self._peak, reached - self._num_erased)
        self._num_erased += len(keys)
        self._erasures.append(erasure)

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
        # With a prefix-cache hit, a sealed request may start at the first key to erase; it must compute one token.
        return max(_key_range(erasure).start, index + 1) if self.arm in SEALED_ARMS else erasure.expires_at

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
            keys, expires_at = _key_range(erasure), erasure.expires_at
            start, stop = keys.start - self.erased, keys.stop - self.erased
            if self.arm in SEALED_ARMS:
                if index < keys.start:
                    break
                compactions.append(Compaction(start, start, start))
                index = keys.stop
            elif self.arm == "placebo" and self._recomputing != expires_at and index >= self._known_from(erasure):
                index = max(keys.stop, self._last_erasure)
                slot = index - self.erased
                compactions.append(Compaction(slot, slot, slot))
                self._recomputing = expires_at
                break
            elif index < expires_at:
                break
            elif index > expires_at:
                raise RuntimeError(
                    f"token {index} was scheduled after the unapplied erasure at {expires_at}: report this bug"
                )
            else:
                compactions.append(Compaction(stop, index - self.erased, start))
                self._last_erasure = index
            self.erased += len(keys)
            self._erasures_done += 1
        return index, compactions

    def peak_slots(self, length: int) -> int:
        """Return the peak number of slots in use while all `length` tokens are computed from an empty cache."""
        return max(self._peak, length - self._num_erased)

    def _known_from(self, erasure: Erasure) -> int:
        """Return the number of computed tokens at which every token that an erasure retains is known."""
        return erasure.expires_at - self._erases_after_reading


def _key_range(erasure: Erasure) -> range:
    """Return the keys of an erasure of a law that can be served."""
    assert isinstance(erasure.keys, range)
    return erasure.keys
