"""Slow reference implementation of masked attention."""

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


def brute_force(model: PreTrainedModel, tokens: list[int], times: np.ndarray) -> Tensor:
    """Return logits [T, V] with attention computed for one query at a time, over its visible keys.

    Sliding windows of the family are taken from the mask that stock transformers passes to its layers.

    Args:
        model: Model of any family.
        tokens: Token ids of one sequence.
        times: Expiry of each token, int64[T].
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

    # Registered under a separate name with the stock boolean masks, so that no code under test runs.
    AttentionInterface.register("brute", attend)
    stock = AttentionMaskInterface()["sdpa"]
    AttentionMaskInterface.register("brute", lambda **kw: stock(**{**kw, "allow_is_causal_skip": False}))
    before = model.config._attn_implementation
    model.set_attn_implementation("brute")
    try:
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)
