"""Visibility of keys to queries in one forward pass, and its conversion to the masks of attention kernels.

`Visibility` holds the rule and `visibility_mask` expands it to a dense mask. The tests compare the other two forms
with the dense mask: `block_mask` for FlexAttention, and `segments` for sdpa, which computes no pair of a query and
an expired key.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Kernel = Literal["segments", "sdpa", "flex", "matmul"]
FLEX_TILE_SIZE = 128


class RowPart(NamedTuple):
    """Adjacent rows of a batch whose keys all lie in the first slots.

    Attributes:
        rows: the rows.
        width: number of slots that hold all their keys.
    """

    rows: slice
    width: int


@dataclass(frozen=True)
class Visibility:
    """Visibility of keys to queries in one forward pass of B rows, Q queries and K keys.

    Query q sees key k if and only if `key_index <= query_index < key_expiry`. A layer with a sliding window also
    requires `query_position - key_position < window`.

    Attributes:
        query_index: int64[B, Q], token indices of the queries.
        key_index: int64[B, K], token indices of the keys.
        key_expiry: int64[B, K]; 0 marks a key that no query sees (padding).
        query_position: int64[B, Q], RoPE positions of the queries.
        key_position: int64[B, K], RoPE positions of the keys.
        causal_span: number of positions from the first key to the last query if causality and windows alone hide
            keys, so that kernels may run without a mask; else None.
        kernel: the attention kernel to use.
        row_parts: parts of the batch that attend one by one, for a step of one query per row; empty for one call.
    """

    query_index: Tensor
    key_index: Tensor
    key_expiry: Tensor
    query_position: Tensor
    key_position: Tensor
    causal_span: int | None = None
    kernel: Kernel = "sdpa"
    row_parts: tuple[RowPart, ...] = ()

    def to(self, device: torch.device) -> "Visibility":
        """Return a copy with all tensors on a device."""
        names = ("query_index", "key_index", "key_expiry", "query_position", "key_position")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def subset(self, row: int, queries: Tensor, keys: Tensor) -> "Visibility":
        """Return the visibility of some queries, int64[q], and some keys, int64[k], of one row."""
        selected = {"query_index": queries, "query_position": queries}
        selected |= {"key_index": keys, "key_position": keys, "key_expiry": keys}
        fields = {name: getattr(self, name)[row, columns][None] for name, columns in selected.items()}
        return replace(self, causal_span=None, **fields)


def visibility_mask(visibility: Visibility, window: int | None = None) -> Tensor:
    """Return the dense mask, bool[B, 1, Q, K]: True where the query sees the key."""
    query, key = visibility.query_index[:, :, None], visibility.key_index[:, None, :]
    seen = (key <= query) & (query < visibility.key_expiry[:, None, :])
    if window is not None:
        seen &= visibility.query_position[:, :, None] - visibility.key_position[:, None, :] < window
    return seen[:, None]


def block_mask(visibility: Visibility, window: int | None = None) -> BlockMask:
    """Return the mask for FlexAttention, in O(T + (T/128)^2) time and memory.

    The mask is built from the bounds of tiles of 128 queries and 128 keys. A tile is skipped if all its keys are later
    than its queries or have expired. It needs no test per element if every query sees every key. The kernel tests
    all other tiles element by element.
    """

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query = visibility.query_index[batch, q]
        seen = (visibility.key_index[batch, k] <= query) & (query < visibility.key_expiry[batch, k])
        if window is not None:
            seen = seen & (visibility.query_position[batch, q] - visibility.key_position[batch, k] < window)
        return seen

    first_q, last_q = (bounds[:, :, None] for bounds in _tile_bounds(visibility.query_index))
    first_k, last_k = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_index))
    min_expiry, max_expiry = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_expiry))
    visible = (first_k <= last_q) & (max_expiry > first_q)
    complete = (last_k <= first_q) & (min_expiry > last_q)
    if window is not None:
        min_q, max_q = (bounds[:, :, None] for bounds in _tile_bounds(visibility.query_position))
        min_k, max_k = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_position))
        visible &= min_q - max_k < window
        complete &= max_q - min_k < window
    lengths = visibility.query_index.shape[1], visibility.key_index.shape[1]
    complete[:, lengths[0] // FLEX_TILE_SIZE :] = False  # a last tile that is not full is never complete
    complete[:, :, lengths[1] // FLEX_TILE_SIZE :] = False
    counts, order = _ordered(visible & ~complete)
    full_counts, full_order = _ordered(complete)
    return BlockMask.from_kv_blocks(
        counts, order, full_counts, full_order, BLOCK_SIZE=FLEX_TILE_SIZE, mask_mod=mask_mod, seq_lengths=lengths
    )


def _tile_bounds(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum of each tile of 128 values, int64[B, ceil(T / 128)] each."""
    num_padding = -values.shape[1] % FLEX_TILE_SIZE
    padded = torch.cat([values, values[:, -1:].expand(-1, num_padding)], dim=1)
    tiles = padded.unflatten(1, (-1, FLEX_TILE_SIZE))
    return tiles.amin(dim=2), tiles.amax(dim=2)


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Convert bool[B, nQ, nK] to BlockMask's format: the number of key tiles of each query tile, and their order."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


@dataclass(frozen=True)
class SdpaSegment:
    """Queries between two erasures, in rows with the same visibility, and the keys that they see.

    Attributes:
        rows: int64[n], rows of the batch.
        queries: int64[q], token indices of the queries in those rows.
        keys: int64[k], token indices of the keys that at least one of the queries sees.
        mask: bool[q, k]; None if queries and keys are the same tokens under plain causal attention.
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor
    mask: Tensor | None


def segments(visibility: Visibility, window: int | None = None) -> list[SdpaSegment]:
    """Split the mask into rectangles of queries and the keys that they see.

    This avoids the T x T mask: the cost is the sum over segments of queries times retained keys.

    Args:
        visibility: of complete sequences without a cache; queries and keys must be the same tokens, in order.
        window: size of the sliding window, if the layer has one.

    Returns:
        Segments that contain every query that sees any key exactly once. Segments with the same rows are adjacent.
    """
    row_keys = torch.cat([visibility.key_expiry, visibility.key_position], dim=1)
    _, group_of_row = row_keys.unique(dim=0, return_inverse=True)
    result = []
    for group in range(int(group_of_row.max()) + 1):
        rows = (group_of_row == group).nonzero()[:, 0]
        result += [SdpaSegment(rows, *parts) for parts in _row_segments(visibility, int(rows[0]), window)]
    return result


def _row_segments(
    visibility: Visibility, row: int, window: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield queries, keys and mask of each segment of one row."""
    expiry, position = visibility.key_expiry[row], visibility.key_position[row]
    indices = torch.arange(len(expiry), device=expiry.device)
    ends = expiry[(expiry > 0) & (expiry < len(expiry))].unique().tolist()
    for begin, end in zip([0, *ends], [*ends, len(expiry)], strict=True):
        queries, keys = indices[begin:end], indices[:end][expiry[:end] > begin]
        within_window = window is None or int(position[begin:end].max() - position[begin:end].min()) < window
        if within_window and len(keys) == end - begin and int(keys[0]) == begin:  # plain causal attention
            yield queries, keys, None
            continue
        seen = visibility_mask(visibility.subset(row, queries, keys), window)[0, 0]
        used_queries, used_keys = seen.any(1), seen.any(0)
        if used_queries.any():
            yield queries[used_queries], keys[used_keys], seen[used_queries][:, used_keys]
