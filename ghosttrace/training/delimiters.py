"""Giving a model the four delimiters as tokens of its own.

New embeddings start as the mean of those of related words, plus noise of standard deviation 0.01
(arXiv 2604.09852, section on training).
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ghosttrace.errors import UserError

RELATED_WORDS = {
    "block_start": ("block", "start", "begin", "section", "step"),
    "block_end": ("block", "end", "finish", "section", "done"),
    "summary_start": ("summary", "summarize", "brief", "recap", "overview"),
    "summary_end": ("summary", "end", "finish", "done", "complete"),
}
EMBEDDING_NOISE_STD = 0.01


def add_delimiters(
    model: PreTrainedModel, tokenizer: Any, seed: int = 0, names: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Add what is missing of the delimiters to a tokenizer, and their embeddings to its model, in place.

    A tokenizer that has them already, as an added token or as one of its own, is left alone, and so are
    their embeddings. Output embeddings that are not tied to the input's are treated the same way.

    Args:
        model: with room for the new ids, or it is resized.
        tokenizer: its tokenizer.
        seed: of the noise.
        names: other spellings.

    Returns:
        The ids of the tokens that were added, by the name of the delimiter.

    Raises:
        UserError: two delimiters have one spelling.
    """
    vocabulary = tokenizer.get_vocab()
    spelled = {name: (names or {}).get(name, f"<|{name}|>") for name in RELATED_WORDS}
    if len(set(spelled.values())) < len(spelled):
        raise UserError("two delimiters have one spelling: give --map-delimiters four different tokens")
    missing = {name: token for name, token in spelled.items() if token not in vocabulary}
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(missing.values())}, replace_extra_special_tokens=False
    )
    ids = {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in missing.items()}
    if ids and max(ids.values()) >= len(_embeddings(model)[0]):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    draw = torch.Generator().manual_seed(seed)
    tables = {id(weight): weight for weight in _embeddings(model)}
    for name, token in ids.items():
        # With a space before it, as words stand in a text.
        words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in RELATED_WORDS[name]]
        for weight in tables.values():
            mean = torch.stack([weight.detach()[word].float().mean(0) for word in words]).mean(0)
            noise = EMBEDDING_NOISE_STD * torch.randn(mean.shape, generator=draw)
            with torch.no_grad():
                weight[token] = (mean + noise.to(mean.device)).to(weight.dtype)
    return ids


def _embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    output = model.get_output_embeddings()
    return [model.get_input_embeddings().weight, *([] if output is None else [output.weight])]
