"""Attention under the law of expiry, for any transformers model that uses `AttentionInterface`.

The name `ghosttrace` is registered in both `AttentionInterface` and `AttentionMaskInterface`. (A name that only the
first has gets no mask.) No model is forked and no function is patched. Inside `attending(model)`, the model's forward
takes one more argument, `expiry`, and every layer attends by it, including layers with a sliding window.

The type of the mask selects the kernel, so that a layer recomputed by gradient checkpointing uses the same kernel
again: bool selects sdpa, a list of segments selects sdpa per segment, `BlockMask` selects FlexAttention, and float
selects a plain matmul (the fastest way to train small models on CPU).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER
from ghosttrace.law.masks import Kernel, RowPart, SdpaSegment, Visibility, block_mask, segments, visibility_mask

ATTENTION_NAME = "ghosttrace"
MIN_MEAN_SEGMENT_TOKENS = 64  # with shorter segments on average, one call with a dense mask is faster


class RowMasks(NamedTuple):
    """Mask of one query per row, bool[B, 1, 1, K], and the parts of the batch that attend one by one."""

    mask: Tensor
    parts: tuple[RowPart, ...]


Mask = Tensor | BlockMask | list[SdpaSegment] | RowMasks | None

_VISIBILITY: ContextVar[Visibility | None] = ContextVar("ghosttrace_visibility", default=None)


def _mask(q_length: int, kv_length: int, local_size: int | None = None, **kwargs: Any) -> Mask:
    """Build the mask; registered in AttentionMaskInterface and called once per layer type and forward pass."""
    visibility = _VISIBILITY.get()
    if visibility is None:
        return AttentionMaskInterface()["sdpa"](q_length=q_length, kv_length=kv_length, local_size=local_size, **kwargs)
    if (q_length, kv_length) != (visibility.query_index.shape[1], visibility.key_index.shape[1]):
        raise UserError(
            f"expiry has {visibility.key_index.shape[1]} keys but the model attends to {kv_length}: "
            "give one expiry per key of the forward pass"
        )
    if visibility.kernel == "flex":
        return block_mask(visibility, local_size)
    if visibility.kernel == "matmul":
        dtype = kwargs["dtype"]
        return torch.where(visibility_mask(visibility, local_size), 0.0, torch.finfo(dtype).min).to(dtype)
    if visibility.kernel == "segments":
        parts = segments(visibility, local_size)
        if len(parts) * MIN_MEAN_SEGMENT_TOKENS <= visibility.key_index.numel():
            return parts
        return visibility_mask(visibility, local_size)
    no_window = local_size is None or (visibility.causal_span is not None and visibility.causal_span <= local_size)
    if visibility.causal_span is not None and no_window and q_length in (1, kv_length):
        return None
    mask = visibility_mask(visibility, local_size)
    return RowMasks(mask, visibility.row_parts) if visibility.row_parts else mask


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend; registered in AttentionInterface. query: [B, H, Q, D]; key, value: [B, H_kv, K, D]."""
    unknown = [name for name in ("s_aux", "softcap", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise UserError(
            f"{type(module).__name__} attends with {unknown[0]}, which is not supported: use another model family"
        )
    if isinstance(attention_mask, BlockMask):
        return AttentionInterface()["flex_attention"](module, query, key, value, attention_mask, **kwargs)
    if isinstance(attention_mask, list):
        return _attend_by_segments(module, query, key, value, attention_mask, **kwargs), None
    groups = query.shape[1] // key.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.is_floating_point():
        return _matmul(query, key, value, attention_mask, kwargs["scaling"], groups), None
    if query.shape[2] == 1:
        # With one query per head, the heads that share keys become the queries of one head. Otherwise a mask or
        # grouped heads would make the kernel copy the cache.
        folded = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
        out = _attend_once(folded, key, value, attention_mask, kwargs["scaling"])
        return out.reshape(query.shape[0], 1, query.shape[1], value.shape[3]), None
    return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _attend_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | RowMasks | None, scale: float) -> Tensor:
    """Attend with the queries of one step, [B, H_kv, groups, D]; parts of the batch read only the slots they use."""
    sdpa = partial(nn.functional.scaled_dot_product_attention, scale=scale)
    if not isinstance(mask, RowMasks):
        return sdpa(query, key, value, attn_mask=mask)
    slots = [(rows, slice(width)) for rows, width in mask.parts]
    return torch.cat([sdpa(query[r], key[r, :, s], value[r, :, s], attn_mask=mask.mask[r, ..., s]) for r, s in slots])


def _attend_by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, parts: list[SdpaSegment], **kwargs: Any
) -> Tensor:
    """Attend one segment at a time and return the outputs, [B, T, H, D]; 0 for queries that see no key."""
    results = []
    for _, group in groupby(parts, key=lambda part: int(part.rows[0])):
        row_parts = list(group)
        rows = row_parts[0].rows
        queries, keys = [part.queries for part in row_parts], [part.keys for part in row_parts]
        states = (
            _split_queries(query, rows, queries),
            _gather_split(key, rows, keys),
            _gather_split(value, rows, keys),
        )
        masks = [part.mask for part in row_parts]
        outputs = [
            _attend_segment(module, q, k, v, mask, **kwargs) for q, k, v, mask in zip(*states, masks, strict=True)
        ]
        results.append((rows, torch.cat(queries), torch.cat(outputs, dim=1)))
    if len(results) == 1 and results[0][2].shape[:2] == (query.shape[0], query.shape[2]):  # every query, in order
        return results[0][2]
    like = results[0][2] if results else value  # under autocast the output dtype differs from the query's
    out = like.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    for rows, indices, output in results:
        out[rows[:, None], indices] = output
    return out


