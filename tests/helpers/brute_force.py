"""Attention written out: the slow, obvious reference of every masked pass."""

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


def brute_force(model: PreTrainedModel, tokens: list[int], times: np.ndarray) -> Tensor:
    """Logits [T, V] with attention written out: one query at a time, over the keys it may see.

    The family's own window is read off the mask that stock transformers hands its layers.
    """
    steps = len(tokens)

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):  # type: ignore[no-untyped-def]
        groups = query.shape[1] // key.shape[1]
        rows = []
        for q in range(steps):
            keys = [k for k in range(q + 1) if q < times[k] and bool(attention_mask[0, 0, q, k])]
            heads = []
            for head in range(query.shape[1]):
                scores = torch.stack([query[0, head, q] @ key[0, head // groups, k] for k in keys]) * scaling
                weights = scores.softmax(0)
                heads.append(sum(w * value[0, head // groups, k] for w, k in zip(weights, keys, strict=True)))
            rows.append(torch.stack(heads))
        return torch.stack(rows)[None], None

    # A name of its own with the stock bool masks, so that nothing of the code under test runs.
    AttentionInterface.register("brute", attend)
    stock = AttentionMaskInterface()["sdpa"]
    AttentionMaskInterface.register("brute", lambda **kw: stock(**{**kw, "allow_is_causal_skip": False}))
    before = model.config._attn_implementation
    model.set_attn_implementation("brute")
    try:
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)
