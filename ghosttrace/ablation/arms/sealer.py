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
from ghosttrace.model.session import Eraser, Hit, Row, Session


class Sealer(Eraser):
    """Keeps a sealed copy of each row's cache and puts it, or a part of it, in place of the live one."""

    def __init__(self, session: Session, part: Part, renumber: bool = False) -> None:
        super().__init__(session)
        self.part, self.renumber = part, renumber
        self.sealed = KVCache(len(session.rows))
        self._begun = [False] * len(session.rows)

    def select(self, rows: Sequence[int]) -> None:
        self.sealed.select(rows)
        self._begun = [self._begun[row] for row in rows]

    def erase(self, hits: list[Hit]) -> None:
        super().erase(hits)
        session, rows = self.session, [hit.row for hit in hits]
        for row in rows:
            if not self._begun[row]:  # nothing has been erased before: what precedes is sealed as it is
                self.sealed.put([row], session.cache.take([row]))
                self._begun[row] = True
        sealed = self.sealed.take(rows)
        fresh = []
        for place, hit in enumerate(hits):
            # An empty block between kept delimiters erases nothing, yet its end is behind it.
            sealed.truncate(place, int(hit.keys.min(initial=hit.erasures[0].block.end)))
            held, kept = session.cache.held(hit.row), sealed.held(place)
            fresh.append(held[held > kept.max(initial=-1)])
        runs = [[session.rows[row].tokens[k] for k in index] for row, index in zip(rows, fresh, strict=True)]
        lengths = sealed.slots.length.copy()
        closed_up = [length + np.arange(len(run)) for length, run in zip(lengths, runs, strict=True)]
        logits = session.forward(sealed, runs, fresh, closed_up if self.renumber else fresh)
        self.sealed.put(rows, sealed)
        if self.part.whole:
            session.cache.put(rows, sealed)
            for place, row in enumerate(rows):
                session.logits[row] = logits[place][-1]
                if self.renumber:
                    session.rows[row].closed = session.rows[row].fed - int(sealed.slots.length[place])
        else:
            for place, row in enumerate(rows):
                self._splice(row, sealed, place, fresh[place])
            reread(session, rows)

    def _splice(self, row: int, sealed: KVCache, place: int, index: np.ndarray) -> None:
        """Copy the chosen part of the sealed states at these places of the sequence into the live cache."""
        live = self.session.cache
        index = index[_carries(self.session.rows[row], index, self.part)]
        to, source = (torch.from_numpy(np.searchsorted(held, index)) for held in (live.held(row), sealed.held(place)))
        for number, (mine, theirs) in enumerate(zip(live.layers, sealed.layers, strict=True)):
            if self.part.layers is not None and number not in self.part.layers:
                continue
            every = range(mine.keys.shape[1]) if self.part.heads is None else self.part.heads
            heads = torch.tensor(list(every))[:, None]
            if "k" in self.part.kv:
                mine.keys[row, heads, to] = theirs.keys[place, heads, source]
            if "v" in self.part.kv:
                mine.values[row, heads, to] = theirs.values[place, heads, source]


def reread(session: Session, rows: Sequence[int]) -> None:
    """Predict the next token of these rows by reading the last one again over the cache as it now stands."""
    again = session.cache.take(rows)
    last = [session.rows[row].fed - 1 for row in rows]
    for place, index in enumerate(last):
        again.truncate(place, index)
    places = [np.array([index]) for index in last]
    tokens = [[session.rows[row].tokens[index]] for row, index in zip(rows, last, strict=True)]
    for row, states in zip(rows, session.forward(again, tokens, places, places), strict=True):
        session.logits[row] = states[-1]


def _carries(row: Row, index: np.ndarray, part: Part) -> np.ndarray:
    """Which of these places of a row's sequence belong to the part's carrier, bool[n]."""
    if part.carrier is None:
        return np.ones(len(index), dtype=bool)
    blocks = np.array(row.tracker.blocks)
    if part.carrier == "delimiters":
        return np.isin(index, blocks[:, :2])
    first = blocks[:, 2] if part.last is None else np.maximum(blocks[:, 2], blocks[:, 3] + 1 - part.last)
    inside = (index[:, None] >= first) & (index[:, None] <= blocks[:, 3])
    return np.asarray(inside.any(axis=1))
