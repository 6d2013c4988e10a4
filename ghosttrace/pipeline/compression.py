"""Mementos by a language model that sees all blocks of a trace, and rewrites those that were not accepted."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from ghosttrace.law.markup import DELIMITERS
from ghosttrace.pipeline.answers import ask
from ghosttrace.pipeline.client import Client, Message
from ghosttrace.pipeline.facts import missing_facts
from ghosttrace.pipeline.prompt_files import load_prompt
from ghosttrace.pipeline.rows import Memento, Row, RowError
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.tokens import TokenCounter

SPECIAL = (*(f"<|{name}|>" for name in DELIMITERS), "<think>", "</think>")
CHAT_TOKEN = re.compile(
    r"<\|(?:im_start|im_sep|im_end|endoftext|end|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id"
    r"|system|user|assistant|tool|observation|channel|message|start|return|call|python_tag|fim_\w+)\|>"
    r"|<\uff5c[^<>\s]{1,40}\uff5c>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>"
)
"""Special tokens of the usual chat templates; a tokenizer may read them as the end of the turn."""
OVERHEAD_TOKENS = 512  # of an answer, for the JSON around the mementos


class Mementos(BaseModel):
    """The mementos of the blocks that were asked for, in the fields `block_1`, `block_2`, …"""

    model_config = ConfigDict(extra="forbid")

    @property
    def texts(self) -> list[str]:
        """The mementos in order."""
        return [str(text).strip() for text in self.model_dump().values()]


async def compress(row: Row, client: Client, count_tokens: TokenCounter, quality: Quality) -> Row:
    """Draft the mementos of a row: all of them at first, later those that were not accepted.

    Args:
        row: a row with blocks.
        client: client of the endpoint.
        count_tokens: counts the tokens of the mementos.
        quality: when a memento is accepted, and how long it may be.

    Raises:
        RowError: the row has no blocks, or no answer could be used.
    """
    if not row.blocks:
        raise RowError("no blocks: run ghosttrace data segment first")
    best = row.mementos or (None,) * len(row.blocks)
    wanted = [index for index, memento in enumerate(best) if memento is None or not quality.accepts(memento)]
    if not wanted:
        return row
    budgets = [quality.budget(tokens) for tokens in row.block_tokens]
    limit = OVERHEAD_TOKENS + 2 * sum(budgets[index] for index in wanted)
    fields: dict[str, Any] = {f"block_{index + 1}": (str, ...) for index in wanted}
    form = create_model("BlockMementos", __base__=Mementos, **fields)
    messages = compress_messages(row, wanted, budgets)
    answer = await ask(client, "compress", messages, form, limit, _misplaced)
    drafts: list[Memento | None] = [None] * len(row.blocks)
    for index, text, tokens in zip(wanted, answer.texts, count_tokens(answer.texts), strict=True):
        problems = missing_facts(text, row.block_texts[index])
        if tokens > budgets[index]:
            problems.append(f"it has {tokens} tokens, and {budgets[index]} are allowed")
        drafts[index] = Memento(text, tokens, tuple(problems))
    return replace(row, drafts=tuple(drafts), mementos=best, ghost_bits=())


def special_token(text: str) -> str | None:
    """Return the first special token of a chat template in a text, or None."""
    match = CHAT_TOKEN.search(text)
    return match[0] if match else None


def _misplaced(answer: Mementos) -> str | None:
    """Return what no memento may be or hold."""
    if not all(answer.texts):
        return "no memento may be empty"
    found = next(filter(None, map(special_token, answer.texts)), None)
    if found:
        return f"no memento may hold {found}"
    if any(mark in text for text in answer.texts for mark in SPECIAL):
        return f"no memento may hold one of {', '.join(SPECIAL)}"
    return None


def compress_messages(row: Row, wanted: Sequence[int], budgets: Sequence[int]) -> list[Message]:
    """Return the messages that ask for the mementos of some blocks.

    Args:
        row: a row with blocks.
        wanted: indices of the blocks.
        budgets: tokens that the memento of each block may have.
    """
    blocks = "\n\n".join(
        f'<block n="{number}" memento_tokens="{budget}">\n{text.strip()}\n</block>'
        for number, (text, budget) in enumerate(zip(row.block_texts, budgets, strict=True), 1)
    )
    names = ", ".join(f"block_{index + 1}" for index in wanted)
    task = [f"Write the mementos of these blocks: {names}."]
    for index in wanted:
        memento = row.mementos[index] if row.mementos else None
        if memento is not None:
            asked = " ".join([*memento.problems, memento.feedback])
            previous = f"<memento>{memento.text}</memento>\n<feedback>{asked}</feedback>"
            task.append(f'<rewrite block="{index + 1}">\n{previous}\n</rewrite>')
    if len(task) > 1:
        task.append("Rewrite each of them so that the feedback is met.")
    return load_prompt("compress").fill({"problem": row.problem, "blocks": blocks, "task": "\n".join(task)})
