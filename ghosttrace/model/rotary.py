"""Moving cached keys to other RoPE positions by re-rotating them."""

import inspect
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.model.cache import KVCache


def check_rotary(model: PreTrainedModel) -> Any:
    """The model's rotary embedding, if keys can be re-rotated by it.

    Raises:
        UserError: it depends on the sequence length, or there is none.
    """
    rotary: Any = getattr(model.base_model, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", "none")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if {"dynamic", "longrope", "none"} & kinds:
        raise UserError("rerotated needs a RoPE that does not change with length: use restart-renumbered instead")
    return rotary


def rerotate(model: PreTrainedModel, cache: KVCache, row: int, position: np.ndarray) -> None:
    """Move a row's keys to other RoPE positions by rotating them through the difference.

    Args:
        model: the model that made the keys; its own rotary embedding gives the angles.
        cache: changed in place.
        row: which row.
        position: int64[length], the new positions.

    Raises:
        UserError: the model's RoPE depends on the sequence length, so keys cannot be re-rotated.
    """
    rotary = check_rotary(model)
    by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
    config, length = model.config.get_text_config(), len(position)
    delta = torch.from_numpy(position - cache.slots.position[row, :length])[None]
    for number, layer in enumerate(cache.layers):
        kind = config.layer_types[number] if by_kind else None
        probe = layer.keys.new_zeros((), dtype=torch.float32)
        angles = rotary(probe, delta.to(probe.device), *([kind] if by_kind else []))
        scale = getattr(rotary, f"{kind}_attention_scaling" if by_kind else "attention_scaling")
        cos, sin = (angle[0].float() / scale for angle in angles)
        keys = layer.keys[row, :, :length].float()
        turned, rest = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        layer.keys[row, :, :length] = torch.cat([turned, rest], dim=-1).to(layer.keys.dtype)
    cache.slots.position[row, :length] = position
