"""Prompts: versioned message templates, and the chat format around them.

The paper's Qwen3 and Olmo 3 checkpoints use no system prompt and Phi-4 keeps its own (arXiv 2604.09852, appendix on
evaluation). So a system turn that a chat template adds by default is removed for the first two families and kept for
all others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from jinja2 import TemplateError

from ghosttrace.errors import UserError

NO_SYSTEM_PROMPT = {"qwen3", "olmo3"}
SYSTEM_TURN = re.compile(r"<\|im_start\|>system\n.*?<\|im_end\|>\n", re.DOTALL)


@dataclass(frozen=True)
class PromptTemplate:
    """Template of the user message for a problem.

    Attributes:
        name: name of the template.
        version: increased with every change of `text`.
        text: the message, with `{problem}` as placeholder.
    """

    name: str
    version: int
    text: str

    def fill(self, problem: str) -> str:
        """Return the user message for a problem."""
        return self.text.replace("{problem}", problem)


PLAIN_TEMPLATE = PromptTemplate("plain", 1, "{problem}")
MATHEMATICS_TEMPLATE = PromptTemplate(
    "mathematics", 1, "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
)
CHOICE_TEMPLATE = PromptTemplate(
    "choice", 1, "{problem}\n\nPlease reason step by step, and put the letter of the right answer within \\boxed{}."
)
PROGRAM_TEMPLATE = PromptTemplate(
    "program", 1, "{problem}\n\nPlease reason step by step, and end with the whole program in one Python code block."
)


def chat_prompt(tokenizer: Any, family: str | None, message: str) -> str:
    """Format a user message with the chat template, up to the end of the assistant header.

    Args:
        tokenizer: Hugging Face tokenizer with a chat template.
        family: the model type in transformers, if known.
        message: the user message.
    """
    turns = [{"role": "user", "content": message}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return SYSTEM_TURN.sub("", text, count=1) if family in NO_SYSTEM_PROMPT and SYSTEM_TURN.match(text) else text


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Format a chat with the tokenizer's own template.

    Args:
        tokenizer: Hugging Face tokenizer.
        messages: the chat, in OpenAI's message format.
        options: further arguments of `apply_chat_template`, such as `tools`.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template, so chats cannot be read: give a model with one")
    try:
        return str(tokenizer.apply_chat_template(list(map(dict, messages)), tokenize=False, **options))
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"the model's chat template refuses a chat: {error}") from error


def prompt_ids(tokenizer: Any, family: str | None, message: str | Sequence[Mapping[str, Any]]) -> list[int]:
    """Tokenise a user message in the model's chat format, up to the end of the assistant header.

    Args:
        tokenizer: Hugging Face tokenizer with a chat template.
        family: the model type in transformers, if known.
        message: the text of the message, or a whole chat in OpenAI's message format.

    Raises:
        UserError: the chat template refuses the chat.
    """
    if isinstance(message, str):
        text = chat_prompt(tokenizer, family, message)
    else:
        text = render_chat(tokenizer, message, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def template_hash(tokenizer: Any, family: str | None, template: PromptTemplate) -> str:
    """Return the SHA-256 of the prompt around a problem: message template, chat format and system prompt."""
    return sha256(chat_prompt(tokenizer, family, template.text).encode()).hexdigest()
