"""The law and the cached states in TransformerLens.

A `TransformerBridge` runs the forward pass of the transformers model with its own modules inside. It
computes attention itself, so that scores and patterns can be hooked, but under the mask that the model
makes: the mask half of `ghosttrace.model.attention` holds there, sliding windows included, and `expiry` is
one more argument of the bridge. States are read from TransformerLens's own hook points.
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
"""Where a layer's keys (after RoPE) and values show, [B, T, H_kv, D]."""


def _bridge_class() -> type["TransformerBridge"]:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise UserError("this needs TransformerLens: pip install -e '.[lens]' in the GhostTrace checkout") from error
    return TransformerBridge


def bridge_of(checkpoint: Checkpoint) -> "TransformerBridge":
    """A loaded checkpoint in TransformerLens; nothing is fetched.

    The model is converted in place, as TransformerLens does it: to go on without, load it again.

    Raises:
        UserError: TransformerLens is not installed.
    """
    model = checkpoint.model
    return _bridge_class().boot_transformers(
        checkpoint.name, hf_model=model, tokenizer=checkpoint.tokenizer, device=model.device, dtype=model.dtype
    )


@contextmanager
def attending(bridge: "TransformerBridge") -> Iterator["TransformerBridge"]:
    """Let a bridge's forward take `expiry`, and attend by it; everything is put back on exit.

    Inside, `bridge(input_ids, expiry=…)`, `run_with_hooks` and `run_with_cache` accept int64[B, T] with
    one expiry per place, beside `position_ids` and `attention_mask` (see `ghosttrace.attending`).
    Without the argument the bridge attends as it always did.

    Raises:
        UserError: TransformerLens is not installed, this is no bridge, or the law does not cover the family.
    """
    if not isinstance(bridge, _bridge_class()):
        raise UserError(f"{type(bridge).__name__} is no TransformerBridge: make one with bridge_of")
    with attention.attending(bridge.original_model, "sdpa"):
        yield bridge


def read_states(bridge: "TransformerBridge", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]) -> States:
    """Read the cached states of a batch at chosen places, from hook points.

    Equal to `ghosttrace.model.states.read_states` of the same model. What the hook points show is held
    to what the bridge caches, so that a family in which they mean something else is refused.

    Args:
        bridge: as it was booted; hooks that it carries act as ever. After `enable_compatibility_mode`
            values come without their bias, where a family has one.
        layouts: of B sequences, all open or all sealed.
        token_indices: for each int64[P], token_indices in its sequence; P is the same for all.

    Returns:
        Keys and values; hidden states are None (`blocks.{layer}.hook_out` has them).

    Raises:
        UserError: a hook point is missing or is not what is cached, or a state is not finite.
    """
    with attending(bridge), torch.no_grad():
        shown, cached = _shown_and_cached(bridge, layouts, token_indices)
    family = type(bridge.original_model).__name__
    for kind, hook in HOOK_NAMES.items():
        if len(shown[kind]) < len(cached[kind]):
            raise UserError(f"TransformerLens has no hook {hook} in {family}: {ALTERNATIVE_HINT}")
    found = States(*(torch.stack(shown[kind]) for kind in HOOK_NAMES))
    check_finite(found)
    for kind, hook in HOOK_NAMES.items():
        if not torch.equal(getattr(found, kind), torch.stack(cached[kind])):
            raise UserError(f"TransformerLens's hook {hook} does not show what {family} caches: {ALTERNATIVE_HINT}")
    return found


def _shown_and_cached(
    bridge: "TransformerBridge", layouts: Sequence[Layout], token_indices: Sequence[np.ndarray]
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """By kind and layer, [B, H_kv, P, D]: what fires at the hook points, and what the same pass caches."""
    inputs, cache = model_inputs(layouts, bridge.original_model), DynamicCache()
    tokens = inputs.pop("input_ids")
    columns = np.stack([layout.columns(at) for layout, at in zip(layouts, token_indices, strict=True)])
    at = torch.from_numpy(columns).to(tokens.device)
    rows = torch.arange(len(at), device=at.device)[:, None]
    shown: dict[str, list[Tensor]] = {kind: [] for kind in HOOK_NAMES}

    def take(states: Tensor) -> Tensor:  # [B, T, H_kv, D]
        return states[rows, at].transpose(1, 2)

    def keep(kind: str, states: Tensor, hook: Any) -> None:
        shown[kind].append(take(states))

    names = [
        (kind, name.format(layer=layer)) for kind, name in HOOK_NAMES.items() for layer in range(bridge.cfg.n_layers)
    ]
    hooks = [(name, partial(keep, kind)) for kind, name in names if name in bridge.hook_dict]
    bridge.run_with_hooks(tokens, fwd_hooks=hooks, past_key_values=cache, logits_to_keep=1, **inputs)
    cached = {kind: [take(getattr(layer, kind).transpose(1, 2)) for layer in cache.layers] for kind in HOOK_NAMES}
    return shown, cached
