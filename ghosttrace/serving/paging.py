"""The law on a paged cache: which slot holds which token of a request. Nothing in this file depends on vLLM.

The law counts a request's tokens by *position*; its cache counts them by *slot*. A token at position p that is computed
when `erased` keys before it have been erased is held in slot p - erased. What happens to the slots is a function of the
tokens alone. A request whose cache was lost, or whose prompt holds finished blocks, therefore arrives at the same cache
by computing its tokens again.

Blocks leave in two ways. Under `memento`, keys leave when the law says so, and the slots after them move up. Under the
sealed arms (`restart`), the cache is cut back to where the block began, and the retained tokens after the block are
computed again, so that the next token is predicted from a `<|summary_end|>` that never saw the block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Erasure, ExpiryTracker, Policy
from ghosttrace.law.markup import Markup

PagedArm = Literal["full", "memento", "placebo", "restart", "restart-renumbered"]
PAGED_ARMS: tuple[PagedArm, ...] = get_args(PagedArm)
SEALED_ARMS: tuple[PagedArm, ...] = ("restart", "restart-renumbered")
RECOMPUTING_ARMS: tuple[PagedArm, ...] = (*SEALED_ARMS, "placebo")
"""Arms that compute some tokens twice, or never."""


class Compaction(NamedTuple):
    """Slots `first` to `stop` are copied to `to` and following; every slot after the copy is free."""

    start: int
    stop: int
    target: int

    @property
    def slots_after(self) -> int:
        """Slots in use after the compaction."""
        return self.target + self.stop - self.start


class SlotTracker:
    """One request's tokens and the slots that hold them.

    Attributes:
        arm: how blocks leave.
        tracker: the law's state after the tokens so far.
        erased: keys erased from before the next token to compute.
        first_block_index: the position of the first block's first token, None before there is one. Before it, slots equal
            positions for good and may be shared with other requests.
    """

    def __init__(self, markup: Markup, policy: Policy, arm: PagedArm = "memento") -> None:
        if arm not in PAGED_ARMS:
            raise UserError(f"no arm {arm!r} in a paged cache: choose one of {', '.join(PAGED_ARMS)}")
        self.arm, self.tracker = arm, ExpiryTracker(markup, policy)
        self.first_block_index: int | None = None
        self._erasures: list[Erasure] = []
        self.clear()

    @property
    def has_erasures(self) -> bool:
        """Whether keys have been erased or will be; until then slots equal positions."""
        return bool(self._erasures)

    @property
    def shareable_length(self) -> int | None:
        """The number of leading positions whose slots may be shared with other requests; None for all of them."""
        return None if self.arm == "full" else self.first_block_index

    def clear(self) -> None:
        """Reset to an empty cache: the request's tokens will be computed again from the first."""
        self.erased = self._erasures_done = 0
        self._last_erasure = 0  # position of the last erasure carried out
        self._recomputing = False  # placebo: the tokens that the next erasure retains are being computed a second time

    def update(self, tokens: Sequence[int]) -> None:
        """Feed the tracker the tokens that it has not seen yet; `tokens` are all tokens of the request."""
        known = self.tracker.block_tracker.num_read
        if known == len(tokens):
            return
        for position in range(known, len(tokens)):
            found = self.tracker.push(tokens[position])
            if self.first_block_index is None and self.tracker.block_tracker.in_block:
                self.first_block_index = position
            if self.arm != "full":
                self._erasures += [erasure for erasure in found if erasure.keys]

    def chunk_limit(self, position: int) -> int | None:
        """Return where a chunk that starts at `position` must end because of the next erasure; None: nowhere."""
        if self._erasures_done == len(self._erasures):
            return None
        erasure = self._erasures[self._erasures_done]
        # A sealed request with a prefix hit may start where its block begins: it then computes one token.
        return max(erasure.keys.start, position + 1) if self.arm in SEALED_ARMS else erasure.expires_at

    def apply_erasures(self, position: int) -> tuple[int, list[Compaction]]:
        """Carry out the erasures that are due before `position` is computed.

        Returns:
            The position to compute next, and the compactions in order.
        """
        found: list[Compaction] = []
        while self._erasures_done < len(self._erasures):
            erasure = self._erasures[self._erasures_done]
            start, stop = erasure.keys.start - self.erased, erasure.keys.stop - self.erased
            if self.arm in SEALED_ARMS:
                if position < erasure.keys.start:
                    break
                found.append(Compaction(start, start, start))
                position = erasure.keys.stop
            elif self.arm == "placebo" and not self._recomputing and position >= self._known_from(erasure):
                position = max(erasure.keys.stop, self._last_erasure)
                found.append(Compaction(position - self.erased, position - self.erased, position - self.erased))
                self._recomputing = True
                break
            elif position < erasure.expires_at:
                break
            elif position > erasure.expires_at:
                raise RuntimeError(
                    f"token {position} was read past the erasure at {erasure.expires_at}: the cache is not the law's"
                )
            else:
                found.append(Compaction(stop, position - self.erased, start))
                self._last_erasure, self._recomputing = position, False
            self.erased += len(erasure.keys)
            self._erasures_done += 1
        return position, found

    def peak_slots(self, length: int) -> int:
        """Return the most slots in use at once while the first `length` tokens are computed from an empty cache."""
        erased = most = 0
        for erasure in self._erasures:
            if erasure.expires_at > length:
                break
            most = max(most, (erasure.keys.start if self.arm in SEALED_ARMS else erasure.expires_at) - erased)
            erased += len(erasure.keys)
        return max(most, length - erased)

    def _known_from(self, erasure: Erasure) -> int:
        """The position from which all tokens that an erasure retains are known, the last one not yet computed."""
        return erasure.expires_at - self.tracker.policy.erases_after_reading
