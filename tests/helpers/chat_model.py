"""A stock chat model: a random Qwen3 and a tokenizer whose ids are those of the shared matrix of laws."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ghosttrace.law.markup import DELIMITERS
from helpers.laws import BS, CLOSE, END, HEAD, OPEN, START, SYSTEM, TEXT, TOOL

VOCABULARY = 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'tool' %}"
    "<tool_response> {{ m.content }} </tool_response>{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
MARKERS = {START: "<|im_start|>", END: "<|im_end|>", OPEN: "<tool_response>", CLOSE: "</tool_response>"}


def chat_tokenizer(delimiters: bool = False, special_tools: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words `w15`, `w16`, …, whose chat format is `helpers.laws.CHAT`.

    Args:
        delimiters: whether it has Memento's delimiters.
        special_tools: whether it calls the marks of tool results special tokens; Qwen3's does not.
    """
    names = {0: "<pad>", 1: "<bos>", 2: "<eos>", HEAD: "assistant", SYSTEM: "system", TOOL: "tool", TEXT: "user"}
    names |= MARKERS | {BS + n: f"<|{name}|>" if delimiters else f"d{n}" for n, name in enumerate(DELIMITERS)}
    words = {names.get(token, f"w{token}"): token for token in range(VOCABULARY)}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    special = [MARKERS[START], MARKERS[END], *(f"<|{name}|>" for name in DELIMITERS if delimiters)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<pad>",
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=special,
        chat_template=TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(MARKERS[mark], special=special_tools, normalized=False) for mark in (OPEN, CLOSE)])
    return tokenizer


def save_chat_model(folder: Path, delimiters: bool = False) -> str:
    """Save a random Qwen3 with `chat_tokenizer` and no record of a law; return the folder.

    Its size is that of `helpers.engines.make_model`.
    """
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    chat_tokenizer(delimiters).save_pretrained(folder)
    return str(folder)
