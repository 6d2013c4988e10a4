"""The shape of a model's key-value cache, read from its config."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class CacheGeometry:
    """What the size of a KV cache follows from."""

    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "CacheGeometry":
        """The geometry that a config describes."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        window = getattr(text, "sliding_window", None)
        kinds = getattr(text, "layer_types", None)
        sliding = [kind == "sliding_attention" for kind in kinds] if kinds else [True] * text.num_hidden_layers
        return cls(
            text.num_hidden_layers,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
            tuple(window if slides else None for slides in sliding),
        )

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Keys and values of one token in every layer (Qwen3-8B in bfloat16: 144 KiB)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize
