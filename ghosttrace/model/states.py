"""Extraction of keys, values and hidden states in one masked forward pass.

Keys (after RoPE) and values are taken where transformers passes them to the cache, without hooks. Only the states at
the requested token indices are stored. Hidden states are taken by forward hooks, which are removed after the pass.
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
    """States of B sequences at P tokens each, on the model's device.

    Attributes:
        keys, values: float[L, B, H_kv, P, D]; keys as cached, after RoPE.
        hidden: float[L, B, P, d], the residual stream after each layer; None unless requested.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor | None = None


class _TapLayer(CacheLayerMixin):
    """Cache layer that stores the states of some columns and returns all states unchanged."""

    is_sliding = False

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.columns = columns  # int64[B, P]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (gather_tokens(states, self.columns) for states in (key_states, value_states))
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def gather_tokens(states: Tensor, indices: Tensor) -> Tensor:
    """Copy keys or values at some tokens.

    Args:
        states: [B, H, T, D], keys or values.
        indices: int64[B, P], indices along the T axis.

    Returns:
        [B, H, P, D].
    """
    index = indices[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


def read_states(
    model: PreTrainedModel, layouts: Sequence[Layout], token_indices: Sequence[np.ndarray], hidden: bool = False
) -> States:
    """Run one forward pass and return the keys and values of a batch at some tokens.

    Args:
        model: any model that `attending` supports.
        layouts: layouts of B sequences, all open or all sealed.
        token_indices: for each sequence, int64[P]; P is the same for all.
        hidden: whether to return the residual stream as well.

    Raises:
        UserError: a state is not finite; the message names the layer.
    """
    batch = model_inputs(layouts, model)
    columns = torch.from_numpy(
        np.stack([layout.columns(indices) for layout, indices in zip(layouts, token_indices, strict=True)])
    ).to(model.device)
    tap = Cache(layer_class_to_replicate=partial(_TapLayer, columns))  # type: ignore[arg-type]
    streams: list[Tensor] = []

    def store_hidden(module: torch.nn.Module, args: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        streams.append(stream.gather(1, columns[:, :, None].expand(-1, -1, stream.shape[2])))

    with ExitStack() as stack:
        stack.enter_context(attending(model))
        stack.enter_context(torch.no_grad())
        if hidden:
            for layer in model.base_model.layers:  # type: ignore[union-attr]
                stack.callback(layer.register_forward_hook(store_hidden).remove)
        # A tensor selects a contiguous copy. In bfloat16 on a CPU, the head takes far longer on a strided slice.
        model(**batch, past_key_values=tap, use_cache=True, logits_to_keep=torch.tensor([-1]))
    keys, values = (torch.stack([getattr(layer, name) for layer in tap.layers]) for name in ("keys", "values"))
    states = States(keys, values, torch.stack(streams) if hidden else None)
    check_finite(states)
    return states


def model_inputs(layouts: Sequence[Layout], model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the arguments of `model(...)` inside `attending`: input_ids, position_ids, attention_mask and expiry."""
    pad = model.config.get_text_config().pad_token_id or 0
    batch = pad_batch([layout.tokens.tolist() for layout in layouts], [layout.expiry for layout in layouts], pad)
    position = torch.zeros_like(batch.position_ids)
    for row, layout in enumerate(layouts):
        position[row, : len(layout.token_index)] = torch.from_numpy(layout.positions)
    return {name: tensor.to(model.device) for name, tensor in (batch.inputs | {"position_ids": position}).items()}


def check_finite(states: States) -> None:
    """Check that all states are finite.

    Raises:
        UserError: a layer holds NaN or infinity.
    """
    tensors = {name: getattr(states, name) for name in ("keys", "values", "hidden")}
    for layer in range(len(states.keys)):
        for name, tensor in tensors.items():
            if tensor is not None and not torch.isfinite(tensor[layer]).all():
                raise UserError(
                    f"{name} of layer {layer} are not finite: load the model with --dtype float32 or bfloat16"
                )
