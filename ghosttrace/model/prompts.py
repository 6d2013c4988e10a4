"""What a model is asked: message templates, versioned, and the chat format around them.

The paper's Qwen3 and Olmo 3 checkpoints take no system prompt and Phi-4 keeps its own (arXiv
2604.09852, appendix on evaluation), so a system turn that a chat template adds by default is left out
for the first two and kept for everyone else.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

NO_SYSTEM_PROMPT = {"qwen3", "olmo3"}
SYSTEM_TURN = re.compile(r"<\|im_start\|>system\n.*?<\|im_end\|>\n", re.DOTALL)


@dataclass(frozen=True)
class PromptTemplate:
    """How a problem becomes a user's message.

    Attributes:
        name, version: a change of `text` takes a new version.
        text: with `{problem}` where the problem goes.
    """

    name: str
    version: int
    text: str

    def fill(self, problem: str) -> str:
        """The message."""
        return self.text.replace("{problem}", problem)


PLAIN_TEMPLATE = PromptTemplate("plain", 1, "{problem}")
MATHEMATICS_TEMPLATE = PromptTemplate(
    "mathematics", 1, "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
)
CHOICE_TEMPLATE = PromptTemplate(
    "choice", 1, "{problem}\n\nPlease reason step by step, and put the letter of the right answer within \\boxed{}."
)


def chat_prompt(tokenizer: Any, family: str | None, message: str) -> str:
    """A user's message in the chat template, up to where the assistant begins.

    Args:
        tokenizer: with a chat template.
        family: transformers' model type, as far as it is known.
        message: the user's.
    """
    turns = [{"role": "user", "content": message}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return SYSTEM_TURN.sub("", text, count=1) if family in NO_SYSTEM_PROMPT and SYSTEM_TURN.match(text) else text


def template_hash(tokenizer: Any, family: str | None, template: PromptTemplate) -> str:
    """SHA-256 of all that surrounds a problem: message template, chat format, system prompt."""
    return sha256(chat_prompt(tokenizer, family, template.text).encode()).hexdigest()
