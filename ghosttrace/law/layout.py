"""Layouts of a sequence for one forward pass, with an open or a sealed cache.

One masked pass yields a sealed cache if every carrier occurs twice, at the same positions; under Memento's law these
are the mementos. The first copy sees the tokens that leave, as in generation. The second copy sees retained tokens
only, and all later tokens see the second copy. The tokens that leave and the first copy expire together, where the
second copy begins. A token that is a carrier at several erasures has one more copy for each. The result equals that of
the arm `restart` (the tests compare the two to 1e-5).
"""

from collections.abc import Sequence
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
        token_index: int64[C], the token index that each column holds; also its RoPE position.
        expiry: int64[C], the expiry of each column, as a column number.
    """

    tokens: np.ndarray
    token_index: np.ndarray
    expiry: np.ndarray

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
    return Layout(tokens, np.arange(len(tokens)), expiry(tokens, law, policy))


def sealed_layout(token_ids: Tokens, law: Law | Markup, policy: Policy | None = None) -> Layout:
    """Return the sequence with every carrier repeated after each erasure, so that the pass fills a sealed cache.

    Absolute positions are kept. The ghost channel is closed.

    Args:
        token_ids: int[T], one unpadded sequence.
        law: which tokens leave the cache and when. A markup stands for Memento's law, together with `policy`.
        policy: when blocks expire; only with a markup.

    Raises:
        UserError: the policy keeps finished blocks, whose repetition training does not support.
    """
    law = as_law(law, policy)
    if isinstance(law, MementoLaw) and law.policy.keep_last_n_blocks > 0:
        raise UserError("a sealed pass cannot seal finished blocks that are kept: set keep_last_n_blocks 0")
    tokens = np.asarray(token_ids, dtype=np.int64)
    index_parts: list[np.ndarray] = []
    ends: list[tuple[np.ndarray, int]] = []  # columns, and the column from which on they are not seen
    live = np.full(len(tokens), -1, dtype=np.int64)  # the column that later queries see of each token; -1 if none
    next_index = num_columns = 0
    for expires_at, group in groupby(law.erasures(tokens), key=lambda erasure: erasure.expires_at):
        erasures = list(group)
        new = np.arange(next_index, expires_at)
        live[new] = num_columns + np.arange(len(new))
        num_columns, next_index = num_columns + len(new), expires_at
        first = min(erasure.carriers.start for erasure in erasures)
        stale = np.flatnonzero(live[first:expires_at] >= 0) + first
        ends.append((live[stale], num_columns))
        live[stale] = -1
        copies = stale[~np.isin(stale, np.concatenate([np.asarray(erasure.keys) for erasure in erasures]))]
        live[copies] = num_columns + np.arange(len(copies))
        num_columns += len(copies)
        index_parts += [new, copies]
    index_parts.append(np.arange(next_index, len(tokens)))
    token_index = np.concatenate(index_parts)
    column_expiry = np.full(len(token_index), NEVER)
    for columns, end in ends:
        column_expiry[columns] = end
    return Layout(tokens[token_index], token_index, column_expiry)
