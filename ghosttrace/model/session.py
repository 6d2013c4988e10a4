"""Sessions: batched forward passes with physical eviction, each row at its own times.

A `Session` holds a batch under one law. Each row has its own tracker. As soon as a key expires, it is removed from
its row of the cache, and positions continue. An `Eraser` performs the erasure; the arms of an ablation are
implemented as erasers (`ghosttrace.ablation.arms`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import BlockErasure, ExpiryTracker, MementoLaw, Policy
from ghosttrace.law.law import Erasure, Law, Tracker
from ghosttrace.law.markup import Block, Markup
from ghosttrace.model.cache import KVCache


@dataclass
class Row:
    """State of one sequence in a session.

    Attributes:
        key: key of the row's stream of random numbers, e.g. (seed, problem, repetition).
        tracker: tracker of the blocks in `tokens`; under Memento's law, also of the erasures.
        law_tracker: tracker of the erasures in `tokens`; under Memento's law, `tracker` itself.
        tokens: token ids of the prompt and of the response so far.
        num_processed: number of tokens that the model has processed.
        position_shift: token index minus RoPE position of the next token (0 unless an arm renumbers positions).
        kv_tokens: for each processed token, the number of keys held at that step, including its own.
    """

    key: tuple[int, ...]
    tracker: ExpiryTracker
    law_tracker: Tracker
    tokens: list[int] = field(default_factory=list)
    num_processed: int = 0
    position_shift: int = 0
    kv_tokens: list[int] = field(default_factory=list)

    def read(self, tokens: Iterable[int]) -> list[Erasure]:
        """Add tokens to the row and return the erasures that they trigger."""
        found: list[Erasure] = []
        for token in tokens:
            self.tokens.append(token)
            found += self.law_tracker.push(token)
            if self.tracker is not self.law_tracker:
                self.tracker.push(token)
        return found


class RowErasures(NamedTuple):
    """Erasures of one row that are due before its next token is processed.

    Attributes:
        row: row of the session.
        erasures: the erasures that are due.
    """

    row: int
    erasures: list[Erasure]

    @property
    def blocks(self) -> list[Block]:
        """Blocks that expire; none under another law than Memento's."""
        return [erasure.block for erasure in self.erasures if isinstance(erasure, BlockErasure)]

    @property
    def carriers_start(self) -> int:
        """Token index of the first token that could see what expires."""
        return min(erasure.carriers.start for erasure in self.erasures)

    @property
    def keys(self) -> np.ndarray:
        """Token indices that expire, int64[n]."""
        return np.concatenate([np.asarray(erasure.keys, dtype=np.int64) for erasure in self.erasures])


class Eraser:
    """Action at the expiry of tokens. The base class evicts the keys and changes nothing else.

    A subclass that keeps state for each row overrides `select` and `join`.

    Args:
        session: the session whose cache is erased.

    Raises:
        UserError: a subclass overrides `select` without `join`; raised when the class is defined.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "select" in vars(cls) and "join" not in vars(cls):  # its state would lack the rows that join later
            raise UserError(
                f"{cls.__name__} overrides select, which keeps some of its rows: override join, which adds rows"
            )

    def __init__(self, session: "Session") -> None:
        self.session = session

    def erase(self, erasures: list[RowErasures]) -> None:
        """Perform the erasures that are due, at most one entry per row."""
        for row_erasures in erasures:
            self.session.cache.evict(row_erasures.row, row_erasures.keys)

    def select(self, rows: Sequence[int]) -> None:
        """Update the state of the eraser after the session has kept only these rows."""

    def join(self, other: Self) -> None:
        """Update the state of the eraser after the session has appended the rows of another eraser's session."""


