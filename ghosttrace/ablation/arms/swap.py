"""`swap`: one memento computed from a counterfactual block under the same memento text.

If the answer follows the donor, the text cannot be the reason, because it is unchanged. Unlike a drop under
`restart`, this evidence does not depend on a sealed cache, which may be unfamiliar to the model.
"""

from dataclasses import dataclass, replace

from ghosttrace.ablation.arms.arm import Arm, DonorLookup
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Block
from ghosttrace.model.session import Eraser, RowErasures, Session


class Swapper(Eraser):
    """Eraser that recomputes the memento after the donor's block, then erases the block as usual."""

    def __init__(self, session: Session, donors: DonorLookup) -> None:
        super().__init__(session)
        self.donors = donors

    def erase(self, erasures: list[RowErasures]) -> None:
        session, expired = self.session, [(item.row, block) for item in erasures for block in item.blocks]
        donors = [(row, block, self._donor(row, block)) for row, block in expired]
        swaps = [(row, block, donor) for row, block, donor in donors if donor is not None]
        if swaps:
            rows = [row for row, _, _ in swaps]
            swapped = session.cache.copy_rows(rows)
            indices, runs = [], []
            for copy_row, (row, block, donor) in enumerate(swaps):
                begin, tokens = block.start + 1, session.rows[row].tokens
                held = swapped.held_indices(copy_row)
                indices.append(held[held >= begin].copy())
                runs.append([*donor, *tokens[block.end : session.rows[row].num_processed]])
                swapped.truncate(copy_row, begin)
            logits = session.forward(swapped, runs, indices, indices)
            session.cache.replace_rows(rows, swapped)
            for row, row_logits in zip(rows, logits, strict=True):
                session.logits[row] = row_logits[-1]
        super().erase(erasures)

    def _donor(self, row_index: int, block: Block) -> list[int] | None:
        row, length = self.session.rows[row_index], block.end - block.start - 1
        donor = self.donors(row.key, row.tracker.blocks.index(block), length)
        if donor is not None and len(donor) != length:
            raise UserError(f"a donor must be as long as its block: give {length} tokens, not {len(donor)}")
        return donor


def no_donors(key: tuple[int, ...], block_number: int, length: int) -> list[int] | None:
    """Return None, so that no block is swapped."""
    return None


@dataclass(frozen=True)
class Swap(Arm):
    """Arm that computes one memento's keys and values from a counterfactual block under the same memento text.

    Attributes:
        donors: Lookup of the counterfactual blocks; the default swaps nothing.
    """

    name = "swap"
    summary = "a memento's keys and values computed from a counterfactual block, its text unchanged"
    headline = "Swapping the block that one memento was computed from"
    colour = "#2b6cb0"
    priority = 6
    default = True
    needs_counterfactuals = True
    donors: DonorLookup = no_donors

    def adapt_policy(self, policy: Policy) -> Policy:
        if policy.keep_last_n_blocks != 0 or policy.keep_last_block_for_answer:
            raise UserError(
                "swap needs keep_last_n_blocks 0 and no keep_last_block_for_answer, "
                "so that no later token attends to the original block"
            )
        return policy

    def with_donors(self, donors: DonorLookup) -> Arm:
        return replace(self, donors=donors)

    def eraser(self, session: Session) -> Eraser:
        return Swapper(session, self.donors)
