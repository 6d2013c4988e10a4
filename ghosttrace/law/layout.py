"""Layouts of a sequence for one forward pass, with an open or a sealed cache.

One masked pass yields a sealed cache if every memento occurs twice, at the same positions. The first copy sees its
block, as in generation. The second copy sees retained tokens only, and all later tokens see the second copy. The
block and the first copy expire together, where the second copy begins. The result equals that of the arm `restart`
(the tests compare the two to 1e-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, erasures, expiry
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
            int64[n], column numbers; the second copy of a token that occurs twice.
        """
        last = np.full(int(self.token_index.max(initial=-1)) + 1, -1, dtype=np.int64)
        last[self.token_index] = np.arange(len(self.token_index))  # on repeated indices the last write wins
        return last[np.asarray(indices, dtype=np.int64)]


def open_layout(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> Layout:
    """Return the unchanged sequence with its expiry: the ghost channel is open.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    return Layout(tokens, np.arange(len(tokens)), expiry(tokens, markup, policy))


def sealed_layout(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> Layout:
    """Return the sequence with every memento repeated, so that the pass fills a sealed cache.

    Absolute positions are kept. The ghost channel is closed.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.

    Raises:
        UserError: the policy keeps finished blocks, which one pass cannot seal.
    """
    if policy.keep_last_n_blocks > 0:
        raise UserError("a sealed pass cannot seal finished blocks that are kept: set keep_last_n_blocks 0")
    tokens = np.asarray(token_ids, dtype=np.int64)
    index_parts: list[np.ndarray] = []
    expiry_parts: list[np.ndarray] = []
    next_index = num_columns = 0
    for erasure in erasures(tokens, markup, policy):
        num_before = erasure.keys.start - next_index
        copy_start = num_columns + erasure.expires_at - next_index  # the column where the second copy begins
        copy_length = erasure.expires_at - erasure.keys.stop
        index_parts += [np.arange(next_index, erasure.expires_at), np.arange(erasure.keys.stop, erasure.expires_at)]
        expiry_parts += [
            np.full(num_before, NEVER),
            np.full(erasure.expires_at - erasure.keys.start, copy_start),
            np.full(copy_length, NEVER),
        ]
        num_columns, next_index = copy_start + copy_length, erasure.expires_at
    index_parts.append(np.arange(next_index, len(tokens)))
    expiry_parts.append(np.full(len(tokens) - next_index, NEVER))
    token_index = np.concatenate(index_parts)
    return Layout(tokens[token_index], token_index, np.concatenate(expiry_parts))
