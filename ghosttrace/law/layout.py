"""Layouts of a sequence for one forward pass, with an open or a sealed cache.

One masked pass yields a sealed cache if every carrier occurs twice, at the same positions; under Memento's law these
are the mementos. The first copy sees the tokens that leave, as in generation. The second copy sees retained tokens
only, and all later tokens see the second copy. The tokens that leave and the first copy expire together, where the
second copy begins. A token that is a carrier at several erasures has one more copy for each. The result equals that of
the arm `restart` (the tests compare the two to 1e-5).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy, as_law, expiry
from ghosttrace.law.law import Law, Tokens
from ghosttrace.law.markup import Markup


@dataclass(frozen=True)
class Layout:
    """A sequence arranged as the C columns of one forward pass.

    Attributes:
        tokens: int64[C], token ids.
        token_index: int64[C], the token index that each column holds.
        expiry: int64[C], the expiry of each column, as a column number.
        positions: int64[C], the RoPE position of each column: the token index unless positions are closed up.
    """

    tokens: np.ndarray
    token_index: np.ndarray
    expiry: np.ndarray
    positions: np.ndarray

    def columns(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the columns that hold the given token indices.

        Args:
            indices: int[n], token indices of the sequence.

        Returns:
            int64[n], column numbers; the last copy of a token that occurs more than once.
        """
        last = np.full(int(self.token_index.max(initial=-1)) + 1, -1, dtype=np.int64)
        last[self.token_index] = np.arange(len(self.token_index))  # on repeated indices the last write wins
        return last[np.asarray(indices, dtype=np.int64)]


def open_layout(token_ids: Tokens, law: Law | Markup, policy: Policy | None = None) -> Layout:
    """Return the unchanged sequence with its expiry: the ghost channel is open.

    Args:
        token_ids: int[T], one unpadded sequence.
        law: which tokens leave the cache and when. A markup stands for Memento's law, together with `policy`.
        policy: when blocks expire; only with a markup.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    index = np.arange(len(tokens))
    return Layout(tokens, index, expiry(tokens, law, policy), index)


def sealed_layout(token_ids: Tokens, law: Law | Markup, policy: Policy | None = None, renumber: bool = False) -> Layout:
    """Return the sequence with every carrier repeated after each erasure, so that the pass fills a sealed cache.

    The ghost channel is closed. The result is that of the arm `restart`, or with `renumber` of `restart-renumbered`.

    Args:
        token_ids: int[T], one unpadded sequence.
        law: which tokens leave the cache and when. A markup stands for Memento's law, together with `policy`.
        policy: when blocks expire; only with a markup.
        renumber: close up the positions of the retained tokens after each erasure. Otherwise they are kept.

    Raises:
        UserError: the policy keeps finished blocks, whose repetition training does not support.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    index_parts: list[np.ndarray] = []
    ends: list[tuple[np.ndarray, int]] = []  # columns, and the column from which on they are not seen
    live = np.full(len(tokens), -1, dtype=np.int64)  # the column that later queries see of each token
    position = np.arange(len(tokens))  # of each token as later queries see it
    positions: list[np.ndarray] = []
    next_index = num_columns = 0
    for expires_at, stale, copies in _recomputations(tokens, as_law(law, policy)):
        new = np.arange(next_index, expires_at)
        live[new] = num_columns + np.arange(len(new))
        num_columns, next_index = num_columns + len(new), expires_at
        ends.append((live[stale], num_columns))
        live[copies] = num_columns + np.arange(len(copies))
        num_columns += len(copies)
        index_parts += [new, copies]
        positions.append(position[new])
        if renumber and len(stale):  # retained tokens before the first stale one keep their positions
            first = position[stale[0]]
            position[copies] = first + np.arange(len(copies))
            position[expires_at:] = first + len(copies) + np.arange(len(tokens) - expires_at)
        positions.append(position[copies])
    index_parts.append(np.arange(next_index, len(tokens)))
    positions.append(position[next_index:])
    token_index = np.concatenate(index_parts)
    column_expiry = np.full(len(token_index), NEVER)
    for columns, end in ends:
        column_expiry[columns] = end
    return Layout(tokens[token_index], token_index, column_expiry, np.concatenate(positions))


def sealed_length(token_ids: Tokens, law: Law, width: int) -> int:
    """Return the number of leading tokens whose sealed layout has at most `width` columns.

    Args:
        token_ids: int[T], one unpadded sequence.
        law: which tokens leave the cache and when.
        width: number of columns.

    Raises:
        UserError: see `sealed_layout`.
    """
    tokens, num_copies = np.asarray(token_ids, dtype=np.int64), 0
    for expires_at, _, copies in _recomputations(tokens, law):
        if expires_at + num_copies > width:
            break
        if expires_at + num_copies + len(copies) > width:
            return expires_at - 1
        num_copies += len(copies)
    return min(len(tokens), width - num_copies)


def _recomputations(tokens: np.ndarray, law: Law) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield, for each time of erasure, the tokens that are seen no more as they were, and the carriers among them.

    Yields:
        The time, the token indices whose columns are not seen from then on, and those of them that get a new column.

    Raises:
        UserError: Memento's policy keeps finished blocks.
    """
    if isinstance(law, MementoLaw) and law.policy.keep_last_n_blocks > 0:
        raise UserError("a sealed pass cannot seal finished blocks that are kept: set keep_last_n_blocks 0")
    held = np.ones(len(tokens), dtype=bool)
    for expires_at, group in groupby(law.erasures(tokens), key=lambda erasure: erasure.expires_at):
        erasures = list(group)
        first = min(erasure.carriers.start for erasure in erasures)
        stale = np.flatnonzero(held[first:expires_at]) + first
        for erasure in erasures:
            held[erasure.selector] = False
        yield expires_at, stale, stale[held[stale]]
