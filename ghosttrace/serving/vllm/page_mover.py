"""Copy of keys and values between slots of vLLM's pages, for any layout inside a page."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.serving.paging import Compaction


def slot_mapping(pages: list[int] | Tensor, start: int, stop: int, page_size: int) -> Tensor:
    """Return the physical slots of a request's slots `start` to `stop` (exclusive).

    Args:
        pages: page numbers of the request, in the order of its slots.
        start: first slot.
        stop: slot after the last slot.
        page_size: number of slots in a page.

    Returns:
        int64[stop - start], page * page_size + offset in the page.
    """
    pages = torch.as_tensor(pages)
    slots = torch.arange(start, stop, device=pages.device)
    return pages[slots // page_size].long() * page_size + slots % page_size


class PageMover:
    """Mover of slots in the pages of all layers.

    An attention backend may store a page transposed or packed. Therefore the layout of each kind of page is determined
    once: the backend's own update writes known numbers into a test page, and their locations give the layout.

    Args:
        layers: vLLM's attention layers; `kv_cache` is [pages, heads, page_size, 2 * head_dim], stored in any order.

    Raises:
        UserError: if the pages of a backend cannot be compacted.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        distinct_layers = {layer.kv_cache.data_ptr(): layer for layer in layers}  # layers may share their cache
        layouts: dict[tuple[Any, ...], Tensor] = {}
        self._layers: list[tuple[Any, Tensor]] = []
        for layer in distinct_layers.values():
            cache = layer.kv_cache
            kind = (type(layer.impl), cache.shape[1:], cache.stride(), cache.dtype)
            if kind not in layouts:
                layouts[kind] = find_layout(layer, cache).to(cache.device)
            self._layers.append((layer, layouts[kind]))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy n physical slots in all layers; all sources are read before the first target is written.

        Args:
            source: int64[n], physical slots to copy from, as `slot_mapping` returns them.
            target: int64[n], physical slots to copy to.
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
        """Apply the compactions of several requests: first the first compaction of every request, then the second, ...

        Args:
            pages: page numbers of each request in the order of its slots, by request id.
            compactions: compactions of each request in order, by request id.
            page_size: number of slots in a page.
        """
        for step in range(max(map(len, compactions.values()))):
            moves = [(pages[name], steps[step]) for name, steps in compactions.items() if len(steps) > step]
            moves = [(own, move) for own, move in moves if move.start < move.stop and move.start != move.target]
            if moves:
                source = [slot_mapping(own, move.start, move.stop, page_size) for own, move in moves]
                target = [slot_mapping(own, move.target, move.slots_after, page_size) for own, move in moves]
                self.move(torch.cat(source), torch.cat(target))


def _indices(slot: Tensor, layout: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return indices (page, head, row, column) into a cache for all numbers of the given physical slots."""
    size, width = layout.shape  # the pages of a kernel may be smaller than those of the scheduler
    inner = layout[slot % size][:, None, :]
    return (slot // size)[:, None, None], heads, inner // width, inner % width


def find_layout(layer: Any, cache: Tensor) -> Tensor:
    """Return the location of each number of each token in a page; it is the same in every head.

    Args:
        layer: vLLM's attention layer, whose backend writes the test pages.
        cache: the layer's cache, [pages, heads, page_size, 2 * head_dim], for its shape, strides and dtype.

    Returns:
        int64[page_size, 2 * head_dim], row * (2 * head_dim) + column in the page, keys before values.

    Raises:
        UserError: if the backend stores numbers of several tokens together.
    """
    _, heads, size, width = cache.shape
    dim = width // 2
    axis_order = sorted(range(4), key=cache.stride, reverse=True)
    slots = torch.arange(size, 2 * size, device=cache.device)  # all slots of the second page

    def write_page(keys: Tensor, values: Tensor) -> Tensor:
        shape = [(2, heads, size, width)[axis] for axis in axis_order]
        pages = torch.zeros(shape, dtype=cache.dtype, device=cache.device).permute(*np.argsort(axis_order).tolist())
        full = (states.expand(size, heads, dim).to(cache.dtype).contiguous() for states in (keys, values))
        layer.impl.do_kv_cache_update(layer, *full, pages, slots)
        return pages[1, 0].reshape(-1).long().cpu()

    tokens = torch.arange(size, device=cache.device).view(size, 1, 1)
    dims = torch.arange(dim, device=cache.device).view(1, 1, dim)
    # Each test page holds one property of every number, so that its location reveals the property.
    token, dimension = write_page(tokens, tokens), write_page(dims, dims)
    is_value = write_page(torch.zeros_like(tokens), torch.ones_like(tokens))
    layout = torch.full((size, width), -1)
    layout[token, is_value * dim + dimension] = torch.arange(size * width)
    if (layout < 0).any():
        raise UserError(
            f"{type(layer.impl).__name__} stores numbers of several tokens together in {cache.dtype}, so its pages "
            "cannot be compacted: choose another --attention-backend or --kv-cache-dtype"
        )
    return layout
