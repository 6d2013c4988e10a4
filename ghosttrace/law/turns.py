"""`turns:KEEP,STRIDE`: in a chat, the oldest turns leave, as KV-streams trains agents (arXiv 2609.35750)."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.law import Erasure, SpecifiedLaw, Tokens, Tracker, parse_counts


@dataclass(frozen=True)
class Turns(SpecifiedLaw):
    """When more than `keep` turns are held after the system prompt, the oldest `stride` leave.

    A turn is one message of any role: from the token that opens it to the one before the next turn opens. What stands
    before the first turn, and a first turn of the role system, never leave.

    Attributes:
        keep: number of turns that may be held, the current one included.
        stride: number of turns that leave together.
        chat: tokens of the chat format.
    """

    name = "turns"
    usage = "turns:KEEP,STRIDE"
    keep: int
    stride: int
    chat: Chat

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Turns":
        keep, stride = parse_counts(cls, arguments, (1, 1))
        if stride > keep:
            raise UserError(f"turns:{keep},{stride} would evict the turn being written: give STRIDE at most KEEP")
        if not chat.turn_starts:
            raise UserError(
                "the law turns needs a chat template that opens every turn with a special token: "
                "this tokenizer has no template, or one that opens turns with ordinary text"
            )
        return cls(keep, stride, chat)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.keep},{self.stride}"

    @property
    def chat_tokens(self) -> Chat:
        return self.chat

    def erasures(self, token_ids: Tokens) -> list[Erasure]:
        tokens, system = np.asarray(token_ids, dtype=np.int64), self.chat.system_header
        starts = np.flatnonzero(np.isin(tokens, self.chat.turn_starts))
        if len(starts) and system and tuple(tokens[starts[0] : starts[0] + len(system)].tolist()) == system:
            starts = starts[1:]
        begins = range(0, len(starts) - self.keep, self.stride)  # first turns to leave, while `keep` others follow
        return [
            Erasure(range(int(starts[begin]), int(starts[begin + self.stride])), int(starts[begin + self.keep]) + 1)
            for begin in begins
        ]

    def tracker(self) -> Tracker:
        return TurnTracker(self)


def find_turns(token_ids: Tokens, chat: Chat) -> list[range]:
    """Return the token indices of every turn of a chat, the system's included, in order.

    A turn reaches from the token that opens it to the one before the next turn opens.

    Args:
        token_ids: int[T], one unpadded sequence.
        chat: tokens of the chat format; without `turn_starts` there are no turns.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    starts = np.flatnonzero(np.isin(tokens, chat.turn_starts)).tolist()
    return [range(start, end) for start, end in pairwise([*starts, len(tokens)])]


class TurnTracker(Tracker):
    """Incremental form of `Turns`.

    Args:
        law: the law.
    """

    def __init__(self, law: Turns) -> None:
        self.law, self.num_read = law, 0
        self._starts: list[int] = []  # first tokens of the turns that are held
        self._head: list[int] = []  # tokens of the first turn, while it may be a system turn
        self._first: int | None = None  # first token of the first turn that may leave

    @property
    def first_erasable(self) -> int | None:
        return self._first

    def push(self, token: int) -> list[Erasure]:
        index, self.num_read = self.num_read, self.num_read + 1
        opens, system = token in self.law.chat.turn_starts, self.law.chat.system_header
        if opens:
            self._starts.append(index)
            self._first = index if self._first is None else self._first
        if self._starts and len(self._head) < len(system):
            self._head.append(token)
            if tuple(self._head) == system:
                self._starts.pop(0)  # the system turn stays
                self._first = self._starts[0] if self._starts else None
        if not opens or len(self._starts) <= self.law.keep:
            return []
        begin, end = self._starts[0], self._starts[self.law.stride]
        self._starts = self._starts[self.law.stride :]
        return [Erasure(range(begin, end), index + 1)]
