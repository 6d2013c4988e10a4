"""Test matrix of model families: tiny random models of the real architectures."""

from collections.abc import Callable
from functools import cache

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 96
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZE),
    "qwen2": lambda: Qwen2Config(**SIZE),
    "qwen3": lambda: Qwen3Config(**SIZE, head_dim=16),
    "phi3": lambda: Phi3Config(**SIZE, sliding_window=None),
    "phi3-window": lambda: Phi3Config(**SIZE, sliding_window=12),
    "olmo3": lambda: Olmo3Config(**SIZE, sliding_window=12, layer_types=MIXED),
    "gemma3": lambda: Gemma3TextConfig(**SIZE, head_dim=16, sliding_window=12, layer_types=MIXED),
    "mistral": lambda: MistralConfig(**SIZE, sliding_window=12),
}


@cache
def tiny(family: str) -> PreTrainedModel:
    """Return a seeded random float32 model, with weights scaled up so that attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.requires_grad_(False)
