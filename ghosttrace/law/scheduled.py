"""Laws whose erasures follow from the length of the prompt alone, and where the prompt ends."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat, SequenceMatcher, find_sequence
from ghosttrace.law.law import Erasure, SpecifiedLaw, Tokens, Tracker


@dataclass(frozen=True)
class Prompt:
    """Where the prompt of a sequence ends.

    Attributes:
        header: the prompt ends with the first occurrence of these token ids, the assistant header.
        length: the prompt is this many tokens, whatever they are; None to look for the header.
    """

    header: tuple[int, ...] = ()
    length: int | None = None

    @classmethod
    def parse(cls, law: type[SpecifiedLaw], arguments: str, chat: Chat) -> tuple[str, "Prompt"]:
        """Split off the optional last argument `prompt=N` and return the other arguments and the prompt.

        Raises:
            UserError: N is not a number, or there is neither N nor an assistant header.
        """
        others, given, length = arguments.partition(",prompt=")
        if given:
            if not length.isdecimal():
                raise UserError(f"prompt= gives the length of the prompt in tokens, such as prompt=0, not {length!r}")
            return others, cls(length=int(length))
        if not chat.assistant_header:
            raise UserError(
                f"the law {law.name} needs a chat, whose prompt ends with the first assistant header, and the "
                f"tokenizer has no chat template: for plain text write {law.usage},prompt=0"
            )
        return others, cls(chat.assistant_header)

    def find(self, tokens: np.ndarray) -> int | None:
        """Return the number of tokens of the prompt; None while it has not ended."""
        if self.length is not None:
            return self.length
        ends = find_sequence(tokens, self.header)
        return int(ends[0]) + 1 if len(ends) else None

    @property
    def suffix(self) -> str:
        """The argument `prompt=N` of a specification; empty if the header is looked for."""
        return "" if self.length is None else f",prompt={self.length}"


class ScheduledLaw(SpecifiedLaw):
    """A law whose n-th erasure follows from the length of the prompt. Subclasses have a field `prompt`."""

    prompt: Prompt

    @abstractmethod
    def erasure(self, prompt: int, number: int) -> Erasure:
        """Return erasure `number`, counted from 0, after a prompt of `prompt` tokens; times increase."""

    def check_prompt(self, prompt: int) -> None:
        """Check that a prompt of this length fits.

        Raises:
            UserError: it does not.
        """

    @property
    def chat_tokens(self) -> Chat:
        return Chat(assistant_header=self.prompt.header)

    def schedule(self, prompt: int) -> Iterator[Erasure]:
        """Yield all erasures after a prompt of `prompt` tokens, without end."""
        self.check_prompt(prompt)
        return (self.erasure(prompt, number) for number in count())

    def erasures(self, token_ids: Tokens) -> list[Erasure]:
        tokens, found = np.asarray(token_ids, dtype=np.int64), []
        prompt = self.prompt.find(tokens)
        if prompt is None:
            return []
        for erasure in self.schedule(prompt):
            if erasure.expires_at > len(tokens):
                break
            found.append(erasure)
        return found

    def tracker(self) -> Tracker:
        return ScheduledTracker(self)


class ScheduledTracker(Tracker):
    """Incremental form of a `ScheduledLaw`."""

    def __init__(self, law: ScheduledLaw) -> None:
        self.law, self.num_read = law, 0
        self._header = SequenceMatcher(law.prompt.header)
        self._schedule = None if law.prompt.length is None else law.schedule(law.prompt.length)
        self._next = None if self._schedule is None else next(self._schedule)
        self._first = self._next  # the erasure of the first tokens that leave

    @property
    def first_erasable(self) -> int | None:
        return None if self._first is None else int(self._first.keys[0])

    def push(self, token: int) -> list[Erasure]:
        self.num_read += 1
        if self._schedule is None and self._header.push(token):
            self._schedule = self.law.schedule(self.num_read)
            self._first = self._next = next(self._schedule)
        if self._schedule is None or self._next is None or self._next.expires_at != self.num_read:
            return []
        due, self._next = self._next, next(self._schedule)
        return [due]
