"""Reading what a model caches, in one masked forward pass.

The states are taken where transformers hands them over to be cached, as the pass goes: keys after
RoPE, values, and only at the places asked for, so that memory holds no more than those. Nothing is
hooked for keys and values; hidden states are taken by hooks that are gone when the pass is over.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ghosttrace.errors import UserError
from ghosttrace.law.layout import Layout
from ghosttrace.model.attention import attending, pad_batch


@dataclass(frozen=True)
class States:
    """What a model holds of B sequences at P places each, on the model's device.

    Attributes:
        keys, values: float[L, B, H_kv, P, D]; keys as cached, after RoPE.
        hidden: float[L, B, P, d], the residual stream behind each layer; None unless asked for.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor | None = None


class _TapLayer(CacheLayerMixin):
    """Keeps the states of some places and lets all of them through."""

    is_sliding = False

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.places = places  # int64[B, P]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (gather_tokens(states, self.places) for states in (key_states, value_states))
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def gather_tokens(states: Tensor, places: Tensor) -> Tensor:
    """Keys or values, [B, H, T, D], at int64[B, P]: a copy, [B, H, P, D]."""
    index = places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


def read_states(
    model: PreTrainedModel, layouts: Sequence[Layout], places: Sequence[np.ndarray], hidden: bool = False
) -> States:
    """Read the cached states of a batch at chosen places.

    Args:
        model: any that `attending` takes.
        layouts: of B sequences, all open or all sealed.
        places: for each int64[P], places in its sequence; P is the same for all.
        hidden: read the residual stream as well.

    Raises:
        UserError: a state is not finite; the layer is named.
    """
    batch = model_inputs(layouts, model)
    columns = np.stack([layout.columns(at) for layout, at in zip(layouts, places, strict=True)])
    at = torch.from_numpy(columns).to(model.device)
    tap = Cache(layer_class_to_replicate=partial(_TapLayer, at))  # type: ignore[arg-type]
    streams: list[Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        streams.append(stream.gather(1, at[:, :, None].expand(-1, -1, stream.shape[2])))

    with ExitStack() as stack:
        stack.enter_context(attending(model))
        stack.enter_context(torch.no_grad())
        if hidden:
            for layer in model.base_model.layers:  # type: ignore[union-attr]
                stack.callback(layer.register_forward_hook(keep).remove)
        model(**batch, past_key_values=tap, use_cache=True, logits_to_keep=1)
    keys, values = (torch.stack([getattr(layer, name) for layer in tap.layers]) for name in ("keys", "values"))
    found = States(keys, values, torch.stack(streams) if hidden else None)
    check_finite(found)
    return found


def model_inputs(layouts: Sequence[Layout], model: PreTrainedModel) -> dict[str, Tensor]:
    """What `model(...)` takes inside `attending`: input_ids, position_ids, attention_mask, expiry."""
    pad = model.config.get_text_config().pad_token_id or 0
    batch = pad_batch([layout.tokens.tolist() for layout in layouts], [x.expiry for x in layouts], pad)
    position = torch.zeros_like(batch.position_ids)
    for row, layout in enumerate(layouts):
        position[row, : len(layout.token_index)] = torch.from_numpy(layout.token_index)
    return {name: tensor.to(model.device) for name, tensor in (batch.inputs | {"position_ids": position}).items()}


def check_finite(states: States) -> None:
    """Refuse states that no probe can be fitted on.

    Raises:
        UserError: a layer holds NaN or infinity.
    """
    held = {name: getattr(states, name) for name in ("keys", "values", "hidden")}
    for layer in range(len(states.keys)):
        for name, tensor in held.items():
            if tensor is not None and not torch.isfinite(tensor[layer]).all():
                raise UserError(
                    f"{name} of layer {layer} are not finite: load the model with --dtype float32 or bfloat16"
                )
