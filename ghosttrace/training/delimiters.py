"""Addition of the four delimiters to a model's tokenizer and embeddings.

A new embedding is initialised to the mean embedding of related words, plus noise of standard deviation 0.01
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
    """Add the missing delimiters to a tokenizer, and initialise their embeddings in its model, in place.

    Delimiters that the tokenizer already has, and their embeddings, remain unchanged. Untied output embeddings are
    initialised in the same way as input embeddings.

    Args:
        model: the model; its embeddings are resized if the new ids do not fit.
        tokenizer: the model's tokenizer.
        seed: random seed of the noise.
        names: token of each delimiter whose spelling is not `<|name|>`, by name in `DELIMITERS`.

    Returns:
        Ids of the added tokens, by name of the delimiter.

    Raises:
        UserError: if two delimiters have the same spelling.
    """
    vocabulary = tokenizer.get_vocab()
    spelled = {name: (names or {}).get(name, f"<|{name}|>") for name in RELATED_WORDS}
    if len(set(spelled.values())) < len(spelled):
        raise UserError("two delimiters have the same spelling: give --map-delimiters four different tokens")
    missing = {name: token for name, token in spelled.items() if token not in vocabulary}
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(missing.values())}, replace_extra_special_tokens=False
    )
    ids = {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in missing.items()}
    if ids and max(ids.values()) >= len(_embeddings(model)[0]):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    weights = {id(weight): weight for weight in _embeddings(model)}  # one entry if input and output are tied
    for name, token in ids.items():
        # Tokenizers encode a word inside a text together with the space before it.
        words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in RELATED_WORDS[name]]
        for weight in weights.values():
            mean = torch.stack([weight.detach()[word].float().mean(0) for word in words]).mean(0)
            noise = EMBEDDING_NOISE_STD * torch.randn(mean.shape, generator=generator)
            with torch.no_grad():
                weight[token] = (mean + noise.to(mean.device)).to(weight.dtype)
    return ids


def _embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the weights of the input embeddings and, if the model has them, of the output embeddings."""
    output = model.get_output_embeddings()
    return [model.get_input_embeddings().weight, *([] if output is None else [output.weight])]
