"""Copying keys and values between slots of vLLM's pages, whatever the layout inside a page."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.serving.paging import Compaction


def slot_mapping(pages: list[int] | Tensor, first: int, stop: int, page_size: int) -> Tensor:
    """Return where slots `first` to `stop` of a request lie: int64[stop - first] of page * page_size + offset."""
    pages = torch.as_tensor(pages)
    numbers = torch.arange(first, stop, device=pages.device)
    return pages[numbers // page_size].long() * page_size + numbers % page_size


class PageMover:
    """Copies slots in the pages of every layer.

    A backend may store a page transposed or packed. The layout of each kind of page is therefore found once, by writing
    known numbers through the backend's own update into a page made for it, and reading where they are.

    Args:
        layers: vLLM's attention layers; `kv_cache` is [pages, heads, page_size, 2 * head_dim], stored in any order.

    Raises:
        UserError: the pages of a backend cannot be compacted.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        found = {layer.kv_cache.data_ptr(): layer for layer in layers}
        kinds: dict[tuple[Any, ...], Tensor] = {}
        self._layers: list[tuple[Any, Tensor]] = []
        for layer in found.values():
            cache = layer.kv_cache
            kind = (type(layer.impl), cache.shape[1:], cache.stride(), cache.dtype)
            if kind not in kinds:
                kinds[kind] = find_layout(layer, cache).to(cache.device)
            self._layers.append((layer, kinds[kind]))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots; all are read before any is written.

        Args:
            source, target: int64[n] each, as `slot_mapping` returns them.
        """
        device = self._layers[0][0].kv_cache.device
        source, target = source.to(device), target.to(device)
        for layer, layout in self._layers:
            cache = layer.kv_cache
            heads = torch.arange(cache.shape[1], device=device)[None, :, None]
            cache[_indices(target, layout, heads)] = cache[_indices(source, layout, heads)]

    def compact(
        self, pages: Mapping[str, list[int] | Tensor], compactions: Mapping[str, list[Compaction]], page_size: int
    ) -> None:
        """Carry out compactions of several requests: the first of each together, then the second, and so on.

        Args:
            pages: by request, the pages that hold its slots.
            compactions: by request, in order.
            page_size: slots of a page.
        """
        for turn in range(max(map(len, compactions.values()))):
            now = {name: moves[turn] for name, moves in compactions.items() if len(moves) > turn}
            now = {name: one for name, one in now.items() if one.start < one.stop and one.start != one.target}
            if now:
                source = [slot_mapping(pages[name], one.start, one.stop, page_size) for name, one in now.items()]
                target = [
                    slot_mapping(pages[name], one.target, one.slots_after, page_size) for name, one in now.items()
                ]
                self.move(torch.cat(source), torch.cat(target))


def _indices(slot: Tensor, layout: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return indices of the numbers of slots in a cache: page, head, row, column."""
    size, width = layout.shape  # a kernel's pages may be parts of those that the scheduler counts
    inner = layout[slot % size][:, None, :]
    return (slot // size)[:, None, None], heads, inner // width, inner % width


def find_layout(layer: Any, cache: Tensor) -> Tensor:
    """Return where a page holds each token's numbers, in every head.

    Returns:
        int64[page_size, 2 * head_dim] of row * width + column.

    Raises:
        UserError: the numbers of different tokens overlap.
    """
    _, heads, size, width = cache.shape
    dim = width // 2
    storage = sorted(range(4), key=cache.stride, reverse=True)
    second = torch.arange(size, 2 * size, device=cache.device)  # slots of the second of two pages

    def written(keys: Tensor, values: Tensor) -> Tensor:
        shape = [(2, heads, size, width)[axis] for axis in storage]
        page = torch.zeros(shape, dtype=cache.dtype, device=cache.device).permute(*np.argsort(storage).tolist())
        full = (states.expand(size, heads, dim).to(cache.dtype).contiguous() for states in (keys, values))
        layer.impl.do_kv_cache_update(layer, *full, page, second)
        return page[1, 0].reshape(-1).long().cpu()

    tokens = torch.arange(size, device=cache.device).view(size, 1, 1)
    dims = torch.arange(dim, device=cache.device).view(1, 1, dim)
    token, number = written(tokens, tokens), written(dims, dims)
    is_value = written(torch.zeros_like(tokens), torch.ones_like(tokens))
    layout = torch.full((size, width), -1)
    layout[token, is_value * dim + number] = torch.arange(size * width)
    if (layout < 0).any():
        raise UserError(
            f"{type(layer.impl).__name__} does not keep each token's numbers apart in {cache.dtype}, so that its pages "
            "cannot be compacted: choose another --attention-backend or --kv-cache-dtype"
        )
    return layout
