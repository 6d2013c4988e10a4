"""Shape of a model's KV cache, read from its config."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class CacheGeometry:
    """Shape of a KV cache.

    Attributes:
        layers: number of layers.
        kv_heads: number of key-value heads per layer.
        head_dim: size of each head.
        windows: sliding window of each layer; None for full attention.
    """

    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "CacheGeometry":
        """Read the geometry from a transformers config."""
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
        """Return the bytes of keys and values of one token over all layers (Qwen3-8B in bfloat16: 144 KiB)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize
