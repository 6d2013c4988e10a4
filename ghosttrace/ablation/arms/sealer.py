"""Recomputation of retained keys and values without the erased tokens, shared by the sealing arms.

When tokens expire, every retained token that could attend to them is recomputed over the retained tokens alone. The
result is a function of the retained text and of the positions. Absolute positions still reveal the lengths of erased
blocks through their gaps; only `restart-renumbered` hides these lengths. The next token is predicted from the
recomputed `<|summary_end|>`, because a hidden state that saw the block would leak into one token. Paper: arXiv
2604.09852, section 6.2.1.

These arms retain the same tokens as the policy, so that only keys and values differ from `memento`. The exception is
`restart-bare`, which always evicts both delimiters, as the published overlay's restart does.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from ghosttrace.ablation.arms.part import Part
from ghosttrace.model.cache import KVCache
from ghosttrace.model.session import Eraser, Row, RowErasures, Session


class Sealer(Eraser):
    """Eraser that keeps a sealed copy of each row's cache and copies it, or a part of it, into the live cache.

    Args:
        session: The session to act on.
        part: The part of the cache to replace by sealed states.
        renumber: Close up the positions of the retained tokens. Requires the whole cache as `part`.
    """

    def __init__(self, session: Session, part: Part, renumber: bool = False) -> None:
        super().__init__(session)
        self.part, self.renumber = part, renumber
        self.sealed = KVCache(len(session.rows))
        self._has_sealed_copy = [False] * len(session.rows)

    def select(self, rows: Sequence[int]) -> None:
        self.sealed.select(rows)
        self._has_sealed_copy = [self._has_sealed_copy[row] for row in rows]

    def join(self, other: Self) -> None:
        self.sealed.join(other.sealed)
        self._has_sealed_copy += other._has_sealed_copy

    def erase(self, erasures: list[RowErasures]) -> None:
        super().erase(erasures)
        session, rows = self.session, [row_erasures.row for row_erasures in erasures]
        for row in rows:
            if not self._has_sealed_copy[row]:  # before the first erasure, everything up to its keys is sealed
                self.sealed.replace_rows([row], session.cache.copy_rows([row]))
                self._has_sealed_copy[row] = True
        sealed = self.sealed.copy_rows(rows)
        indices = []  # token indices to recompute in each row
        for sealed_row, row_erasures in enumerate(erasures):
            sealed.truncate(sealed_row, row_erasures.carriers_start)
            held, kept = session.cache.held_indices(row_erasures.row), sealed.held_indices(sealed_row)
            indices.append(held[held > kept.max(initial=-1)])
        runs = [[session.rows[row].tokens[k] for k in index] for row, index in zip(rows, indices, strict=True)]
        lengths = sealed.slots.length.copy()
        closed_up = [length + np.arange(len(run)) for length, run in zip(lengths, runs, strict=True)]
        logits = session.forward(sealed, runs, indices, closed_up if self.renumber else indices)
        self.sealed.replace_rows(rows, sealed)
        if self.part.is_whole_cache:
            session.cache.replace_rows(rows, sealed)
            for sealed_row, row in enumerate(rows):
                session.logits[row] = logits[sealed_row][-1]
                if self.renumber:
                    length = int(sealed.slots.length[sealed_row])
                    session.rows[row].position_shift = session.rows[row].num_processed - length
        else:
            for sealed_row, row in enumerate(rows):
                self._splice(row, sealed, sealed_row, indices[sealed_row])
            recompute_last_tokens(session, rows)

    def _splice(self, row: int, sealed: KVCache, sealed_row: int, index: np.ndarray) -> None:
        """Copy the selected part of the sealed states at these token indices into the live cache."""
        live = self.session.cache
        index = index[_in_carrier(self.session.rows[row], index, self.part)]
        live_slots, sealed_slots = (
            torch.from_numpy(np.searchsorted(held, index))
            for held in (live.held_indices(row), sealed.held_indices(sealed_row))
        )
        for number, (live_layer, sealed_layer) in enumerate(zip(live.layers, sealed.layers, strict=True)):
            if self.part.layers is not None and number not in self.part.layers:
                continue
            selected = range(live_layer.keys.shape[1]) if self.part.heads is None else self.part.heads
            heads = torch.tensor(list(selected))[:, None]
            if "k" in self.part.kv:
                live_layer.keys[row, heads, live_slots] = sealed_layer.keys[sealed_row, heads, sealed_slots]
            if "v" in self.part.kv:
                live_layer.values[row, heads, live_slots] = sealed_layer.values[sealed_row, heads, sealed_slots]


def recompute_last_tokens(session: Session, rows: Sequence[int]) -> None:
    """Update the next-token logits of these rows by processing their last token again over the current cache.

    Only `session.logits` changes; the keys and values in the cache stay as they are.
    """
    cache = session.cache.copy_rows(rows)
    last = [session.rows[row].num_processed - 1 for row in rows]
    for copy_row, index in enumerate(last):
        cache.truncate(copy_row, index)
    indices = [np.array([index]) for index in last]
    tokens = [[session.rows[row].tokens[index]] for row, index in zip(rows, last, strict=True)]
    for row, logits in zip(rows, session.forward(cache, tokens, indices, indices), strict=True):
        session.logits[row] = logits[-1]


def _in_carrier(row: Row, index: np.ndarray, part: Part) -> np.ndarray:
    """Return bool[n]: which of these token indices belong to the part's carrier."""
    if part.carrier is None:
        return np.ones(len(index), dtype=bool)
    blocks = np.array(row.tracker.blocks)
    if part.carrier == "delimiters":
        return np.isin(index, blocks[:, :2])
    first = blocks[:, 2] if part.last is None else np.maximum(blocks[:, 2], blocks[:, 3] + 1 - part.last)
    inside = (index[:, None] >= first) & (index[:, None] <= blocks[:, 3])
    return np.asarray(inside.any(axis=1))
