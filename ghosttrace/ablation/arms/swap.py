"""`swap`: one memento computed from a counterfactual block under the same memento text.

If the answer follows the donor, the text cannot be the reason: it is the same. Unlike a drop under
`restart`, this needs no cache that the model never met.
"""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.arm import Arm, DonorLookup
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Block
from ghosttrace.model.session import Eraser, RowErasures, Session


class Swapper(Eraser):
    """Reads the donor's block in place of the row's, then lets the block expire as ever."""

    def __init__(self, session: Session, donors: DonorLookup) -> None:
        super().__init__(session)
        self.donors = donors

    def erase(self, hits: list[RowErasures]) -> None:
        session, found = (
            self.session,
            [(hit.row, block, self._donor(hit.row, block)) for hit in hits for block in hit.blocks],
        )
        swaps = [(row, block, donor) for row, block, donor in found if donor is not None]
        if swaps:
            rows = [row for row, _, _ in swaps]
            again = session.cache.copy_rows(rows)
            index, runs = [], []
            for place, (row, block, donor) in enumerate(swaps):
                begin, tokens = block.start + 1, session.rows[row].tokens
                index.append(again.held_indices(place)[again.held_indices(place) >= begin].copy())
                runs.append([*donor, *tokens[block.end : session.rows[row].num_processed]])
                again.truncate(place, begin)
            logits = session.forward(again, runs, index, index)
            session.cache.replace_rows(rows, again)
            for row, states in zip(rows, logits, strict=True):
                session.logits[row] = states[-1]
        super().erase(hits)

    def _donor(self, number: int, block: Block) -> list[int] | None:
        row, length = self.session.rows[number], block.end - block.start - 1
        donor = self.donors(row.key, row.tracker.blocks.index(block), length)
        if donor is not None and len(donor) != length:
            raise UserError(f"a donor must be as long as its block: {len(donor)} tokens, not {length}")
        return donor


def no_donors(key: tuple[int, ...], number: int, length: int) -> list[int] | None:
    """Nothing is swapped."""
    return None


@dataclass(frozen=True)
class Swap(Arm):
    """A memento's keys and values from another block with the same memento text."""

    name = "swap"
    summary = "a memento's keys and values computed from a counterfactual block, its text the same"
    headline = "Swapping what one memento was computed from"
    colour = "#2b6cb0"
    priority = 6
    default = True
    needs_counterfactuals = True
    donors: DonorLookup = no_donors

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.keep_last_n_blocks != 0 or policy.keep_last_block_for_answer:
            raise UserError(
                "swap needs keep_last_n_blocks 0 and no keep_last_block_for_answer: "
                "what comes later must not have read the block"
            )
        return policy

    def with_donors(self, donors: DonorLookup) -> Arm:
        return replace(self, donors=donors)

    def eraser(self, session: Session) -> Eraser:
        return Swapper(session, self.donors)
