"""Physical eviction: a batch of rows, each of which forgets at its own times.

A `Session` holds a batch under one policy. Each row has a tracker of its own; the moment a key
expires it leaves the cache, row by row, and positions go on. What else happens at that moment is up
to an `Eraser`, which is how the arms of an ablation plug in (`ghosttrace.ablation.arms`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ghosttrace.law.expiry import Erasure, ExpiryTracker, Policy
from ghosttrace.law.markup import Block, Markup
from ghosttrace.model.cache import KVCache


@dataclass
class Row:
    """One sequence being decoded.

    Attributes:
        key: what the row's randomness belongs to, e.g. (seed, problem, repetition).
        tokens: everything read or written so far; `num_processed` of them have been through the model.
        tracker: the law's reading of them.
        position_shift: how far positions have been position_shift up (0 unless an arm does so).
        kv_tokens: keys held when each token was processed, the token itself included.
    """

    key: tuple[int, ...]
    tracker: ExpiryTracker
    tokens: list[int] = field(default_factory=list)
    num_processed: int = 0
    position_shift: int = 0
    kv_tokens: list[int] = field(default_factory=list)


class RowErasures(NamedTuple):
    """Keys of one row that expire now, before its next token is read."""

    row: int
    erasures: list[Erasure]

    @property
    def blocks(self) -> list[Block]:
        """The blocks that expire."""
        return [erasure.block for erasure in self.erasures]

    @property
    def keys(self) -> np.ndarray:
        """int64[n]: the places in the sequence that expire."""
        return np.concatenate([np.asarray(erasure.keys, dtype=np.int64) for erasure in self.erasures])


class Eraser:
    """What happens when blocks expire: here, their keys leave the cache and nothing else changes."""

    def __init__(self, session: "Session") -> None:
        self.session = session

    def erase(self, hits: list[RowErasures]) -> None:
        """Act on every row that has something expiring at this moment."""
        for hit in hits:
            self.session.cache.evict(hit.row, hit.keys)

    def select(self, rows: Sequence[int]) -> None:
        """Rows have been dropped from the batch; `rows` are those that stay."""


class Session:
    """A batch of rows, their cache, and the logits of each row's next token.

    Use it inside `attending(model)`.

    Attributes:
        cache: the live `KVCache`.
        rows: the rows, in the cache's order.
        logits: float[B, V], for each row's next token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        markup: Markup,
        policy: Policy,
        keys: Sequence[tuple[int, ...]],
        eraser: Callable[["Session"], Eraser] = Eraser,
    ) -> None:
        self.model = model
        self.cache = KVCache(len(keys))
        self.rows = [Row(key, ExpiryTracker(markup, policy)) for key in keys]
        self.logits = torch.empty(0)
        self.eraser = eraser(self)

    def advance(self, chunks: Sequence[Sequence[int]], all_logits: bool = False) -> list[Tensor]:
        """Read `chunks[b]` into row b, erasing what expires on the way.

        Args:
            chunks: B token lists, of any lengths.
            all_logits: return the logits after all_logits token.

        Returns:
            With `all_logits`, for each row float[len(chunk), V]; else an empty list. A position's logits
            are those its successor is predicted from in generation: taken after what the arm does if
            keys expire once the position is read, before if it takes the successor to expire them.
        """
        plans = [self._plan(row, chunk) for row, chunk in zip(self.rows, chunks, strict=True)]
        collected: list[list[Tensor]] = [[] for _ in self.rows]
        for turn in range(max(len(plan) for plan in plans)):
            parts = [plan[turn] if turn < len(plan) else ([], []) for plan in plans]
            if any(tokens for tokens, _ in parts):
                logits = self._feed([tokens for tokens, _ in parts], all_logits)
                for row, states in enumerate(logits):
                    collected[row] += list(states)
            hits = [RowErasures(row, erasures) for row, (_, erasures) in enumerate(parts) if erasures]
            if hits:
                self.eraser.erase(hits)
                self.cache.shrink()
            for hit in hits:
                if collected[hit.row] and self.rows[hit.row].tracker.policy.erases_after_reading:
                    collected[hit.row][-1] = self.logits[hit.row].clone()
        return [torch.stack(states) if states else self.logits[:0] for states in collected] if all_logits else []

    def _plan(self, row: Row, chunk: Sequence[int]) -> list[tuple[list[int], list[Erasure]]]:
        """Cut a chunk where keys expire: runs of tokens, each with what expires behind it."""
        begin = len(row.tokens)
        row.tokens += chunk
        expiring: dict[int, list[Erasure]] = {}
        for token in chunk:
            for erasure in row.tracker.push(token):
                expiring.setdefault(erasure.expires_at, []).append(erasure)
        plan, done = [], begin
        for at in sorted(expiring):
            plan.append((row.tokens[done:at], expiring[at]))
            done = at
        if done < len(row.tokens) or not plan:
            plan.append((row.tokens[done:], []))
        return plan

    def _feed(self, runs: list[list[int]], all_logits: bool) -> list[Tensor]:
        index = [
            np.arange(row.num_processed, row.num_processed + len(run)) for row, run in zip(self.rows, runs, strict=True)
        ]
        position = [places - row.position_shift for row, places in zip(self.rows, index, strict=True)]
        held = self.cache.slots.length.tolist()
        logits = self.forward(self.cache, runs, index, position, all_logits)
        last = logits[range(len(runs)), [max(len(run), 1) - 1 if all_logits else 0 for run in runs]]
        idle = [row for row, run in enumerate(runs) if not run]
        if idle and len(self.logits):
            last[idle] = self.logits[idle]
        self.logits = last
        for row, run, before in zip(self.rows, runs, held, strict=True):
            row.num_processed += len(run)
            row.kv_tokens += range(before + 1, before + 1 + len(run))
        return [states[: len(run)] for states, run in zip(logits, runs, strict=True)] if all_logits else []

    def forward(
        self,
        cache: KVCache,
        runs: Sequence[Sequence[int]],
        index: Sequence[np.ndarray],
        position: Sequence[np.ndarray],
        all_logits: bool = False,
    ) -> Tensor:
        """Append a run of tokens to each row of any cache.

        Args:
            cache: B rows; extended in place.
            runs: B token lists, some perhaps empty.
            index, position: for each, int64[len(run)]: places in the sequence and RoPE positions.
            all_logits: the logits of all_logits token, not of the last alone.

        Returns:
            float[B, Q, V] with `all_logits`, padding included; else float[B, 1, V], after each run's end.
        """
        counts = np.array([len(run) for run in runs])
        steps = int(counts.max())
        padded = np.zeros((3, len(runs), steps), dtype=np.int64)
        for row, count in enumerate(counts):
            padded[:, row, :count] = runs[row], index[row], position[row]
        tokens, places, positions = padded
        visibility = cache.prepare_append(places, positions, counts)
        device = self.model.device
        keep: int | Tensor = 0 if all_logits else 1
        ragged = not all_logits and bool((counts != steps).any())
        if ragged:  # the model is asked for every place at which some run ends
            wanted, which = np.unique(np.maximum(counts - 1, 0), return_inverse=True)
            keep = torch.from_numpy(wanted).to(device)
        with torch.no_grad():
            logits = self.model(
                input_ids=torch.from_numpy(tokens).to(device),
                position_ids=torch.from_numpy(positions).to(device),
                past_key_values=cache,
                use_cache=True,
                expiry=visibility.to(device),
                logits_to_keep=keep,
            ).logits
        return logits[np.arange(len(runs)), which][:, None] if ragged else logits

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.cache.select(rows)
        self.eraser.select(rows)
        self.rows = [self.rows[row] for row in rows]
        self.logits = self.logits[list(rows)]
