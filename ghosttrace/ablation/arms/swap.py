"""`swap`: one memento computed from a counterfactual block under the same memento text.

Under the law `tools`, the retained tokens that could see a tool result are computed from a counterfactual result. If
the answer follows the donor, the text cannot be the reason, because it is unchanged. Unlike a drop under `restart`,
this evidence does not depend on a sealed cache, which may be unfamiliar to the model.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from ghosttrace.ablation.arms.arm import Arm, DonorLookup
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.law import Law
from ghosttrace.law.tools import Tools, find_tool_results
from ghosttrace.model.session import Eraser, RowErasures, Session


class ErasedText(NamedTuple):
    """Text of one row that leaves: its number among the blocks or tool results, and its token indices."""

    row: int
    number: int
    tokens: range


class Swapper(Eraser):
    """Eraser that recomputes what follows the text that leaves after the donor's text, then erases as usual."""

    def __init__(self, session: Session, donors: DonorLookup) -> None:
        super().__init__(session)
        self.donors = donors

    def erase(self, erasures: list[RowErasures]) -> None:
        session, texts = self.session, [text for item in erasures for text in self._texts(item)]
        found = [(text, self._donor(text)) for text in texts]
        swaps = [(text, donor) for text, donor in found if donor is not None]
        if swaps:
            rows = [text.row for text, _ in swaps]
            swapped = session.cache.copy_rows(rows)
            indices, runs = [], []
            for copy_row, (text, donor) in enumerate(swaps):
                begin, tokens = text.tokens.start, session.rows[text.row].tokens
                held = swapped.held_indices(copy_row)
                following = held[held >= begin].copy()
                indices.append(following)
                runs.append([donor[k - begin] if k in text.tokens else tokens[k] for k in following.tolist()])
                swapped.truncate(copy_row, begin)
            logits = session.forward(swapped, runs, indices, indices)
            session.cache.replace_rows(rows, swapped)
            for row, row_logits in zip(rows, logits, strict=True):
                session.logits[row] = row_logits[-1]
        super().erase(erasures)

    def _texts(self, item: RowErasures) -> list[ErasedText]:
        """Return the blocks or the tool results that leave."""
        row, law = self.session.rows[item.row], self.session.law
        if not isinstance(law, Tools):
            blocks = [(row.tracker.blocks.index(block), block) for block in item.blocks]
            return [ErasedText(item.row, number, range(block.start + 1, block.end)) for number, block in blocks]
        results = find_tool_results(row.tokens, law.chat)
        numbers = [results.index(range(int(each.keys[0]), int(each.keys[-1]) + 1)) for each in item.erasures]
        return [ErasedText(item.row, number, results[number]) for number in numbers]

    def _donor(self, text: ErasedText) -> list[int] | None:
        row, length = self.session.rows[text.row], len(text.tokens)
        donor = self.donors(row.key, text.number, length)
        if donor is not None and len(donor) != length:
            raise UserError(f"a donor must be as long as its block: give {length} tokens, not {len(donor)}")
        return donor


def no_donors(key: tuple[int, ...], block_number: int, length: int) -> list[int] | None:
    """Return None, so that no block is swapped."""
    return None


@dataclass(frozen=True)
class Swap(Arm):
    """Arm that computes one memento's keys and values from a counterfactual block under the same memento text.

    Under the law `tools` it does so with the retained tokens that could see a tool result.

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

    def adapt_law(self, law: Law) -> Law:
        if isinstance(law, Tools) and law.keep > 1:
            raise UserError(
                f"swap needs a result that leaves before the next one comes, not {law.spec}: give tools:0 or 1"
            )
        return law if isinstance(law, Tools) else super().adapt_law(law)

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
