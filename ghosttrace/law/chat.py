"""Tokens of a chat format, found by rendering the chat template with a tokenizer.

Nothing is assumed about the spelling. Each header is what the template puts between the contents of two messages, and a
turn or a tool result counts only if it begins with a token that ordinary text cannot contain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from ghosttrace.errors import UserError

CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {}}}
SYSTEM = {"role": "system", "content": "SYSTEM"}
USER = {"role": "user", "content": "USER"}
ASSISTANT = {"role": "assistant", "content": "ASSISTANT"}
NEXT_USER = {"role": "user", "content": "NEXT"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "name": "look", "tool_call_id": CALL["id"], "content": "RESULT"}


@dataclass(frozen=True)
class Chat:
    """Token ids that structure a chat. A part that the template does not show is empty.

    Attributes:
        assistant_header: the token ids that open an assistant's turn (ChatML: `<|im_start|>assistant\\n`).
        turn_end: the token id that closes a turn (ChatML: `<|im_end|>`).
        turn_starts: token ids that open a turn (ChatML: `<|im_start|>` alone).
        system_header: the token ids that open a system turn (ChatML: `<|im_start|>system`).
        tool_open: the token ids right before a tool result (Qwen3: `<tool_response>`).
        tool_close: the token id right after a tool result (Qwen3: `</tool_response>`).
    """

    assistant_header: tuple[int, ...] = ()
    turn_end: int | None = None
    turn_starts: tuple[int, ...] = ()
    system_header: tuple[int, ...] = ()
    tool_open: tuple[int, ...] = ()
    tool_close: int | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Chat":
        """Build the tokens from their entry in run.json."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**fields)

    @property
    def delimiters(self) -> tuple[int, ...]:
        """Token ids that open and close turns and tool results."""
        tokens = (self.turn_end, self.tool_close, *self.turn_starts, *self.tool_open[:1])
        return tuple(token for token in tokens if token is not None)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "Chat":
        """Find the tokens in a Hugging Face tokenizer; without a chat template, all parts are empty.

        Raises:
            UserError: the chat template shows no assistant header.
        """
        header = find_assistant_header(tokenizer)
        if not header:
            return cls()
        turn_end, starts = find_turn_end(tokenizer), _turn_starts(tokenizer, header)
        return cls(header, turn_end, starts, _system_header(tokenizer, starts), *_tool_tokens(tokenizer, starts))


def find_assistant_header(tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids that the chat template adds to open the assistant's turn; empty without a template.

    Raises:
        UserError: the template does not add the header as it should.
    """
    if not tokenizer.chat_template:
        return ()
    turns = [{"role": "user", "content": "?"}]
    without_header, with_header = (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add) for add in (False, True)
    )
    header = with_header.removeprefix(without_header).removesuffix("<think>\n").removesuffix("<think>")
    if not with_header.startswith(without_header) or not header:
        raise UserError(
            "the chat template does not show where the assistant's turn begins: "
            "make add_generation_prompt append the assistant header and change nothing else"
        )
    return tuple(tokenizer(header, add_special_tokens=False)["input_ids"])


def find_turn_end(tokenizer: Any) -> int | None:
    """Return the first special token that the chat template puts after an assistant's message, if any."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
    suffix = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in tokenizer.all_special_ids), None)


def _render(tokenizer: Any, *messages: Mapping[str, Any]) -> str:
    """Return the text of a chat; empty if the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except (TemplateError, TypeError):  # a template raises an error of its own, or adds None to text
        return ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"])


def _markers(tokenizer: Any) -> set[int]:
    """Return the tokens that ordinary text cannot contain."""
    return {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}


def _turn_starts(tokenizer: Any, header: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first token of the headers of assistant and user; empty if one of them is ordinary text."""
    between = _render(tokenizer, USER, ASSISTANT, NEXT_USER).rpartition("ASSISTANT")[2].partition("NEXT")[0]
    user = [token for token in _ids(tokenizer, between) if token in _markers(tokenizer)]
    end = find_turn_end(tokenizer)
    user = user[user.index(end) + 1 :] if end in user else user
    if not user or header[0] not in _markers(tokenizer):
        return ()
    return tuple(sorted({header[0], user[0]}))


def _system_header(tokenizer: Any, starts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the token ids that open a system turn; empty if the template has none or writes it into another turn."""
    headers = []
    for first in (SYSTEM, USER):
        text = _render(tokenizer, *([SYSTEM, USER] if first is SYSTEM else [USER]))
        ids = _ids(tokenizer, text.partition(first["content"])[0]) if first["content"] in text else []
        last = max((place for place, token in enumerate(ids) if token in starts), default=len(ids))
        headers.append(tuple(ids[last:]))
    return headers[0] if headers[0] != headers[1] else ()


def _tool_tokens(tokenizer: Any, starts: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    """Return the token ids right before and right after a tool result; empty if a result looks like other text."""
    text, markers = _render(tokenizer, USER, CALLING, TOOL), _markers(tokenizer)
    before, _, after = text.rpartition("RESULT")
    ids, plain = _ids(tokenizer, before), _ids(tokenizer, _render(tokenizer, USER, ASSISTANT, NEXT_USER))
    closing = next((token for token in _ids(tokenizer, after) if token in markers), None)
    for place in reversed(range(len(ids))):
        if ids[place] in markers and closing is not None and not len(find_sequence(np.array(plain), ids[place:])):
            return tuple(ids[place:]), closing
        if ids[place] in starts:  # the result must be marked within its own turn
            break
    return (), None


def find_sequence(tokens: np.ndarray, pattern: Sequence[int]) -> np.ndarray:
    """Return the token indices at which a pattern ends, int64[n].

    Args:
        tokens: int64[T].
        pattern: token ids, at least one.
    """
    width = len(pattern)
    if len(tokens) < width:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, width)
    return np.flatnonzero((windows == np.array(pattern)).all(axis=1)) + width - 1


class SequenceMatcher:
    """Incremental form of `find_sequence`.

    Args:
        pattern: token ids; an empty pattern never matches.
    """

    def __init__(self, pattern: tuple[int, ...]) -> None:
        self.pattern = pattern
        self._recent: tuple[int, ...] = ()

    def push(self, token: int) -> bool:
        """Process the next token and return whether the pattern ends with it."""
        self._recent = (*self._recent, token)[-len(self.pattern) :] if self.pattern else ()
        return bool(self.pattern) and self._recent == self.pattern
