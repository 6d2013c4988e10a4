"""`swap`: one memento computed from a counterfactual block under the same memento text.

If the answer follows the donor, the text cannot be the reason: it is the same. Unlike a drop under
`restart`, this needs no cache that the model never met.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ghosttrace.channel.arm import Arm
from ghosttrace.errors import UserError
from ghosttrace.expiry import Policy
from ghosttrace.generate import Eraser, Hit, Session
from ghosttrace.trace import Block

Donors = Callable[[tuple[int, ...], int, int], list[int] | None]
"""(row key, block number, length) to the token ids of a counterfactual block, None for no swap."""


class Swapper(Eraser):
    """Reads the donor's block in place of the row's, then lets the block expire as ever."""

    def __init__(self, session: Session, donors: Donors) -> None:
        super().__init__(session)
        self.donors = donors

    def erase(self, hits: list[Hit]) -> None:
        for hit in hits:
            for erasure in hit.erasures:
                self._swap(hit.row, erasure.block)
        super().erase(hits)

    def _swap(self, number: int, block: Block) -> None:
        session = self.session
        row = session.rows[number]
        begin = block.start + 1
        donor = self.donors(row.key, row.tracker.blocks.index(block), block.end - begin)
        if donor is None:
            return
        again = session.cache.take([number])
        index = again.held(0)[again.held(0) >= begin].copy()
        tokens = [*donor, *row.tokens[block.end : row.fed]]
        again.truncate(0, begin)
        (logits,) = session.forward(again, [tokens], [index], [index])
        session.cache.put([number], again)
        session.logits[number] = logits[-1]


def no_donors(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
    """Nothing is swapped."""
    return None


@dataclass(frozen=True)
class Swap(Arm):
    """A memento's keys and values from another block with the same memento text."""

    name = "swap"
    summary = "a memento's keys and values computed from a counterfactual block, its text the same"
    donors: Donors = no_donors

    def law(self, policy: Policy) -> Policy:
        if policy.keep_last_n_blocks != 0:
            raise UserError("swap needs keep_last_n_blocks 0: later tokens must not have read the block itself")
        return policy

    def eraser(self, session: Session) -> Eraser:
        return Swapper(session, self.donors)
