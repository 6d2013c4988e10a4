"""Re-rotation of cached keys to other RoPE positions."""

import inspect
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.model.cache import KVCache


def check_rotary(model: PreTrainedModel) -> Any:
    """Return the model's rotary embedding and check that keys can be re-rotated with it.

    Raises:
        UserError: the model has no rotary embedding, or one that depends on the sequence length.
    """
    rotary: Any = getattr(model.base_model, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", "none")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if {"dynamic", "longrope", "none"} & kinds:
        raise UserError(
            "rerotated needs a RoPE that does not depend on the sequence length: use restart-renumbered instead"
        )
    return rotary


def rerotate(model: PreTrainedModel, cache: KVCache, row: int, position: np.ndarray) -> None:
    """Rotate the cached keys of a row to new RoPE positions.

    Args:
        model: the model that computed the keys; provides the rotation angles.
        cache: the cache, changed in place.
        row: row of the cache.
        position: int64[length], the new positions.

    Raises:
        UserError: the model has no rotary embedding, or one that depends on the sequence length.
    """
    rotary = check_rotary(model)
    per_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
    config, length = model.config.get_text_config(), len(position)
    delta = torch.from_numpy(position - cache.slots.position[row, :length])[None]
    for number, layer in enumerate(cache.layers):
        kind = config.layer_types[number] if per_layer_type else None
        like = layer.keys.new_zeros((), dtype=torch.float32)  # passes dtype and device only
        angles = rotary(like, delta.to(like.device), *([kind] if per_layer_type else []))
        scale = getattr(rotary, f"{kind}_attention_scaling" if per_layer_type else "attention_scaling")
        cos, sin = (angle[0].float() / scale for angle in angles)
        keys = layer.keys[row, :, :length].float()
        rotated, unrotated = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
        first, second = rotated.chunk(2, dim=-1)
        rotated = rotated * cos + torch.cat([-second, first], dim=-1) * sin
        layer.keys[row, :, :length] = torch.cat([rotated, unrotated], dim=-1).to(layer.keys.dtype)
    cache.slots.position[row, :length] = position
