"""Places in a trace that may hold a secret: blocks under Memento's law, text of a chat's turns under any other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from ghosttrace.data.task import Sample
from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat, find_sequence
from ghosttrace.law.expiry import NEVER, MementoLaw, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.tools import find_tool_results
from ghosttrace.law.turns import find_turns
from ghosttrace.model.checkpoint import Checkpoint

Role = Literal["tool", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Place:
    """A stretch of text that leaves the cache.

    Attributes:
        block: Number of the block, or of the chat's turn, counted from 0.
        tokens: Token indices of its text.
        end: Number of tokens of the trace to keep: those up to the last memento that is probed, or all of a chat.
    """

    block: int
    tokens: range
    end: int


@dataclass(frozen=True)
class PlaceFinder:
    """Finds the places of traces under the law of a checkpoint.

    Attributes:
        checkpoint: Provides the law and the tokenizer.
        hops: Number of blocks required after a block; chats are not cut.
        role: Role of the turns of a chat in which secrets stand.
    """

    checkpoint: Checkpoint
    hops: int
    role: Role = "tool"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"--in must be {' or '.join(ROLES)}, not {self.role!r}")

    @property
    def what(self) -> str:
        """Name of a place in messages."""
        if isinstance(self.checkpoint.law, MementoLaw):
            return "block"
        return "tool result" if self.role == "tool" else "assistant turn"

    def find(self, ids: Sequence[int]) -> list[Place]:
        """Return the places of a trace, in order.

        Args:
            ids: int[T], prompt and response.
        """
        law = self.checkpoint.law
        if isinstance(law, MementoLaw):
            pairs = find_blocks(ids, law.markup, law.policy.require_assistant_section)
            return [
                Place(number, range(pair.start + 1, pair.end), pairs[number + self.hops].memento_end + 1)
                for number, pair in enumerate(pairs[: max(0, len(pairs) - self.hops)])
            ]
        leaves = expiry(ids, law) < NEVER
        chat, places = self.checkpoint.chat, []
        turns = find_turns(ids, chat)
        for text in find_tool_results(ids, chat) if self.role == "tool" else find_replies(ids, chat):
            erased = first_run(leaves, text)
            if len(erased):
                turn = sum(turn.start <= text.start for turn in turns) - 1
                places.append(Place(max(turn, 0), erased, len(ids)))
        return places

    def leaves(self, ids: Sequence[int], secret_indices: Sequence[int]) -> bool:
        """Return whether a secret leaves the cache; blocks are only checked when their states are read.

        Args:
            ids: int[T], the trace with the secret.
            secret_indices: Token indices of the secret.
        """
        law = self.checkpoint.law
        if isinstance(law, MementoLaw):
            return True
        return bool((expiry(ids, law)[list(secret_indices)] < NEVER).all())

    def within(self, text: str, insertion_points: Sequence[int]) -> list[int]:
        """Return the insertion points that do not touch the line breaks between a turn and its delimiters.

        Args:
            text: Text of the place.
            insertion_points: Character indices, ascending, at least the first and the last of the text.
        """
        if isinstance(self.checkpoint.law, MementoLaw):
            return list(insertion_points)
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        return [point for point in insertion_points if begin <= point <= end] or [end]

    def none_found(self, number: int, traces: Iterable[Sequence[int]]) -> str:
        """Return the sentence that none of the traces, int[T] each, has the place of a number."""
        most = max((len(replace(self, hops=0).find(ids)) for ids in traces), default=0)
        if isinstance(self.checkpoint.law, MementoLaw):
            return (
                f"no trace has a block {number} (counted from 0) and {self.hops} more after it, the longest has "
                f"{most} blocks: choose an earlier block or fewer hops"
            )
        return (
            f"no trace has {number + 1} {self.what}s that leave under the law {self.checkpoint.law.spec}, at most "
            f"{most}: give chats with `messages` in which more of them leave, another --block, or another --in"
        )


def erased_texts(checkpoint: Checkpoint, sample: Sample) -> list[range]:
    """Return the token indices of all blocks of a sample, or of the chat's turn that holds its secret."""
    if isinstance(checkpoint.law, MementoLaw):
        return [place.tokens for place in PlaceFinder(checkpoint, 0).find(sample.ids)]
    places = [place for role in ROLES for place in PlaceFinder(checkpoint, 0, role).find(sample.ids)]
    return [place.tokens for place in places if sample.secret_indices[0] in place.tokens]


def find_replies(ids: Sequence[int], chat: Chat) -> list[range]:
    """Return the token indices of the text of every assistant's turn, in order.

    Args:
        ids: int[T], one unpadded sequence.
        chat: Tokens of the chat format; without a template the whole sequence is one reply.
    """
    tokens = np.asarray(ids, dtype=np.int64)
    if not chat.assistant_header:
        return [range(len(tokens))]
    begins = (find_sequence(tokens, chat.assistant_header) + 1).tolist()
    ends = [*np.flatnonzero(tokens == chat.turn_end).tolist(), len(tokens)]
    return [range(begin, next(end for end in ends if end >= begin)) for begin in begins]


def first_run(chosen: np.ndarray, within: range) -> range:
    """Return the first consecutive token indices of a range that are chosen; empty if none is.

    Args:
        chosen: bool[T].
        within: Token indices to search.
    """
    inside = chosen[within.start : within.stop]
    if not inside.any():
        return range(within.start, within.start)
    begin = int(np.argmax(inside))
    length = int(np.argmin(inside[begin:])) or len(inside) - begin
    return range(within.start + begin, within.start + begin + length)
