"""Tokenizers with delimiters, and short text traces."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ghosttrace.data.read import TraceText, tokenize_trace
from ghosttrace.data.spans import decode
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import DELIMITERS, Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from helpers.families import FAMILIES, tiny
from helpers.paths import DATA

QWEN = "tokenizers/qwen3/tokenizer.json"
TRACES = ["traces/memento_blog_example_response.json", "traces/memento_blog_example_code.json"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROSE = "We add the terms. This gives 12 in all, e.g. by hand.\n\n1. First case: x = 3.\n2. Then $a. b$ follows! Done"


def three_digits() -> Any:
    """Return a byte-level tokenizer that groups up to three digits from the left, like that of Phi-4."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "0123456789" for b in "0123456789"]
    triples = [(a + b, c) for a, b in pairs for c in "0123456789"]
    merges = [*pairs, *triples, *((a[0], a[1] + b) for a, b in triples)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*alphabet, *(a + b for a, b in merges)]))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}| ?[^\s\d]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@cache
def checkpoint_with_delimiters(name: str) -> Checkpoint:
    """Return a checkpoint whose tokenizer has delimiters; its model is a placeholder."""
    tokenizer = three_digits() if name == "phi" else AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<|{name}|>" for name in DELIMITERS]}, replace_extra_special_tokens=False
    )
    return Checkpoint(name, tiny("qwen3"), tokenizer, Markup.from_tokenizer(tokenizer), Policy(True))


def trace(checkpoint: Checkpoint, name: str, blocks: list[str], mementos: str = "Result {}.") -> TokenTrace:
    """Return the tokenized trace with these blocks; mementos are `mementos` formatted with the block number."""
    pairs = "".join(
        f"<|block_start|>{text}<|block_end|><|summary_start|>{mementos.format(number)}<|summary_end|>"
        for number, text in enumerate(blocks)
    )
    text = TraceText("What is 6 x 7?", f"<think>\n{pairs}</think>\nThe answer is 42.")
    spelled = {name: f"<|{name}|>" for name in DELIMITERS}
    return TokenTrace("test", name, *tokenize_trace(text, checkpoint.tokenizer, "qwen3", spelled))


def blocks_of(checkpoint: Checkpoint, ids: Any) -> list[Any]:
    """Return the block-memento pairs of a sequence of token ids."""
    return find_blocks(list(ids), checkpoint.markup)


def block_text(checkpoint: Checkpoint, ids: Any, block: int) -> str:
    """Return the text of a block without its delimiters."""
    pair = blocks_of(checkpoint, ids)[block]
    return decode(checkpoint.tokenizer, ids[pair.start + 1 : pair.end])


def with_random_model(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a random model of its vocabulary size."""
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.max_position_embeddings = len(checkpoint.tokenizer), 2048
    torch.manual_seed(0)
    return replace(checkpoint, model=AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval())
