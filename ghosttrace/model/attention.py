"""The law as attention, for any transformers model that asks `AttentionInterface` for its kernel.

One name, `ghosttrace`, is registered in both `AttentionInterface` and `AttentionMaskInterface` (a
name in the first alone gets no mask at all). No model is forked and no function replaced: inside
`attending(model)` the model takes one more argument, `expiry`, and every layer, sliding windows
included, sees what the law lets it see. The type of the mask picks the kernel, so that a layer
recomputed by gradient checkpointing cannot pick another: bool goes to sdpa, a list of segments to
sdpa one by one, `BlockMask` to FlexAttention, float to a plain matmul (fastest to train small models
with on CPU).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER
from ghosttrace.law.masks import Kernel, SdpaSegment, Visibility, block_mask, segments, visibility_mask

ATTENTION_NAME = "ghosttrace"
MIN_MEAN_SEGMENT_TOKENS = 64  # tokens, on average, from which a stretch pays for being a call of its own
Mask = Tensor | BlockMask | list[SdpaSegment] | None

_VISIBILITY: ContextVar[Visibility | None] = ContextVar("ghosttrace_visibility", default=None)


def _mask(q_length: int, kv_length: int, local_size: int | None = None, **kwargs: Any) -> Mask:
    """The half registered in AttentionMaskInterface: called once per kind of layer and forward."""
    visibility = _VISIBILITY.get()
    if visibility is None:
        return AttentionMaskInterface()["sdpa"](q_length=q_length, kv_length=kv_length, local_size=local_size, **kwargs)
    if (q_length, kv_length) != (visibility.query_index.shape[1], visibility.key_index.shape[1]):
        raise UserError(
            f"expiry describes {visibility.key_index.shape[1]} keys, the model attends to {kv_length}: "
            "give one expiry per key of the forward pass"
        )
    if visibility.kernel == "flex":
        return block_mask(visibility, local_size)
    if visibility.kernel == "matmul":
        dtype = kwargs["dtype"]
        return torch.where(visibility_mask(visibility, local_size), 0.0, torch.finfo(dtype).min).to(dtype)
    if visibility.kernel == "segments":
        found = segments(visibility, local_size)
        return (
            found
            if len(found) * MIN_MEAN_SEGMENT_TOKENS <= visibility.key_index.numel()
            else visibility_mask(visibility, local_size)
        )
    windowless = local_size is None or (visibility.causal_span is not None and visibility.causal_span <= local_size)
    if visibility.causal_span is not None and windowless and q_length in (1, kv_length):
        return None
    return visibility_mask(visibility, local_size)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The half registered in AttentionInterface. query: [B, H, Q, D]; key, value: [B, H_kv, K, D]."""
    unknown = [name for name in ("s_aux", "softcap", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise UserError(f"{type(module).__name__} attends with {unknown[0]}, which is not covered: use another family")
    if isinstance(attention_mask, BlockMask):
        return AttentionInterface()["flex_attention"](module, query, key, value, attention_mask, **kwargs)
    if isinstance(attention_mask, list):
        return _by_segments(module, query, key, value, attention_mask, **kwargs), None
    groups = query.shape[1] // key.shape[1]
    if attention_mask is not None and attention_mask.is_floating_point():
        return _matmul(query, key, value, attention_mask, kwargs["scaling"], groups), None
    if query.shape[2] == 1:
        # One query a head: the heads that share keys become queries of one head, so that neither a
        # mask nor grouped heads make the kernel copy the cache.
        folded = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
        out = nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=attention_mask, scale=kwargs["scaling"]
        )
        return out.reshape(query.shape[0], 1, query.shape[1], value.shape[3]), None
    return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, parts: list[SdpaSegment], **kwargs: Any
) -> Tensor:
    """Attention, [B, T, H, D], a rectangle of queries and keys at a time; 0 for queries that see nothing."""
    found = []
    for _, group in groupby(parts, key=lambda part: int(part.rows[0])):
        alike = list(group)
        rows = alike[0].rows
        queries, keys = [part.queries for part in alike], [part.keys for part in alike]
        states = (_split(query, rows, queries), _split(key, rows, keys), _split(value, rows, keys))
        told = [
            AttentionInterface()["sdpa"](module, *qkv, None if part.mask is None else part.mask[None, None], **kwargs)[
                0
            ]
            for part, *qkv in zip(alike, *states, strict=True)
        ]
        found.append((rows, torch.cat(queries), torch.cat(told, dim=1)))
    like = found[0][2] if found else value  # under autocast narrower than the query
    out = like.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    for rows, places, told_here in found:
        out[rows[:, None], places] = told_here
    return out


