"""KV cache that records the token index and position of every key, with append, eviction and row exchange.

A `KVCache` is a transformers `Cache`. Its rows are ragged and left-aligned in slots: row b holds `length[b]` keys,
each with its token index (`index`) and its RoPE position (`position`). The two differ only if an arm renumbers
positions. Appending writes into preallocated slots instead of concatenating. Eviction moves only the keys after the
evicted ones and frees memory.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ghosttrace.law.expiry import NEVER
from ghosttrace.law.masks import RowPart, Visibility

MIN_SAVED_SLOTS = 16_384
"""Number of padding slots that a part of the batch must save to be worth another call of the attention kernel."""


def row_parts(length: np.ndarray, first: int = 0) -> tuple[RowPart, ...]:
    """Split a batch between rows where it saves most padding, while it saves enough.

    Rows that joined later stand behind, so that rows of similar lengths are mostly adjacent.

    Args:
        length: int64[B], number of keys of each row.
        first: number of the first row.

    Returns:
        The parts in order.
    """
    length, rows = np.maximum(length, 1), len(length)
    whole = RowPart(slice(first, first + rows), int(length.max()))
    if rows * whole.width < MIN_SAVED_SLOTS or rows < 2:
        return (whole,)
    above = np.arange(1, rows)
    before, after = np.maximum.accumulate(length)[:-1], np.maximum.accumulate(length[::-1])[-2::-1]
    slots = above * before + (rows - above) * after
    cut = int(slots.argmin()) + 1
    if rows * whole.width - slots[cut - 1] < MIN_SAVED_SLOTS:
        return (whole,)
    return (*row_parts(length[:cut], first), *row_parts(length[cut:], first + cut))


class Slots:
    """Slot tables shared by all layers of a cache, on the host.

    Attributes:
        length: int64[B], number of keys that each row holds.
        index, position, expiry: int64[B, capacity], token index, RoPE position and expiry of the key in each slot;
            expiry is 0 in empty slots.
        write_start: int64[B], first slot that the current forward pass writes in each row.
        num_attended: number of slots that the current forward pass attends to.
        aligned: whether all rows write the same slots.
        write_slots: int64[B, Q], the slots that the current forward pass writes.
    """

    def __init__(self, rows: int) -> None:
        self.length = np.zeros(rows, dtype=np.int64)
        self.index, self.position, self.expiry = (np.zeros((rows, 0), dtype=np.int64) for _ in range(3))
        self.write_start = self.length
        self.num_attended = 0
        self.aligned = True
        self.write_slots = torch.empty(0, dtype=torch.int64)

    @property
    def capacity(self) -> int:
        """Number of slots allocated per row."""
        return self.index.shape[1]

    def reserve(self, needed: int) -> None:
        """Allocate at least `needed` slots, with an eighth to spare; free slots if less than half are needed."""
        target = needed + max(64, needed // 8)
        if needed > self.capacity or target < self.capacity // 2:
            for name in ("index", "position", "expiry"):
                old = getattr(self, name)[:, :target]
                setattr(self, name, np.pad(old, ((0, 0), (0, target - old.shape[1]))))


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, H_kv, capacity, D] each."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self.slots.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def resize(self) -> None:
        """Resize keys and values to the capacity of the slot tables."""
        if self.is_initialized and self.keys.shape[2] != self.slots.capacity:
            self.keys, self.values = (
                torch.nn.functional.pad(
                    states[:, :, : self.slots.capacity], (0, 0, 0, max(0, self.slots.capacity - states.shape[2]))
                )
                for states in (self.keys, self.values)
            )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states, [B, H_kv, Q, D], to the slots of the current pass; return all states that it attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.resize()
        steps, slots = key_states.shape[2], self.slots
        if slots.aligned:
            written = slice(int(slots.write_start[0]), int(slots.write_start[0]) + steps)
            self.keys[:, :, written], self.values[:, :, written] = key_states, value_states
        else:
            slots.write_slots = slots.write_slots.to(self.device)  # stored: one copy per step
            rows = torch.arange(len(slots.write_start), device=self.device)[:, None]
            self.keys[rows, :, slots.write_slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots.write_slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : slots.num_attended], self.values[:, :, : slots.num_attended]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.num_attended, 0

    def get_seq_length(self) -> int:
        return int(self.slots.write_start.max(initial=0))

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """KV cache of B rows with the token index and position of every key.

    Layers with a sliding window also hold every retained key and hide keys outside the window by the mask, so that
    eviction, sealing and exchanging rows work the same in every layer.

    Args:
        rows: the number of rows B.

    Attributes:
        slots: the slot tables shared by all layers.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, rows: int) -> None:
        self.slots = Slots(rows)
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.slots))  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """Number of rows, B."""
        return len(self.slots.length)

    @property
    def nbytes(self) -> int:
        """Allocated bytes, including empty slots."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)

    def held_indices(self, row: int) -> np.ndarray:
        """Return the token indices whose keys a row holds, int64[length], in ascending order."""
        return self.slots.index[row, : self.slots.length[row]]

    def prepare_append(self, index: np.ndarray, position: np.ndarray, counts: np.ndarray) -> Visibility:
        """Reserve slots for a forward pass that appends `counts[b]` tokens to row b.

        Args:
            index: int64[B, Q], token indices; entries beyond a row's count are padding.
            position: int64[B, Q], RoPE positions, padded in the same way.
            counts: int64[B], number of tokens appended to each row.

        Returns:
            The visibility of the keys to the new queries, to be passed to the model as `expiry`.
        """
        slots, (rows, steps) = self.slots, index.shape
        slots.write_start = slots.length.copy()
        slots.reserve(int(slots.write_start.max()) + steps)
        slots.length = slots.write_start + counts
        slots.num_attended = int(slots.write_start.max()) + steps
        slots.aligned = bool((slots.write_start == slots.write_start[0]).all())
        written = slots.write_start[:, None] + np.arange(steps)
        slots.write_slots = torch.from_numpy(written)
        row = np.arange(rows)[:, None]
        slots.index[row, written], slots.position[row, written] = index, position
        slots.expiry[row, written] = np.where(np.arange(steps) < counts[:, None], NEVER, 0)
        full = slots.aligned and bool((counts == steps).all())
        last = slots.num_attended - 1
        causal_span = int(slots.position[:, last].max() - slots.position[:, 0].min()) + 1 if full else None
        tables = (slots.index, slots.expiry, slots.position)
        keys = [torch.from_numpy(table[:, : slots.num_attended]) for table in tables]
        parts = row_parts(slots.length) if steps == 1 and not full else ()
        positions = torch.from_numpy(position)
        return Visibility(
            *(torch.from_numpy(index), keys[0], keys[1], positions, keys[2], causal_span),
            row_parts=parts if len(parts) > 1 else (),
        )

    def evict(self, row: int, keys: Sequence[int] | np.ndarray | range) -> None:
        """Remove the keys at these token indices from a row; indices that the row does not hold are ignored."""
        self.keep_slots(row, np.flatnonzero(~np.isin(self.held_indices(row), np.asarray(keys))))

    def truncate(self, row: int, index: int) -> None:
        """Remove every key at or after a token index from a row."""
        self.keep_slots(row, np.flatnonzero(self.held_indices(row) < index))

    def keep_slots(self, row: int, kept: np.ndarray) -> None:
        """Remove all keys of a row except those in the `kept` slots, int64[n] in ascending order."""
        slots = self.slots
        moved = kept[kept != np.arange(len(kept))]
        target = slice(len(kept) - len(moved), len(kept))
        if len(moved):
            source = torch.from_numpy(moved)
            for layer in self.layers:
                slot_ids = source.to(layer.keys.device)
                layer.keys[row, :, target] = layer.keys[row, :, slot_ids]
                layer.values[row, :, target] = layer.values[row, :, slot_ids]
            for array in (slots.index, slots.position):
                array[row, target] = array[row, moved]
        slots.expiry[row, len(kept) :] = 0
        slots.length[row] = len(kept)

    def shrink(self) -> None:
        """Free slots that no row needs."""
        self.slots.reserve(int(self.slots.length.max(initial=0)))
        for layer in self.layers:
            layer.resize()

    def copy_rows(self, rows: Sequence[int]) -> "KVCache":
        """Return a new cache with copies of some rows."""
        other = KVCache(len(rows))
        width = int(self.slots.length[list(rows)].max(initial=0))
        other.slots.length = self.slots.length[list(rows)]
        for name in ("index", "position", "expiry"):
            setattr(other.slots, name, getattr(self.slots, name)[list(rows), :width].copy())
        for layer in self.layers:
            copy = SlotLayer(other.slots)
            row_ids = torch.as_tensor(list(rows), device=layer.keys.device)
            copy.dtype, copy.device, copy.is_initialized = layer.dtype, layer.device, True
            copy.keys, copy.values = (states[:, :, :width][row_ids] for states in (layer.keys, layer.values))
            other.layers.append(copy)
        return other

    def replace_rows(self, rows: Sequence[int], other: "KVCache") -> None:
        """Replace some rows by the rows of another cache, in order."""
        width = int(other.slots.length.max(initial=0))
        self.slots.reserve(max(width, int(self.slots.length.max(initial=0))))
        self.slots.length[list(rows)] = other.slots.length
        for name in ("index", "position", "expiry"):
            own_table, other_table = getattr(self.slots, name), getattr(other.slots, name)
            own_table[list(rows)] = 0
            own_table[list(rows), :width] = other_table[:, :width]
        for number, source in enumerate(other.layers):
            if number == len(self.layers):
                self.layers.append(SlotLayer(self.slots))
            layer = self.layers[number]
            if not layer.is_initialized:
                empty = (states.new_zeros(self.rows, *states.shape[1:]) for states in (source.keys, source.values))
                layer.lazy_initialization(*empty)
            layer.resize()
            row_ids = torch.as_tensor(list(rows), device=layer.keys.device)
            layer.keys[row_ids, :, :width] = source.keys[:, :, :width]
            layer.values[row_ids, :, :width] = source.values[:, :, :width]

    def join(self, other: "KVCache") -> None:
        """Append copies of the rows of another cache."""
        slots, rows, added = self.slots, self.rows, other.rows
        slots.length = np.pad(slots.length, (0, added))
        for name in ("index", "position", "expiry"):
            setattr(slots, name, np.pad(getattr(slots, name), ((0, added), (0, 0))))
        for layer in self.layers:  # one layer at a time, so that only one is held twice
            padding = (0, 0, 0, 0, 0, 0, 0, added)
            layer.keys, layer.values = (torch.nn.functional.pad(s, padding) for s in (layer.keys, layer.values))
        self.replace_rows(range(rows, rows + added), other)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        slots = self.slots
        for name in ("length", "index", "position", "expiry"):
            setattr(slots, name, getattr(slots, name)[list(rows)])
        for layer in self.layers:
            row_ids = torch.as_tensor(list(rows), device=layer.keys.device)
            layer.keys, layer.values = layer.keys[row_ids], layer.values[row_ids]
        self.shrink()
