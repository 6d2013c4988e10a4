"""Who sees whom in one forward pass, and the forms in which kernels take it.

`Visibility` says it; `visibility_mask` writes it out as a dense mask, which is what the other two are held to:
`block_mask` for FlexAttention, and `segments` for sdpa, which never looks at a pair of a query and a key
that is gone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Kernel = Literal["segments", "sdpa", "flex", "matmul"]
FLEX_TILE_SIZE = 128


@dataclass(frozen=True)
class Visibility:
    """Who sees whom in one forward pass of B rows, Q queries and K keys.

    Query q sees key k iff `key_index <= query_index < key_expiry`, and in a layer with a sliding
    window only if `query_position - key_position < window`.

    Attributes:
        query_index: int64[B, Q], places in the sequence.
        key_index: int64[B, K].
        key_expiry: int64[B, K]; 0 marks a key that nothing sees (padding).
        query_position: int64[B, Q], RoPE positions; the same as the index unless told otherwise.
        key_position: int64[B, K].
        causal_span: set if no key needs hiding but by causality and windows, to the number of positions
            from first key to last query: kernels may then go without a mask.
        kernel: which kernel runs.
    """

    query_index: Tensor
    key_index: Tensor
    key_expiry: Tensor
    query_position: Tensor
    key_position: Tensor
    causal_span: int | None = None
    kernel: Kernel = "sdpa"

    def to(self, device: torch.device) -> "Visibility":
        """The same on another device."""
        names = ("query_index", "key_index", "key_expiry", "query_position", "key_position")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def subset(self, row: int, queries: Tensor, keys: Tensor) -> "Visibility":
        """Some queries, int64[q], and some keys, int64[k], of one row."""
        at = {"query_index": queries, "query_position": queries}
        at |= {"key_index": keys, "key_position": keys, "key_expiry": keys}
        return replace(
            self, causal_span=None, **{name: getattr(self, name)[row, places][None] for name, places in at.items()}
        )


def visibility_mask(visibility: Visibility, window: int | None = None) -> Tensor:
    """The dense mask, bool[B, 1, Q, K]: True where the query sees the key."""
    query, key = visibility.query_index[:, :, None], visibility.key_index[:, None, :]
    seen = (key <= query) & (query < visibility.key_expiry[:, None, :])
    if window is not None:
        seen &= visibility.query_position[:, :, None] - visibility.key_position[:, None, :] < window
    return seen[:, None]


def block_mask(visibility: Visibility, window: int | None = None) -> BlockMask:
    """The same mask for FlexAttention, from per-block bounds: O(T + (T/128)^2), never T^2.

    A tile of keys and queries is skipped if its earliest key is later than its last query or its
    last expiry is past; it needs no element test if every key is seen by every query. Tiles that
    the bounds leave undecided are tested element by element in the kernel.
    """

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query = visibility.query_index[batch, q]
        seen = (visibility.key_index[batch, k] <= query) & (query < visibility.key_expiry[batch, k])
        if window is not None:
            seen = seen & (visibility.query_position[batch, q] - visibility.key_position[batch, k] < window)
        return seen

    first_q, last_q = (bounds[:, :, None] for bounds in _tile_bounds(visibility.query_index))
    first_k, last_k = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_index))
    soonest, latest = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_expiry))
    some = (first_k <= last_q) & (latest > first_q)
    every = (last_k <= first_q) & (soonest > last_q)
    if window is not None:
        near_q, far_q = (bounds[:, :, None] for bounds in _tile_bounds(visibility.query_position))
        far_k, near_k = (bounds[:, None, :] for bounds in _tile_bounds(visibility.key_position))
        some &= near_q - near_k < window
        every &= far_q - far_k < window
    lengths = visibility.query_index.shape[1], visibility.key_index.shape[1]
    every[:, lengths[0] // FLEX_TILE_SIZE :] = False  # a ragged last tile is never whole
    every[:, :, lengths[1] // FLEX_TILE_SIZE :] = False
    counts, order = _ordered(some & ~every)
    full_counts, full_order = _ordered(every)
    return BlockMask.from_kv_blocks(
        counts, order, full_counts, full_order, BLOCK_SIZE=FLEX_TILE_SIZE, mask_mod=mask_mod, seq_lengths=lengths
    )


def _tile_bounds(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each run of 128 values, int64[B, ceil(T / 128)] each."""
    short = -values.shape[1] % FLEX_TILE_SIZE
    padded = torch.cat([values, values[:, -1:].expand(-1, short)], dim=1)
    tiles = padded.unflatten(1, (-1, FLEX_TILE_SIZE))
    return tiles.amin(dim=2), tiles.amax(dim=2)


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool[B, nQ, nK] as BlockMask wants it: how many key tiles each query tile has, and which."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


@dataclass(frozen=True)
class SdpaSegment:
    """Queries between two erasures, in rows of a batch that look alike, and the keys they see.

    Attributes:
        rows: int64[n], rows of the batch.
        queries: int64[q], places in those rows.
        keys: int64[k], places that at least one of the queries sees.
        mask: bool[q, k]; None where the queries are the keys and each sees itself and all before it.
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor
    mask: Tensor | None


def segments(visibility: Visibility, window: int | None = None) -> list[SdpaSegment]:
    """The same mask in rectangles: T x T shrinks to the sum of (queries x keys still there) a stretch.

    Args:
        visibility: of whole sequences without a cache: queries and keys are the same places, in order.
        window: of a sliding layer.

    Returns:
        Stretches that hold every query that sees anything, once; those of like rows one after the other.
    """
    _, kind = torch.cat([visibility.key_expiry, visibility.key_position], dim=1).unique(dim=0, return_inverse=True)
    found = []
    for number in range(int(kind.max()) + 1):
        rows = (kind == number).nonzero()[:, 0]
        found += [SdpaSegment(rows, *part) for part in _of_row(visibility, int(rows[0]), window)]
    return found


def _of_row(visibility: Visibility, row: int, window: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Queries, keys and mask of each stretch of one row."""
    expiry, position = visibility.key_expiry[row], visibility.key_position[row]
    places = torch.arange(len(expiry), device=expiry.device)
    ends = expiry[(expiry > 0) & (expiry < len(expiry))].unique().tolist()
    for begin, end in zip([0, *ends], [*ends, len(expiry)], strict=True):
        queries, keys = places[begin:end], places[:end][expiry[:end] > begin]
        near = window is None or int(position[begin:end].max() - position[begin:end].min()) < window
        if near and len(keys) == end - begin and int(keys[0]) == begin:  # nothing held from before, nothing hidden
            yield queries, keys, None
            continue
        seen = visibility_mask(visibility.subset(row, queries, keys), window)[0, 0]
        looking, needed = seen.any(1), seen.any(0)
        if looking.any():
            yield queries[looking], keys[needed], seen[looking][:, needed]
