"""What the sealing arms share: retained keys and values recomputed with every erased block absent.

When blocks expire, everything retained that had seen them is read once more over what is retained
alone. The result is a function of the retained text (and, with absolute positions, of the gaps: how
long a block was still shows; only `restart-renumbered` hides that). The next token is then
predicted from the recomputed `<|summary_end|>`, since a hidden state that saw the block would leak
one token. Paper: arXiv 2604.09852, section 6.2.1.

These arms retain what the policy retains, so that only keys and values differ from `memento`; but for
`restart-bare`, which evicts both delimiters always, as the published overlay's restart does.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ghosttrace.ablation.arms.part import Part
from ghosttrace.model.cache import KVCache
from ghosttrace.model.session import Eraser, Row, RowErasures, Session


class Sealer(Eraser):
    """Keeps a sealed copy of each row's cache and puts it, or a part of it, in place of the live one."""

    def __init__(self, session: Session, part: Part, renumber: bool = False) -> None:
        super().__init__(session)
        self.part, self.renumber = part, renumber
        self.sealed = KVCache(len(session.rows))
        self._has_sealed_copy = [False] * len(session.rows)

    def select(self, rows: Sequence[int]) -> None:
        self.sealed.select(rows)
        self._has_sealed_copy = [self._has_sealed_copy[row] for row in rows]

    def erase(self, hits: list[RowErasures]) -> None:
        super().erase(hits)
        session, rows = self.session, [hit.row for hit in hits]
        for row in rows:
            if not self._has_sealed_copy[row]:  # nothing has been erased before: what precedes is sealed as it is
                self.sealed.replace_rows([row], session.cache.copy_rows([row]))
                self._has_sealed_copy[row] = True
        sealed = self.sealed.copy_rows(rows)
        fresh = []
        for place, hit in enumerate(hits):
            # An empty block between kept delimiters erases nothing, yet its end is behind it.
            sealed.truncate(place, int(hit.keys.min(initial=hit.erasures[0].block.end)))
            held, kept = session.cache.held_indices(hit.row), sealed.held_indices(place)
            fresh.append(held[held > kept.max(initial=-1)])
        runs = [[session.rows[row].tokens[k] for k in index] for row, index in zip(rows, fresh, strict=True)]
        lengths = sealed.slots.length.copy()
        closed_up = [length + np.arange(len(run)) for length, run in zip(lengths, runs, strict=True)]
        logits = session.forward(sealed, runs, fresh, closed_up if self.renumber else fresh)
        self.sealed.replace_rows(rows, sealed)
        if self.part.is_whole_cache:
            session.cache.replace_rows(rows, sealed)
            for place, row in enumerate(rows):
                session.logits[row] = logits[place][-1]
                if self.renumber:
                    session.rows[row].position_shift = session.rows[row].num_processed - int(sealed.slots.length[place])
        else:
            for place, row in enumerate(rows):
                self._splice(row, sealed, place, fresh[place])
            recompute_last_tokens(session, rows)

    def _splice(self, row: int, sealed: KVCache, place: int, index: np.ndarray) -> None:
        """Copy the chosen part of the sealed states at these places of the sequence into the live cache."""
        live = self.session.cache
        index = index[_in_carrier(self.session.rows[row], index, self.part)]
        to, source = (
            torch.from_numpy(np.searchsorted(held, index))
            for held in (live.held_indices(row), sealed.held_indices(place))
        )
        for number, (mine, theirs) in enumerate(zip(live.layers, sealed.layers, strict=True)):
            if self.part.layers is not None and number not in self.part.layers:
                continue
            every = range(mine.keys.shape[1]) if self.part.heads is None else self.part.heads
            heads = torch.tensor(list(every))[:, None]
            if "k" in self.part.kv:
                mine.keys[row, heads, to] = theirs.keys[place, heads, source]
            if "v" in self.part.kv:
                mine.values[row, heads, to] = theirs.values[place, heads, source]


def recompute_last_tokens(session: Session, rows: Sequence[int]) -> None:
    """Predict the next token of these rows by reading the last one again over the cache as it now stands."""
    again = session.cache.copy_rows(rows)
    last = [session.rows[row].num_processed - 1 for row in rows]
    for place, index in enumerate(last):
        again.truncate(place, index)
    places = [np.array([index]) for index in last]
    tokens = [[session.rows[row].tokens[index]] for row, index in zip(rows, last, strict=True)]
    for row, states in zip(rows, session.forward(again, tokens, places, places), strict=True):
        session.logits[row] = states[-1]


def _in_carrier(row: Row, index: np.ndarray, part: Part) -> np.ndarray:
    """Which of these places of a row's sequence belong to the part's carrier, bool[n]."""
    if part.carrier is None:
        return np.ones(len(index), dtype=bool)
    blocks = np.array(row.tracker.blocks)
    if part.carrier == "delimiters":
        return np.isin(index, blocks[:, :2])
    first = blocks[:, 2] if part.last is None else np.maximum(blocks[:, 2], blocks[:, 3] + 1 - part.last)
    inside = (index[:, None] >= first) & (index[:, None] <= blocks[:, 3])
    return np.asarray(inside.any(axis=1))
