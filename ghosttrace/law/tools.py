"""`tools:KEEP`: tool results leave once later turns are complete: context editing of agents, done on the cache."""

from dataclasses import dataclass

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat, SequenceMatcher, find_sequence
from ghosttrace.law.law import Erasure, SpecifiedLaw, Tokens, Tracker, parse_counts


@dataclass(frozen=True)
class Tools(SpecifiedLaw):
    """A tool result leaves once `keep` assistant turns after it are complete; all other text stays.

    The result is the text between the tokens that open and close it, which stay. With 0 it leaves as soon as it is
    complete, so that of the retained tokens only the closing one has seen it; with 1 the next reply still sees it.
    Results count only outside an assistant's turn, because a model may write anything.

    Attributes:
        keep: number of complete assistant turns that see a result.
        chat: tokens of the chat format.
    """

    name = "tools"
    usage = "tools:KEEP"
    keep: int
    chat: Chat

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Tools":
        (keep,) = parse_counts(cls, arguments, (0,))
        if not chat.tool_open or chat.turn_end is None:
            raise UserError(
                "the law tools needs a chat template that marks the results of the role tool with tokens of their own: "
                "this tokenizer has no template, or one without that role"
            )
        return cls(keep, chat)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.keep}"

    @property
    def chat_tokens(self) -> Chat:
        return self.chat

    def erasures(self, token_ids: Tokens) -> list[Erasure]:
        tokens, chat = np.asarray(token_ids, dtype=np.int64), self.chat
        headers, ends = find_sequence(tokens, chat.assistant_header), np.flatnonzero(tokens == chat.turn_end)
        completed = np.array([end for end in ends if _last(headers, end) > _last(ends, end)], dtype=np.int64)
        in_assistant = _last_of(headers, len(tokens)) > _last_of(ends, len(tokens))
        opens, closes = find_sequence(tokens, chat.tool_open), np.flatnonzero(tokens == chat.tool_close)
        opens = opens[~in_assistant[opens]]
        breaks = np.union1d(opens, headers)  # what makes an open result unfinished
        found = []
        for close in closes[~in_assistant[closes]]:
            begin = _last(opens, close) + 1
            if begin == 0 or _last(breaks, close) >= begin or _last(closes, close) >= begin or begin == close:
                continue
            later = completed[completed > close]
            if self.keep <= len(later):
                expires_at = int(close if self.keep == 0 else later[self.keep - 1]) + 1
                found.append(Erasure(range(int(begin), int(close)), expires_at))
        return sorted(found, key=lambda erasure: erasure.expires_at)

    def tracker(self) -> Tracker:
        return ToolTracker(self)


def find_tool_results(token_ids: Tokens, chat: Chat) -> list[range]:
    """Return the token indices of every complete tool result of a chat, in order.

    Args:
        token_ids: int[T], one unpadded sequence.
        chat: tokens of the chat format; without the role tool there are no results.
    """
    if not chat.tool_open or chat.turn_end is None:
        return []
    keys = (erasure.keys for erasure in Tools(0, chat).erasures(token_ids))
    return sorted((each for each in keys if isinstance(each, range)), key=lambda each: each.start)


def _last(indices: np.ndarray, before: int) -> int:
    """Return the last of the ascending indices before a token index; -1 if there is none."""
    number = int(np.searchsorted(indices, before))
    return int(indices[number - 1]) if number else -1


def _last_of(indices: np.ndarray, steps: int) -> np.ndarray:
    """Return, for each token index up to `steps`, the last of the ascending indices at or before it; -1 if none."""
    return np.append(-1, indices)[np.searchsorted(indices, np.arange(steps), side="right")]


class ToolTracker(Tracker):
    """Incremental form of `Tools`.

    Args:
        law: the law.
    """

    def __init__(self, law: Tools) -> None:
        self.law, self.num_read = law, 0
        self._header, self._open = SequenceMatcher(law.chat.assistant_header), SequenceMatcher(law.chat.tool_open)
        self._in_assistant = False
        self._begin: int | None = None  # first token of the result that is being read
        self._results: list[tuple[range, int]] = []  # results that are held, and how many turns were complete then
        self._complete = 0  # assistant turns that are complete
        self._first: int | None = None  # first token of the first result that was opened

    @property
    def first_erasable(self) -> int | None:
        return self._first

    def push(self, token: int) -> list[Erasure]:
        index, self.num_read = self.num_read, self.num_read + 1
        opens, assistant = self._open.push(token), self._header.push(token)
        if token == self.law.chat.tool_close and not self._in_assistant:
            if self._begin is not None and self._begin < index:
                self._results.append((range(self._begin, index), self._complete))
            self._begin = None
        if token == self.law.chat.turn_end:
            self._complete += self._in_assistant
            self._in_assistant = False
        if assistant:
            self._in_assistant, self._begin = True, None
        elif opens and not self._in_assistant:
            self._begin = index + 1
            self._first = self._begin if self._first is None else self._first
        due = [keys for keys, before in self._results if self._complete - before >= self.law.keep]
        self._results = [(keys, before) for keys, before in self._results if keys not in due]
        return [Erasure(keys, index + 1) for keys in due]
