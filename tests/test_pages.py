"""Moving slots between pages, whatever order they are stored in. No vLLM is needed here."""

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
    """A backend whose pages are [heads, slots, keys and values], in any order of storage."""

    def do_kv_cache_update(self, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, where: Tensor) -> None:
        """Write tokens: float[n, heads, dim] each."""
        for token, slot in enumerate(where.tolist()):
            page, row = divmod(slot, cache.shape[2])
            self.put(cache[page], row, torch.cat([keys[token], values[token]], dim=-1))

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        """Of one token: float[heads, 2 * dim]."""
        page[:, row] = numbers

    def get(self, page: Tensor, row: int) -> Tensor:
        """Its numbers again."""
        return page[:, row].clone()


class Packed(Plain):
    """Keys are stored transposed a page, as on CPUs."""

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        flat = page.view(HEADS, -1)
        flat[:, row : SIZE * DIM : SIZE] = numbers[:, :DIM]
        flat[:, SIZE * DIM + row * DIM : SIZE * DIM + (row + 1) * DIM] = numbers[:, DIM:]

    def get(self, page: Tensor, row: int) -> Tensor:
        flat = page.view(HEADS, -1)
        values = flat[:, SIZE * DIM + row * DIM : SIZE * DIM + (row + 1) * DIM]
        return torch.cat([flat[:, row : SIZE * DIM : SIZE], values], dim=-1)


class Mixed(Plain):
    """Keeps no token's numbers apart."""

    def put(self, page: Tensor, row: int, numbers: Tensor) -> None:
        page[:, 0] = numbers


def layer(backend: Plain, order: tuple[int, ...], parts: int = 1) -> Any:
    """One, its cache stored in this order of axes, in kernel pages of `SIZE // parts`."""
    shape = (PAGES * parts, HEADS, SIZE // parts, 2 * DIM)
    stored = torch.rand([shape[axis] for axis in order])
    return SimpleNamespace(impl=backend, kv_cache=stored.permute(*np.argsort(order).tolist()))


@pytest.mark.parametrize(
    "backend, order, parts",
    [
        (Plain(), (0, 1, 2, 3), 1),
        (Plain(), (0, 2, 1, 3), 1),  # slots before heads, which cannot be flattened
        (Plain(), (0, 1, 2, 3), 2),  # a kernel's pages are halves of the scheduler's
        (Plain(), (0, 2, 1, 3), 4),
        (Packed(), (0, 1, 2, 3), 1),
    ],
    ids=["heads first", "slots first", "halves", "quarters of slots first", "packed"],
)
def test_moved_numbers_are_those_that_were_there(backend: Plain, order: tuple[int, ...], parts: int) -> None:
    """Against copying token by token; overlapping, over several pages, and nothing else changes."""
    layers = [layer(backend, order, parts) for _ in range(2)]
    size = SIZE // parts

    def held(one: Any) -> list[Tensor]:
        return [backend.get(one.kv_cache[slot // size], slot % size) for slot in range(PAGES * SIZE)]

    before = [held(one) for one in layers]
    pages = [4, 1, 3]
    source, target = slot_mapping(pages, 7, 21, SIZE), slot_mapping(pages, 2, 16, SIZE)
    PageMover(layers).move(source, target)
    for one, old in zip(layers, before, strict=True):
        for of, to in zip(source.tolist(), target.tolist(), strict=True):
            old[to] = old[of].clone()  # in this order nothing is written before it is read
        assert all(torch.equal(a, b) for a, b in zip(held(one), old, strict=True))


def test_pages_that_cannot_be_moved_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="does not keep each token"):
        PageMover([layer(Mixed(), (0, 1, 2, 3))])
