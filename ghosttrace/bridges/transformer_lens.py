"""Erasing attention and cached states in TransformerLens.

A `TransformerBridge` runs the forward pass of the transformers model with modules of its own. It computes attention
itself, so that scores and patterns can be hooked, but with the mask that the model creates. The mask function of
`ghosttrace.model.attention` therefore applies, sliding windows included, and the bridge accepts the argument `expiry`.
States are read from the hook points of TransformerLens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ghosttrace.errors import UserError
from ghosttrace.law.layout import Layout
from ghosttrace.model import attention
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import States, check_finite, model_inputs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ALTERNATIVE_HINT = (
    "read its states with ghosttrace.model.states.read_states(bridge.original_model, …) or ghosttrace.bridges.nnsight"
)
HOOK_NAMES = {"keys": "blocks.{layer}.attn.hook_rot_k", "values": "blocks.{layer}.attn.v.hook_out"}
"""Hook points of a layer's keys (after RoPE) and values, [B, T, H_kv, D]."""


def _bridge_class() -> type["TransformerBridge"]:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise UserError("this needs TransformerLens: pip install -e '.[lens]' in the GhostTrace checkout") from error
    return TransformerBridge


def bridge_of(checkpoint: Checkpoint) -> "TransformerBridge":
    """Return a TransformerLens bridge of a loaded checkpoint, without downloading anything.

    TransformerLens converts the model in place. To use the model without TransformerLens afterwards, load it again.

    Raises:
        UserError: TransformerLens is not installed.
    """
    model = checkpoint.model
    return _bridge_class().boot_transformers(
        checkpoint.name, hf_model=model, tokenizer=checkpoint.tokenizer, device=model.device, dtype=model.dtype
    )


@contextmanager
def attending(bridge: "TransformerBridge") -> Iterator["TransformerBridge"]:
    """Enable the argument `expiry` of the bridge's forward pass inside the context; restore the bridge on exit.

    `bridge(input_ids, expiry=…)`, `run_with_hooks` and `run_with_cache` then accept int64[B, T], the expiry of each
    token, in addition to `position_ids` and `attention_mask` (see `ghosttrace.attending`). Without `expiry` attention
    is unchanged.

    Args:
        bridge: The bridge.

    Yields:
        The bridge.

    Raises:
        UserError: TransformerLens is not installed, `bridge` is no bridge, or `attending` does not support the model
            family.
    """
    if not isinstance(bridge, _bridge_class()):
        raise UserError(f"{type(bridge).__name__} is no TransformerBridge: make one with bridge_of")
    with attention.attending(bridge.original_model, "sdpa"):
        yield bridge


def read_states(bridge: "TransformerBridge", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]) -> States:
    """Read the cached states of a batch at given token indices, from hook points.

    The result equals that of `ghosttrace.model.states.read_states` on the same model. The states at the hook points are
    compared with those in the cache, to reject model families whose hook points hold something else.

    Args:
        bridge: The bridge; hooks that were added to it stay active. After `enable_compatibility_mode`, values do not
            include their bias.
        layouts: Layouts of B sequences, all open or all sealed.
        token_indices: int64[P] for each sequence, with the same P.

    Returns:
        Keys and values; hidden states are None (read them from `blocks.{layer}.hook_out`).

    Raises:
        UserError: A hook point is missing or differs from the cache, or a state is not finite.
    """
    with attending(bridge), torch.no_grad():
        hooked, cached = _hooked_and_cached(bridge, layouts, token_indices)
    family = type(bridge.original_model).__name__
    for kind, hook in HOOK_NAMES.items():
        if len(hooked[kind]) < len(cached[kind]):
            raise UserError(f"TransformerLens has no hook {hook} in {family}: {ALTERNATIVE_HINT}")
    states = States(*(torch.stack(hooked[kind]) for kind in HOOK_NAMES))
    check_finite(states)
    for kind, hook in HOOK_NAMES.items():
        if not torch.equal(getattr(states, kind), torch.stack(cached[kind])):
            raise UserError(f"TransformerLens's hook {hook} differs from the cache of {family}: {ALTERNATIVE_HINT}")
    return states


def _hooked_and_cached(
    bridge: "TransformerBridge", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Run one pass, and return the states at the hook points and those in the cache, by kind.

    Each list has one tensor per layer, [B, H_kv, P, D].
    """
    inputs, cache = model_inputs(layouts, bridge.original_model), DynamicCache()
    tokens = inputs.pop("input_ids")
    columns = np.stack([layout.columns(indices) for layout, indices in zip(layouts, token_indices, strict=True)])
    columns_on_device = torch.from_numpy(columns).to(tokens.device)
    rows = torch.arange(len(columns_on_device), device=columns_on_device.device)[:, None]
    hooked: dict[str, list[Tensor]] = {kind: [] for kind in HOOK_NAMES}

    def select(states: Tensor) -> Tensor:  # [B, T, H_kv, D]
        return states[rows, columns_on_device].transpose(1, 2)

    def store(kind: str, states: Tensor, hook: Any) -> None:
        hooked[kind].append(select(states))

    names = [
        (kind, name.format(layer=layer)) for kind, name in HOOK_NAMES.items() for layer in range(bridge.cfg.n_layers)
    ]
    hooks = [(name, partial(store, kind)) for kind, name in names if name in bridge.hook_dict]
    bridge.run_with_hooks(tokens, fwd_hooks=hooks, past_key_values=cache, logits_to_keep=1, **inputs)
    cached = {kind: [select(getattr(layer, kind).transpose(1, 2)) for layer in cache.layers] for kind in HOOK_NAMES}
    return hooked, cached