def _split(states: Tensor, rows: Tensor, places: list[Tensor]) -> tuple[Tensor, ...]:
    """States, [B, H, T, D], of some rows at each of several lists of places.

    One gather for all of them: each on its own would write a gradient as large as the whole in the backward pass.
    """
    states = states if len(rows) == len(states) else states.index_select(0, rows)
    return states.index_select(2, torch.cat(places)).split([len(here) for here in places], dim=2)


def _matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, groups: int) -> Tensor:
    key, value = (states.repeat_interleave(groups, dim=1) if groups > 1 else states for states in (key, value))
    weights = (query @ key.transpose(2, 3) * scaling + mask).softmax(dim=-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


@contextmanager
def attending(model: PreTrainedModel, kernel: Kernel = "segments") -> Iterator[PreTrainedModel]:
    """Let a model's forward take `expiry`, and attend by it; everything is put back on exit.

    Inside, `model(input_ids=…, position_ids=…, expiry=…)` accepts int64[B, T] with one expiry per
    place of the sequence (see `pad_batch`), or a `Visibility` for anything less plain. Without the
    argument the model attends as it always did.

    Args:
        model: of any family whose attention asks `AttentionInterface`.
        kernel: for plain sequences; `segments` writes out the dense mask where segments are short.

    Raises:
        UserError: the family's attention is not causal with at most a sliding window.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others or getattr(config, "attention_chunk_size", None):
        raise UserError(
            f"{type(model).__name__} has layers that the law does not cover ({', '.join(sorted(others)) or 'chunks'}): "
            "use a family with causal attention and at most a sliding window"
        )
    if model.config._attn_implementation == ATTENTION_NAME:  # already inside: the outer context reads `expiry`
        yield model
        return
    entered: list[Any] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        expiry = kwargs.pop("expiry", None)
        if isinstance(expiry, Tensor):
            expiry = _plain_visibility(expiry, kwargs, kernel)
        entered.append(_VISIBILITY.set(expiry))
        return args, kwargs

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _VISIBILITY.reset(entered.pop())

    before = model.config._attn_implementation
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
        model.set_attn_implementation(before)


def _plain_visibility(expiry: Tensor, kwargs: dict[str, Any], kernel: Kernel) -> Visibility:
    """Visibility of a whole sequence without a cache, from its expiry and position_ids."""
    mask = kwargs.get("attention_mask")
    if mask is not None:
        expiry = expiry.masked_fill(mask == 0, 0)
    index = torch.arange(expiry.shape[1], device=expiry.device).expand(expiry.shape)
    position = kwargs.get("position_ids")
    position = index if position is None else position.expand(expiry.shape)
    return Visibility(index, index, expiry, position, position, kernel=kernel)


@dataclass(frozen=True)
class PaddedBatch:
    """Padded sequences with their law, ready for `model(**batch.inputs)` inside `attending`.

    Attributes:
        input_ids, attention_mask, position_ids: int64[B, T].
        expiry: int64[B, T], counted in places of the padded row; 0 at padding.
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
    """Pad sequences of different lengths and shift their expiries along.

    Args:
        sequences: B token lists.
        expiries: for each, int64[T_b] from `ghosttrace.law.expiry.expiry`.
        pad_id: any token id; nothing ever sees it.
        side: where the padding goes.
        device: where the tensors go.
    """
    width = max(len(sequence) for sequence in sequences)
    tokens = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask, position, expiry = (np.zeros_like(tokens) for _ in range(3))
    for row, (sequence, times) in enumerate(zip(sequences, expiries, strict=True)):
        shift = width - len(sequence) if side == "left" else 0
        here = slice(shift, shift + len(sequence))
        tokens[row, here], mask[row, here], position[row, here] = sequence, 1, np.arange(len(sequence))
        expiry[row, here] = np.where(times < NEVER, times + shift, times)
    return PaddedBatch(*(torch.from_numpy(array).to(device) for array in (tokens, mask, position, expiry)))
