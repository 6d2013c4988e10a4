"""The law on a paged cache: where each token of a request is held. Nothing of vLLM is in here.

A request's tokens are counted in *places*, as the law counts them; its cache in *slots*. A token that is
read at place p, when `erased` keys before it are gone, is held at slot p - erased. What happens to the
slots is a function of the tokens alone, so that a request whose cache was lost, or whose prompt holds
finished blocks, comes to the same cache by reading its tokens again.

Two ways to forget. By the law (`memento`), keys leave when the law says so, and what is behind them
moves up. Sealed (`restart`), the cache is cut back to where the block began and what is retained
behind it is read again, so that the next token is predicted from a `<|summary_end|>` that never saw it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Erasure, ExpiryTracker, Policy
from ghosttrace.law.markup import Markup

Arm = Literal["full", "memento", "placebo", "restart", "restart-renumbered"]
ARMS: tuple[Arm, ...] = get_args(Arm)
SEALED: tuple[Arm, ...] = ("restart", "restart-renumbered")
REREADING: tuple[Arm, ...] = (*SEALED, "placebo")
"""Arms that read some tokens twice, or never."""


class Compaction(NamedTuple):
    """Slots `first` to `stop` move up to `to`; what was behind them is no longer held."""

    first: int
    stop: int
    to: int

    @property
    def length(self) -> int:
        """Slots in use afterwards."""
        return self.to + self.stop - self.first


class Paging:
    """One request's tokens and the slots that hold them.

    Attributes:
        arm: how it forgets.
        tracker: the law's reading of the tokens so far.
        erased: keys that are gone from before the next token to be read.
        frontier: the first place that a block has ever begun at: before it, slots are places for
            good, and may be shared with other requests; None until then.
    """

    def __init__(self, markup: Markup, policy: Policy, arm: Arm = "memento") -> None:
        if arm not in ARMS:
            raise UserError(f"no arm {arm!r} in a paged cache: choose one of {', '.join(ARMS)}")
        self.arm, self.tracker = arm, ExpiryTracker(markup, policy)
        self.frontier: int | None = None
        self._erasures: list[Erasure] = []
        self.clear()

    @property
    def erases(self) -> bool:
        """Keys have left, or are about to: until then slots are places."""
        return bool(self._erasures)

    @property
    def shared(self) -> int | None:
        """Places before which slots may be shared with other requests; None: all of them."""
        return None if self.arm == "full" else self.frontier

    def clear(self) -> None:
        """The cache was lost: the tokens will be read again from the first."""
        self.erased = self._done = 0
        self._since = 0  # the place at which keys last left
        self._again = False  # placebo: what the next erasure leaves behind has been read a second time

    def read(self, tokens: Sequence[int]) -> None:
        """Take note of tokens, from those not seen yet; `tokens` are all of the request."""
        known = self.tracker.trace.position
        if known == len(tokens):
            return
        for place in range(known, len(tokens)):
            found = self.tracker.push(tokens[place])
            if self.frontier is None and self.tracker.trace.in_block:
                self.frontier = place
            if self.arm != "full":
                self._erasures += [erasure for erasure in found if erasure.keys]

    def limit(self, place: int) -> int | None:
        """The place at which a run of tokens from `place` must end, for something happens there."""
        if self._done == len(self._erasures):
            return None
        erasure = self._erasures[self._done]
        # A sealed request whose first tokens are other requests' may begin where its block does: it reads one token.
        return max(erasure.keys.start, place + 1) if self.arm in SEALED else erasure.at

    def settle(self, place: int) -> tuple[int, list[Compaction]]:
        """Do what is due before `place` is read; return the place to read next, and what moves."""
        found: list[Compaction] = []
        while self._done < len(self._erasures):
            erasure = self._erasures[self._done]
            start, stop = erasure.keys.start - self.erased, erasure.keys.stop - self.erased
            if self.arm in SEALED:
                if place < erasure.keys.start:
                    break
                found.append(Compaction(start, start, start))
                place = erasure.keys.stop
            elif self.arm == "placebo" and not self._again and place >= self._ends(erasure):
                place = max(erasure.keys.stop, self._since)
                found.append(Compaction(place - self.erased, place - self.erased, place - self.erased))
                self._again = True
                break
            elif place < erasure.at:
                break
            elif place > erasure.at:
                raise RuntimeError(
                    f"token {place} was read past the erasure at {erasure.at}: the cache is not the law's"
                )
            else:
                found.append(Compaction(stop, place - self.erased, start))
                self._since, self._again = place, False
            self.erased += len(erasure.keys)
            self._done += 1
        return place, found

    def most(self, length: int) -> int:
        """The most slots in use at once while the first `length` tokens are read from an empty cache."""
        erased = most = 0
        for erasure in self._erasures:
            if erasure.at > length:
                break
            most = max(most, (erasure.keys.start if self.arm in SEALED else erasure.at) - erased)
            erased += len(erasure.keys)
        return max(most, length - erased)

    def _ends(self, erasure: Erasure) -> int:
        """The place from which what an erasure leaves behind is known in full, its last token not yet read."""
        return erasure.at - self.tracker.policy.erases_after_reading
