"""Chats in OpenAI's message format, such as the sessions of an agent, through the model's own chat template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import find_assistant_header, find_sequence
from ghosttrace.model.prompts import render_chat


@dataclass(frozen=True)
class ChatMessages:
    """A chat as messages.

    Attributes:
        messages: The messages: `role`, `content` and, as the template knows them, `tool_calls`, `tool_call_id`, `name`.
        tools: Descriptions of the tools that the assistant may call; None for none.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None


def is_chat(record: Any) -> bool:
    """Return whether a row is a chat: it has `messages`, and neither `response` nor `segments`."""
    return isinstance(record, Mapping) and "messages" in record and not {"response", "segments"} & record.keys()


def parse_chat(record: Mapping[str, Any], source: str | Path) -> ChatMessages:
    """Convert a row with `messages`, and optionally `tools`, to a chat.

    Contents that are null become empty, and contents in parts are joined if all parts are text.

    Args:
        record: The row.
        source: Its source, for error messages.

    Raises:
        UserError: A message has no role, or a content that is not text.
    """
    messages, tools = record["messages"], record.get("tools")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{source} has 'messages' that are not a list: give OpenAI's message format")
    if tools is not None and not isinstance(tools, Sequence):
        raise UserError(f"{source} has 'tools' that are not a list: give OpenAI's format, or leave them out")
    parsed = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"{source}: message {number} has no 'role': give OpenAI's message format")
        content = _text(message.get("content"))
        if content is None:
            raise UserError(f"{source}: message {number} has a 'content' that is not text: give a string")
        given = {name: value for name, value in message.items() if value is not None}
        parsed.append({**given, "content": content})
    return ChatMessages(tuple(parsed), None if tools is None else tuple(tools))


def _text(content: Any) -> str | None:
    """Return the text of a content; None if it is not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        return None
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def tokenize_chat(chat: ChatMessages, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokenise a chat with the tokenizer's own template.

    Args:
        chat: The chat.
        tokenizer: Hugging Face tokenizer with a chat template.

    Returns:
        The token ids up to the end of the first assistant header, and those after it. If no assistant speaks, all
        tokens belong to the first part.

    Raises:
        UserError: The tokenizer has no chat template, or the template refuses the messages or leaves out a role.
    """
    text, header = (
        render_chat(tokenizer, chat.messages, tools=None if chat.tools is None else list(chat.tools)),
        find_assistant_header(tokenizer),
    )
    _check_roles(chat, text)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ends = find_sequence(np.array(ids), header)
    spelled = tokenizer.decode(header) if header else ""
    if spelled and len(ends) < text.count(spelled):
        # A reply that begins with a line break merges with the header. Generation never sees that token, because a
        # prompt ends with the header: so each header ends a piece here as well.
        pieces = re.split(f"(?<={re.escape(spelled)})", text)
        ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        ends = find_sequence(np.array(ids), header)
    split = int(ends[0]) + 1 if len(ends) else len(ids)
    return ids[:split], ids[split:]


def _check_roles(chat: ChatMessages, text: str) -> None:
    """Raise UserError if a template leaves out all messages of a role.

    A template may trim, escape or shorten a content, so only its last word is looked for.
    """
    for role in dict.fromkeys(message["role"] for message in chat.messages):
        words = [message["content"].split()[-1:] for message in chat.messages if message["role"] == role]
        last = [word for found in words for word in found]
        if last and not any(word in text for word in last):
            raise UserError(
                f"the model's chat template leaves out messages of the role {role!r}: "
                "give the messages a role that it knows, or another model"
            )