def _attend_segment(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attend within one segment, whose mask is bool[Q, K] or causal; return [B, Q, H, D]."""
    groups = query.shape[1] // key.shape[1]
    if mask is None or groups == 1:
        mask = None if mask is None else mask[None, None]
        output: Tensor = AttentionInterface()["sdpa"](module, query, key, value, mask, **kwargs)[0]
        return output
    # The heads that share keys become more queries of one head. With a mask, grouped heads would copy the keys.
    folded = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    dropout = kwargs.get("dropout", 0.0)
    output = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask.repeat(groups, 1), dropout_p=dropout, scale=kwargs["scaling"]
    )
    return output.unflatten(2, (groups, query.shape[2])).flatten(1, 2).transpose(1, 2)


def _split_queries(states: Tensor, rows: Tensor, index_lists: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the queries, [B, H, T, D], of some rows at each segment; without a copy if the segments hold all of them.

    Segments are in order and hold each query at most once.
    """
    lengths = [len(indices) for indices in index_lists]
    if len(rows) < len(states) or sum(lengths) < states.shape[2]:
        return _gather_split(states, rows, index_lists)
    return states.split(lengths, dim=2)


def _gather_split(states: Tensor, rows: Tensor, index_lists: list[Tensor]) -> tuple[Tensor, ...]:
    """Return states, [B, H, T, D], of some rows at each of several lists of token indices.

    A single gather serves all lists, because the backward pass of each gather allocates a gradient of full size.
    """
    states = states if len(rows) == len(states) else states.index_select(0, rows)
    return states.index_select(2, torch.cat(index_lists)).split([len(indices) for indices in index_lists], dim=2)


def _matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, groups: int) -> Tensor:
    key, value = (states.repeat_interleave(groups, dim=1) if groups > 1 else states for states in (key, value))
    weights = (query @ key.transpose(2, 3) * scaling + mask).softmax(dim=-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


@contextmanager
def attending(model: PreTrainedModel, kernel: Kernel = "segments") -> Iterator[PreTrainedModel]:
    """Let a model's forward take the argument `expiry` and attend by it; restore the model on exit.

    Inside the context, `model(input_ids=…, position_ids=…, expiry=…)` accepts int64[B, T] with one expiry per token
    (see `pad_batch`), or a `Visibility` for other cases, such as a pass with a cache. Without the argument the model
    attends as usual.

    Args:
        model: a model of any family whose attention uses `AttentionInterface`.
        kernel: attention kernel for `expiry` tensors; `segments` falls back to a dense mask if segments are short.

    Yields:
        The model.

    Raises:
        UserError: the model has layers other than causal attention with at most a sliding window.
    """
    config = model.config.get_text_config()
    unsupported = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unsupported or getattr(config, "attention_chunk_size", None):
        raise UserError(
            f"{type(model).__name__} has unsupported layers ({', '.join(sorted(unsupported)) or 'chunks'}): "
            "use a model family with causal attention and at most a sliding window"
        )
    if model.config._attn_implementation == ATTENTION_NAME:  # nested: the hooks of the outer context read `expiry`
        yield model
        return
    context_tokens: list[Any] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        expiry = kwargs.pop("expiry", None)
        if isinstance(expiry, Tensor):
            expiry = _sequence_visibility(expiry, kwargs, kernel)
        context_tokens.append(_VISIBILITY.set(expiry))
        return args, kwargs

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _VISIBILITY.reset(context_tokens.pop())

    previous = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    hooks = [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(previous)


def _sequence_visibility(expiry: Tensor, kwargs: dict[str, Any], kernel: Kernel) -> Visibility:
    """Return the visibility of complete sequences without a cache, from their expiry and position_ids."""
    mask = kwargs.get("attention_mask")
    if mask is not None:
        expiry = expiry.masked_fill(mask == 0, 0)
    index = torch.arange(expiry.shape[1], device=expiry.device).expand(expiry.shape)
    position = kwargs.get("position_ids")
    position = index if position is None else position.expand(expiry.shape)
    return Visibility(index, index, expiry, position, position, kernel=kernel)


@dataclass(frozen=True)
class PaddedBatch:
    """Padded sequences with their expiry, for `model(**batch.inputs)` inside `attending`.

    Attributes:
        input_ids, attention_mask, position_ids: int64[B, T].
        expiry: int64[B, T], as column numbers of the padded row; 0 at padding.
        inputs: the four tensors by name, as keyword arguments of the model.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    expiry: Tensor
    inputs: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        names = ("input_ids", "attention_mask", "position_ids", "expiry")
        object.__setattr__(self, "inputs", {name: getattr(self, name) for name in names})


def pad_batch(
    sequences: Sequence[Sequence[int]],
    expiries: Sequence[np.ndarray],
    pad_id: int,
    side: Literal["left", "right"] = "right",
    device: torch.device | str = "cpu",
) -> PaddedBatch:
    """Pad sequences to the same length and shift their expiries accordingly.

    Args:
        sequences: B lists of token ids.
        expiries: for each sequence, int64[T_b] from `ghosttrace.law.expiry.expiry`.
        pad_id: any token id; no query sees padding.
        side: side of the padding.
        device: device of the tensors.
    """
    width = max(len(sequence) for sequence in sequences)
    tokens = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask, position, expiry = (np.zeros_like(tokens) for _ in range(3))
    for row, (sequence, times) in enumerate(zip(sequences, expiries, strict=True)):
        shift = width - len(sequence) if side == "left" else 0
        columns = slice(shift, shift + len(sequence))
        tokens[row, columns], mask[row, columns], position[row, columns] = sequence, 1, np.arange(len(sequence))
        expiry[row, columns] = np.where(times < NEVER, times + shift, times)
    return PaddedBatch(*(torch.from_numpy(array).to(device) for array in (tokens, mask, position, expiry)))
