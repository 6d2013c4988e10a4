"""Delimiters for a model that has none: tokens added, and embeddings to begin with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ghosttrace.checkpoint import RECORD
from ghosttrace.errors import UserError
from ghosttrace.expiry import Policy
from ghosttrace.trace import DELIMITERS, Markup

RELATED = {
    "block_start": ("block", "start", "begin", "section", "step"),
    "block_end": ("block", "end", "finish", "section", "done"),
    "summary_start": ("summary", "summarize", "brief", "recap", "overview"),
    "summary_end": ("summary", "end", "finish", "done", "complete"),
}
"""Words whose embeddings a delimiter starts from (arXiv 2604.09852, appendix on training)."""
NOISE = 0.01


def init_tokens(
    model: PreTrainedModel, tokenizer: Any, policy: Policy, names: Mapping[str, str] | None = None, seed: int = 42
) -> list[str]:
    """Add the delimiters that a tokenizer lacks, each beginning as the mean of related words plus N(0, 0.01^2).

    Input embeddings, and the output's where they are not tied, are set alike; everything else stays. The
    policy and the spelling go into the model's config.

    Args:
        model: changed in place; its table grows only if the new ids do not fit.
        tokenizer: changed in place.
        policy: what the model is to be trained for.
        names: other spellings; tokens that exist already are used as they are.
        seed: of the noise.

    Returns:
        The tokens that were added.

    Raises:
        UserError: two delimiters have one spelling.
    """
    spelled = {name: (names or {}).get(name, f"<|{name}|>") for name in DELIMITERS}
    if len(set(spelled.values())) < len(spelled):
        raise UserError("two delimiters have one spelling: give --map-delimiters four different tokens")
    missing = {name: token for name, token in spelled.items() if token not in tokenizer.get_vocab()}
    words = {
        name: [tokenizer(word, add_special_tokens=False)["input_ids"] for word in RELATED[name]] for name in missing
    }
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(missing.values())}, replace_extra_special_tokens=False
    )
    table: Any = model.get_input_embeddings()
    if len(tokenizer) > table.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = model.get_input_embeddings()
    tables, head = [table.weight], model.get_output_embeddings()
    if head is not None and head.weight is not table.weight:
        tables.append(head.weight)
    rng = torch.Generator().manual_seed(seed)
    for weight in tables:
        for name, token in missing.items():
            mean = related_mean(weight, words[name])
            noise = NOISE * torch.randn(mean.shape, generator=rng)
            weight.data[tokenizer.get_vocab()[token]] = (mean.cpu() + noise).to(weight)
    Markup.from_tokenizer(tokenizer, spelled)  # refuses what could not be read back
    record = {"policy": policy.to_dict()}
    model.config.ghosttrace = record | ({"delimiters": dict(names)} if names else {})
    return list(missing.values())


def related_mean(weight: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """float32[d]: the mean over words of the mean over each word's tokens."""
    return torch.stack([weight.data[list(word)].float().mean(0) for word in words]).mean(0)


def record_of(config: Any) -> dict[str, Any]:
    """What a model's config says of how it erases; empty if nothing."""
    return dict(getattr(config, RECORD, None) or {})
