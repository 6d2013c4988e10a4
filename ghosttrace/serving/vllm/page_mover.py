"""Moving keys and values between slots of vLLM's pages, whatever a page looks like inside."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError


def slots(pages: list[int] | Tensor, first: int, stop: int, page_size: int) -> Tensor:
    """Where slots of a request lie: int64[stop - first] of page * page_size + offset."""
    pages = torch.as_tensor(pages)
    places = torch.arange(first, stop, device=pages.device)
    return pages[places // page_size].long() * page_size + places % page_size


class Mover:
    """Copies slots in every layer's pages.

    A backend may store a page transposed or packed. So each kind of page is asked once, by writing numbers
    through the backend's own update into a page of its own, where it puts which token's numbers.

    Args:
        layers: vLLM's attention layers; `kv_cache` is [pages, heads, page_size, 2 * head_dim], stored in any order.

    Raises:
        UserError: a backend's pages cannot be compacted.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        found = {layer.kv_cache.data_ptr(): layer for layer in layers}
        kinds: dict[tuple[Any, ...], Tensor] = {}
        self._layers: list[tuple[Any, Tensor]] = []
        for layer in found.values():
            cache = layer.kv_cache
            kind = (type(layer.impl), cache.shape[1:], cache.stride(), cache.dtype)
            if kind not in kinds:
                kinds[kind] = inside(layer, cache).to(cache.device)
            self._layers.append((layer, kinds[kind]))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots, int64[n] each as `slots` gives them; all are read before any is written."""
        device = self._layers[0][0].kv_cache.device
        source, target = source.to(device), target.to(device)
        for layer, order in self._layers:
            cache = layer.kv_cache
            heads = torch.arange(cache.shape[1], device=device)[None, :, None]
            cache[_places(target, order, heads)] = cache[_places(source, order, heads)]


def _places(slot: Tensor, order: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of slots' numbers in a cache: page, head, row, column."""
    size, width = order.shape  # a kernel's pages may be parts of those that the scheduler counts
    inner = order[slot % size][:, None, :]
    return (slot // size)[:, None, None], heads, inner // width, inner % width


def inside(layer: Any, cache: Tensor) -> Tensor:
    """Where a page has each token's numbers, in every head: int64[page_size, 2 * head_dim], row * width + column."""
    _, heads, size, width = cache.shape
    dim = width // 2
    outer = sorted(range(4), key=cache.stride, reverse=True)  # in storage
    second = torch.arange(size, 2 * size, device=cache.device)  # the slots of a page with another before it

    def written(keys: Tensor, values: Tensor) -> Tensor:
        shape = [(2, heads, size, width)[axis] for axis in outer]
        page = torch.zeros(shape, dtype=cache.dtype, device=cache.device).permute(*np.argsort(outer).tolist())
        full = (states.expand(size, heads, dim).to(cache.dtype).contiguous() for states in (keys, values))
        layer.impl.do_kv_cache_update(layer, *full, page, second)
        return page[1, 0].reshape(-1).long().cpu()

    tokens = torch.arange(size, device=cache.device).view(size, 1, 1)
    dims = torch.arange(dim, device=cache.device).view(1, 1, dim)
    token, number = written(tokens, tokens), written(dims, dims)
    is_value = written(torch.zeros_like(tokens), torch.ones_like(tokens))
    order = torch.full((size, width), -1)
    order[token, is_value * dim + number] = torch.arange(size * width)
    if (order < 0).any():
        raise UserError(
            f"{type(layer.impl).__name__} does not keep each token's numbers apart in {cache.dtype}, so that its pages "
            "cannot be compacted: choose another --attention-backend or --kv-cache-dtype"
        )
    return order
