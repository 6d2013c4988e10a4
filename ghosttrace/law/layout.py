"""Sequences as one forward pass reads them: as they stand, or over a sealed cache.

A sealed cache comes from one masked pass if every memento stands twice, at the same positions: the
first copy sees its block, as when it was written; the second sees only what is retained, and is what
everything later sees. Block and first copy expire together, where the second begins. Equal to the
arm `restart` (the tests hold them to each other to 1e-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, erasures, expiry
from ghosttrace.law.markup import Markup


@dataclass(frozen=True)
class Layout:
    """A sequence laid out for one pass of C columns.

    Attributes:
        tokens: int64[C].
        token_index: int64[C], which place of the sequence stands in each column; also its RoPE position.
        expiry: int64[C], counted in columns.
    """

    tokens: np.ndarray
    token_index: np.ndarray
    expiry: np.ndarray

    def columns(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64[n]: where places of the sequence stand, the second copy where there are two."""
        last = np.full(int(self.token_index.max(initial=-1)) + 1, -1, dtype=np.int64)
        last[self.token_index] = np.arange(len(self.token_index))  # the later of two writes stays
        return last[np.asarray(places, dtype=np.int64)]


def open_layout(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> Layout:
    """The sequence as it stands, under the law: the channel open."""
    tokens = np.asarray(token_ids, dtype=np.int64)
    return Layout(tokens, np.arange(len(tokens)), expiry(tokens, markup, policy))


def sealed_layout(token_ids: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> Layout:
    """The sequence over a sealed cache, absolute positions kept: the channel closed.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: the ids of the delimiters and of the assistant's header.
        policy: when blocks expire.

    Raises:
        UserError: the policy keeps finished blocks, which one pass cannot seal.
    """
    if policy.keep_last_n_blocks > 0:
        raise UserError("a sealed pass needs keep_last_n_blocks 0: blocks that stay would have to be read many times")
    tokens = np.asarray(token_ids, dtype=np.int64)
    order: list[np.ndarray] = []
    times: list[np.ndarray] = []
    done = columns = 0
    for erasure in erasures(tokens, markup, policy):
        before = erasure.keys.start - done
        clean = columns + erasure.expires_at - done  # the column where the second copy begins
        again = erasure.expires_at - erasure.keys.stop
        order += [np.arange(done, erasure.expires_at), np.arange(erasure.keys.stop, erasure.expires_at)]
        times += [
            np.full(before, NEVER),
            np.full(erasure.expires_at - erasure.keys.start, clean),
            np.full(again, NEVER),
        ]
        columns, done = clean + again, erasure.expires_at
    order.append(np.arange(done, len(tokens)))
    times.append(np.full(len(tokens) - done, NEVER))
    places = np.concatenate(order)
    return Layout(tokens[places], places, np.concatenate(times))
