"""A stock model that knows nothing of Memento: a tiny random Qwen3 with the real tokenizer and chat template."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import ghosttrace as gt
from ghosttrace.law.chat import Chat
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import parse_law
from ghosttrace.model.checkpoint import Checkpoint
from helpers.families import FAMILIES
from helpers.paths import DATA

NEEDED = "tokenizers/qwen3"


@cache
def _model() -> tuple[PreTrainedModel, object]:
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.num_hidden_layers = 151_936, 2
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)  # attention far from uniform
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(DATA / NEEDED)


def stock(law: str) -> Checkpoint:
    """Return the model under a law."""
    model, tokenizer = _model()
    chat = Chat.from_tokenizer(tokenizer)
    policy = gt.Policy(mask_delimiters=False, keep_last_n_blocks=-1)
    return Checkpoint("stock", model, tokenizer, Markup.of_any_tokenizer(tokenizer), policy, (), parse_law(law, chat))
