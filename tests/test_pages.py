"""Moving slots between pages for any memory layout. Needs no vLLM."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.page_mover import PageMover, slot_mapping

PAGES, HEADS, SIZE, DIM = 6, 2, 8, 4


class Plain:
    """Backend with pages [heads, slots, keys and values] in any memory order."""

    def do_kv_cache_update(self, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        """Write tokens: float[n, heads, dim] each."""
        for token, slot in enumerate(slots.tolist()):
            page, row = divmod(slot, cache.shape[2])
            self.put(cache[page], row, torch.cat([keys[token], values[token]], dim=-1))

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        """Write one token: float[heads, 2 * dim]."""
        page[:, row] = numbers

    def get(self, page: Tensor, row: int) -> Tensor:
        """Read one token: float[heads, 2 * dim]."""
        return page[:, row].clone()


class Packed(Plain):
    """Backend that stores the keys of a page transposed, as on CPUs."""

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        flat = page.view(HEADS, -1)
        flat[:, row : SIZE * DIM : SIZE] = numbers[:, :DIM]
        flat[:, SIZE * DIM + row * DIM : SIZE * DIM + (row + 1) * DIM] = numbers[:, DIM:]

    def get(self, page: Tensor, row: int) -> Tensor:
        flat = page.view(HEADS, -1)
        values = flat[:, SIZE * DIM + row * DIM : SIZE * DIM + (row + 1) * DIM]
        return torch.cat([flat[:, row : SIZE * DIM : SIZE], values], dim=-1)


class Mixed(Plain):
    """Backend that does not store tokens separately."""

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        page[:, 0] = numbers


def layer(backend: Plain, order: tuple[int, ...], parts: int = 1) -> Any:
    """Return a layer whose cache has axes in this memory order, and kernel pages of `SIZE // parts` slots."""
    shape = (PAGES * parts, HEADS, SIZE // parts, 2 * DIM)
    stored = torch.rand([shape[axis] for axis in order])
    return SimpleNamespace(impl=backend, kv_cache=stored.permute(*np.argsort(order).tolist()))


@pytest.mark.parametrize(
    "backend, order, parts",
    [
        (Plain(), (0, 1, 2, 3), 1),
        (Plain(), (0, 2, 1, 3), 1),  # slots before heads, which cannot be flattened
        (Plain(), (0, 1, 2, 3), 2),  # kernel pages are halves of scheduler pages
        (Plain(), (0, 2, 1, 3), 4),
        (Packed(), (0, 1, 2, 3), 1),
    ],
    ids=["heads first", "slots first", "halves", "quarters of slots first", "packed"],
)
def test_move_equals_copying_token_by_token(backend: Plain, order: tuple[int, ...], parts: int) -> None:
    """Source and target overlap and span several pages; other slots are unchanged."""
    layers = [layer(backend, order, parts) for _ in range(2)]
    size = SIZE // parts

    def held(paged_layer: Any) -> list[Tensor]:
        return [backend.get(paged_layer.kv_cache[slot // size], slot % size) for slot in range(PAGES * SIZE)]

    before = [held(paged_layer) for paged_layer in layers]
    pages = [4, 1, 3]
    source, target = slot_mapping(pages, 7, 21, SIZE), slot_mapping(pages, 2, 16, SIZE)
    PageMover(layers).move(source, target)
    for paged_layer, old in zip(layers, before, strict=True):
        for source_slot, target_slot in zip(source.tolist(), target.tolist(), strict=True):
            old[target_slot] = old[source_slot].clone()  # in this order no slot is overwritten before it is read
        assert all(torch.equal(a, b) for a, b in zip(held(paged_layer), old, strict=True))


def test_unsupported_page_layout_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be compacted: choose another --attention-backend"):
        PageMover([layer(Mixed(), (0, 1, 2, 3))])
