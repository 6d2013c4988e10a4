"""KV states that know their positions: append, evict, take, put, splice.

A `KVCache` is a transformers `Cache`. Its rows are ragged and left-aligned in slots: row b holds
`length[b]` keys, each with its place in the token sequence (`index`) and its RoPE position
(`position`), which part company only when an arm closes positions up. Appending writes into
preallocated room instead of concatenating, and evicting moves only what stood behind the evicted
keys, so both cost O(what changes), and eviction gives memory back.
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
from ghosttrace.law.masks import Visibility


class Slots:
    """The bookkeeping that all layers of a cache share, on the host.

    Attributes:
        length: int64[B], keys held by each row.
        index, position, expiry: int64[B, capacity]; expiry is 0 in slots that hold nothing.
    """

    def __init__(self, rows: int) -> None:
        self.length = np.zeros(rows, dtype=np.int64)
        self.index, self.position, self.expiry = (np.zeros((rows, 0), dtype=np.int64) for _ in range(3))
        self.write_start = self.length  # where the forward pass under way writes, row by row
        self.num_attended = 0  # slots that the forward pass under way attends to
        self.aligned = True  # its rows all write the same slots
        self.write_slots = torch.empty(0, dtype=torch.int64)  # else int64[B, Q], which ones

    @property
    def capacity(self) -> int:
        """Slots that each layer has room for."""
        return self.index.shape[1]

    def reserve(self, needed: int) -> None:
        """Make room for `needed` slots, with an eighth to spare; give room back below a half."""
        spare = needed + max(64, needed // 8)
        if needed > self.capacity or spare < self.capacity // 2:
            for name in ("index", "position", "expiry"):
                old = getattr(self, name)[:, :spare]
                setattr(self, name, np.pad(old, ((0, 0), (0, spare - old.shape[1]))))


class SlotLayer(CacheLayerMixin):
    """One layer's states, [B, H_kv, capacity, D] each."""

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
        """Follow the bookkeeping's capacity."""
        if self.is_initialized and self.keys.shape[2] != self.slots.capacity:
            self.keys, self.values = (
                torch.nn.functional.pad(
                    s[:, :, : self.slots.capacity], (0, 0, 0, max(0, self.slots.capacity - s.shape[2]))
                )
                for s in (self.keys, self.values)
            )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H_kv, Q, D] where the bookkeeping says; return everything up to its extent."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.resize()
        steps, slots = key_states.shape[2], self.slots
        if slots.aligned:
            here = slice(int(slots.write_start[0]), int(slots.write_start[0]) + steps)
            self.keys[:, :, here], self.values[:, :, here] = key_states, value_states
        else:
            slots.write_slots = slots.write_slots.to(self.device)  # copied once a step, not once a layer
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
    """Keys and values of B rows with absolute positions.

    Sliding-window layers keep every retained key and hide what lies outside the window, so that
    eviction, sealing and splicing mean the same in every layer.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, rows: int) -> None:
        self.slots = Slots(rows)
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.slots))  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.slots.length)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, room to spare included."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)

    def held_indices(self, row: int) -> np.ndarray:
        """int64[length]: the places in the sequence whose keys a row holds, ascending."""
        return self.slots.index[row, : self.slots.length[row]]

    def prepare_append(self, index: np.ndarray, position: np.ndarray, counts: np.ndarray) -> Visibility:
        """Announce a forward pass that appends `counts[b]` of Q tokens to row b.

        Args:
            index, position: int64[B, Q]; what lies beyond a row's count is padding.
            counts: int64[B].

        Returns:
            What the queries may see, to be passed to the model as `expiry`.
        """
        slots, (rows, steps) = self.slots, index.shape
        slots.write_start = slots.length.copy()
        slots.reserve(int(slots.write_start.max()) + steps)
        slots.length = slots.write_start + counts
        slots.num_attended = int(slots.write_start.max()) + steps
        slots.aligned = bool((slots.write_start == slots.write_start[0]).all())
        at = slots.write_start[:, None] + np.arange(steps)
        slots.write_slots = torch.from_numpy(at)
        row = np.arange(rows)[:, None]
        slots.index[row, at], slots.position[row, at] = index, position
        slots.expiry[row, at] = np.where(np.arange(steps) < counts[:, None], NEVER, 0)
        full = slots.aligned and bool((counts == steps).all())
        last = slots.num_attended - 1
        causal_span = int(slots.position[:, last].max() - slots.position[:, 0].min()) + 1 if full else None
        keys = [torch.from_numpy(a[:, : slots.num_attended]) for a in (slots.index, slots.expiry, slots.position)]
        return Visibility(torch.from_numpy(index), keys[0], keys[1], torch.from_numpy(position), keys[2], causal_span)

    def evict(self, row: int, keys: Sequence[int] | np.ndarray | range) -> None:
        """Physically drop the keys at these places of the sequence; those not held are passed over."""
        self.keep_slots(row, np.flatnonzero(~np.isin(self.held_indices(row), np.asarray(keys))))

    def truncate(self, row: int, index: int) -> None:
        """Drop every key at or behind a place of the sequence."""
        self.keep_slots(row, np.flatnonzero(self.held_indices(row) < index))

    def keep_slots(self, row: int, kept: np.ndarray) -> None:
        """Keep these slots of a row, ascending; the rest is gone and its memory reusable."""
        slots = self.slots
        moved = kept[kept != np.arange(len(kept))]
        here = slice(len(kept) - len(moved), len(kept))
        if len(moved):
            source = torch.from_numpy(moved)
            for layer in self.layers:
                at = source.to(layer.keys.device)
                layer.keys[row, :, here] = layer.keys[row, :, at]
                layer.values[row, :, here] = layer.values[row, :, at]
            for array in (slots.index, slots.position):
                array[row, here] = array[row, moved]
        slots.expiry[row, len(kept) :] = 0
        slots.length[row] = len(kept)

    def shrink(self) -> None:
        """Give back room that no row needs."""
        self.slots.reserve(int(self.slots.length.max(initial=0)))
        for layer in self.layers:
            layer.resize()

    def copy_rows(self, rows: Sequence[int]) -> "KVCache":
        """A copy of some rows, as a cache of its own."""
        other = KVCache(len(rows))
        width = int(self.slots.length[list(rows)].max(initial=0))
        other.slots.length = self.slots.length[list(rows)]
        for name in ("index", "position", "expiry"):
            setattr(other.slots, name, getattr(self.slots, name)[list(rows), :width].copy())
        for layer in self.layers:
            copy = SlotLayer(other.slots)
            at = torch.as_tensor(list(rows), device=layer.keys.device)
            copy.dtype, copy.device, copy.is_initialized = layer.dtype, layer.device, True
            copy.keys, copy.values = (s[:, :, :width][at] for s in (layer.keys, layer.values))
            other.layers.append(copy)
        return other

    def replace_rows(self, rows: Sequence[int], other: "KVCache") -> None:
        """Replace some rows by the rows of another cache."""
        width = int(other.slots.length.max(initial=0))
        self.slots.reserve(max(width, int(self.slots.length.max(initial=0))))
        self.slots.length[list(rows)] = other.slots.length
        for name in ("index", "position", "expiry"):
            mine, theirs = getattr(self.slots, name), getattr(other.slots, name)
            mine[list(rows)] = 0
            mine[list(rows), :width] = theirs[:, :width]
        for number, source in enumerate(other.layers):
            if number == len(self.layers):
                self.layers.append(SlotLayer(self.slots))
            layer = self.layers[number]
            if not layer.is_initialized:
                layer.lazy_initialization(*(s.new_zeros(self.rows, *s.shape[1:]) for s in (source.keys, source.values)))
            layer.resize()
            at = torch.as_tensor(list(rows), device=layer.keys.device)
            layer.keys[at, :, :width] = source.keys[:, :, :width]
            layer.values[at, :, :width] = source.values[:, :, :width]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        slots = self.slots
        for name in ("length", "index", "position", "expiry"):
            setattr(slots, name, getattr(slots, name)[list(rows)])
        for layer in self.layers:
            at = torch.as_tensor(list(rows), device=layer.keys.device)
            layer.keys, layer.values = layer.keys[at], layer.values[at]
        self.shrink()