class Session:
    """A batch of sequences with their KV cache and the logits of each next token.

    Use it inside `attending(model)`.

    Args:
        model: the model.
        markup: token ids of the delimiters and of the assistant header.
        policy: when blocks expire.
        keys: for each row, the key of its stream of random numbers.
        eraser: creates the `Eraser` that acts when tokens expire.
        law: another law than Memento's; `markup` and `policy` then only track blocks.

    Attributes:
        law: which tokens leave the cache and when.
        cache: the `KVCache` of all rows.
        rows: the rows, in the order of the cache.
        logits: float[B, V], logits of each row's next token.
        eraser: the eraser of this session.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        markup: Markup,
        policy: Policy,
        keys: Sequence[tuple[int, ...]],
        eraser: Callable[["Session"], Eraser] = Eraser,
        law: Law | None = None,
    ) -> None:
        self.model = model
        self.law = law or MementoLaw(markup, policy)
        self.cache = KVCache(len(keys))
        self.rows = []
        for key in keys:
            law_tracker = self.law.tracker()
            blocks = law_tracker if isinstance(law_tracker, ExpiryTracker) else ExpiryTracker(markup, policy)
            self.rows.append(Row(key, blocks, law_tracker))
        self.logits = torch.empty(0)
        self.eraser = eraser(self)

    def advance(self, chunks: Sequence[Sequence[int]], all_logits: bool = False) -> list[Tensor]:
        """Process `chunks[b]` in row b and erase tokens as soon as they expire.

        Args:
            chunks: B lists of token ids, of any lengths.
            all_logits: whether to return the logits after every token.

        Returns:
            With `all_logits`, float[len(chunk), V] for each row; else an empty list. The logits after a token are those
            that generation predicts the next token from. If processing the token triggers an erasure, they are taken
            after it. If only the next token triggers the erasure, they are taken before it.
        """
        plans = [self._plan(row, chunk) for row, chunk in zip(self.rows, chunks, strict=True)]
        collected: list[list[Tensor]] = [[] for _ in self.rows]
        for step in range(max(len(plan) for plan in plans)):
            parts = [plan[step] if step < len(plan) else ([], []) for plan in plans]
            if any(tokens for tokens, _ in parts):
                logits = self._process([tokens for tokens, _ in parts], all_logits)
                for row, states in enumerate(logits):
                    collected[row] += list(states)
            erasures = [RowErasures(row, row_erasures) for row, (_, row_erasures) in enumerate(parts) if row_erasures]
            if erasures:
                self.eraser.erase(erasures)
                self.cache.shrink()
            for row, _ in erasures:
                if collected[row] and self.law.erases_after_reading:
                    collected[row][-1] = self.logits[row].clone()
        return [torch.stack(states) if states else self.logits[:0] for states in collected] if all_logits else []

    def _plan(self, row: Row, chunk: Sequence[int]) -> list[tuple[list[int], list[Erasure]]]:
        """Split a chunk at its erasures into parts, each followed by the erasures that are due after it."""
        start = len(row.tokens)
        erasures_at: dict[int, list[Erasure]] = {}
        for erasure in row.read(chunk):
            erasures_at.setdefault(erasure.expires_at, []).append(erasure)
        plan = []
        for expires_at in sorted(erasures_at):
            plan.append((row.tokens[start:expires_at], erasures_at[expires_at]))
            start = expires_at
        if start < len(row.tokens) or not plan:
            plan.append((row.tokens[start:], []))
        return plan

    def _process(self, chunks: list[list[int]], all_logits: bool) -> list[Tensor]:
        """Process a chunk of tokens of each row and update `logits` and the rows; nothing is erased.

        Returns:
            The logits of each chunk, float[n, V], with `all_logits`; else an empty list.
        """
        index = [
            np.arange(row.num_processed, row.num_processed + len(chunk))
            for row, chunk in zip(self.rows, chunks, strict=True)
        ]
        position = [indices - row.position_shift for row, indices in zip(self.rows, index, strict=True)]
        held = self.cache.slots.length.tolist()
        logits = self.forward(self.cache, chunks, index, position, all_logits)
        last = logits[range(len(chunks)), [max(len(chunk), 1) - 1 if all_logits else 0 for chunk in chunks]]
        idle = [row for row, chunk in enumerate(chunks) if not chunk]
        if idle and len(self.logits):
            last[idle] = self.logits[idle]
        self.logits = last
        for row, chunk, before in zip(self.rows, chunks, held, strict=True):
            row.num_processed += len(chunk)
            row.kv_tokens += range(before + 1, before + 1 + len(chunk))
        return [states[: len(chunk)] for states, chunk in zip(logits, chunks, strict=True)] if all_logits else []

    def forward(
        self,
        cache: KVCache,
        chunks: Sequence[Sequence[int]],
        index: Sequence[np.ndarray],
        position: Sequence[np.ndarray],
        all_logits: bool = False,
    ) -> Tensor:
        """Run one forward pass that appends a chunk of tokens to each row of a cache.

        The rows, logits and eraser of the session are not changed.

        Args:
            cache: cache of B rows, extended in place; the session's own or another one.
            chunks: B lists of token ids; some may be empty.
            index: for each row, int64[len(chunk)], token indices.
            position: for each row, int64[len(chunk)], RoPE positions.
            all_logits: whether to return the logits after every token instead of after the last one only.

        Returns:
            With `all_logits`, float[B, Q, V], including padding; else float[B, 1, V], after the last token of each
            chunk.
        """
        counts = np.array([len(chunk) for chunk in chunks])
        steps = int(counts.max())
        padded = np.zeros((3, len(chunks), steps), dtype=np.int64)
        for row, count in enumerate(counts):
            padded[:, row, :count] = chunks[row], index[row], position[row]
        tokens, indices, positions = padded
        visibility = cache.prepare_append(indices, positions, counts)
        device = self.model.device
        logits_to_keep: int | Tensor = 0 if all_logits else 1
        selected = not all_logits and steps > 1
        # Compute the logits of every column in which some chunk ends. Even for one column, a tensor is better than an
        # integer: the head takes far longer on the strided slice, in bfloat16 on a CPU.
        if selected:
            last_columns, column_of_row = np.unique(np.maximum(counts - 1, 0), return_inverse=True)
            logits_to_keep = torch.from_numpy(last_columns).to(device)
        with torch.no_grad():
            logits = self.model(
                input_ids=torch.from_numpy(tokens).to(device),
                position_ids=torch.from_numpy(positions).to(device),
                past_key_values=cache,
                use_cache=True,
                expiry=visibility.to(device),
                logits_to_keep=logits_to_keep,
            ).logits
        return logits[np.arange(len(chunks)), column_of_row][:, None] if selected else logits

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.cache.select(rows)
        self.eraser.select(rows)
        self.rows = [self.rows[row] for row in rows]
        self.logits = self.logits[list(rows)]

    def join(self, other: "Session") -> None:
        """Append the rows of another session with the same model, law and eraser; do not use `other` afterwards."""
        self.cache.join(other.cache)
        self.eraser.join(other.eraser)
        self.rows += other.rows
        self.logits = torch.cat([self.logits, other.logits])
