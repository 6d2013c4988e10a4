"""The protocol of eviction laws: which tokens leave the cache, when, and who could see them before.

A law is a function of the tokens alone. It has a vector form, `Law.erasures`, for complete sequences and an incremental
form, `Tracker`, that generation feeds one token at a time; the tests compare both with a brute-force simulation on
arbitrary streams. Memento's grammar (`ghosttrace.law.expiry.MementoLaw`) is one law. The others each have a file of
their own (`ghosttrace.law.parse` lists them). All of them evict a token for all layers and heads at once, and for good:
only then does one expiry per token describe what a query sees.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Erasure:
    """Tokens that leave the cache together.

    Attributes:
        keys: token indices that leave, in ascending order.
        expires_at: token index of the first query that no longer sees `keys`.
    """

    keys: range | np.ndarray
    expires_at: int

    @property
    def carriers(self) -> range:
        """Token indices that could see what leaves; those among them that are retained are the carriers."""
        return range(int(self.keys[0]), self.expires_at)

    @property
    def first_affected(self) -> int:
        """Token index of the first token whose probability depends on what is done at this erasure."""
        return self.expires_at

    @property
    def selector(self) -> slice | np.ndarray:
        """Index of `keys` into an array over tokens."""
        return slice(self.keys.start, self.keys.stop) if isinstance(self.keys, range) else self.keys


class Tracker(ABC):
    """Incremental form of a law: a state machine that reads one token at a time."""

    @property
    def first_erasable(self) -> int | None:
        """The first token index that may leave now or later, given the tokens read so far; None if none of them may.

        Tokens before it never leave, and see all tokens before them, so that sequences may share their keys and values.
        A law that does not know says that all may leave.
        """
        return 0

    @abstractmethod
    def push(self, token: int) -> Sequence[Erasure]:
        """Process the next token and return the erasures that it triggers.

        Args:
            token: id of the token at index p, where p is the number of tokens pushed before.

        Returns:
            Erasures whose `expires_at` is p or p + 1; usually none.

        Raises:
            UserError: the law cannot hold for these tokens; for example, the prompt does not fit into a window.
        """


class Law(ABC):
    """A rule for which tokens leave the cache and when.

    Attributes:
        name: name of the law.
        replayed: whether the law knows the evictions of recorded tokens only, so that new text cannot be generated.
    """

    name: ClassVar[str]
    replayed: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """Specification of the law, as the option `--law` takes it."""
        return self.name

    @abstractmethod
    def tracker(self) -> Tracker:
        """Return the incremental form, before the first token."""

    @abstractmethod
    def erasures(self, token_ids: Tokens) -> Sequence[Erasure]:
        """Return every erasure within or right after a complete sequence, ordered by `expires_at`.

        Args:
            token_ids: int[T], one unpadded sequence.

        Raises:
            UserError: see `Tracker.push`.
        """

    @property
    def erases_after_reading(self) -> bool:
        """Whether keys leave as soon as the token that triggers the erasure has been processed.

        If False, the next token triggers the erasure before it is processed itself.
        """
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the law as recorded in run.json."""
        return {"spec": self.spec}


class SpecifiedLaw(Law):
    """A law that the user names by its specification, `name:arguments`.

    A subclass is a frozen dataclass in its own file. To add one, list it in `ghosttrace.law.parse.LAWS` and in the
    matrix of `tests/helpers/laws.py`.

    Attributes:
        usage: form of the specification, such as `window:SIZE,STRIDE`.
    """

    usage: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, arguments: str, chat: Chat) -> "SpecifiedLaw":
        """Build the law from its arguments, the part of a specification after the colon.

        Args:
            arguments: such as `64,16`.
            chat: tokens of the model's chat format.

        Raises:
            UserError: the arguments are invalid, or the law needs something that the chat format lacks.
        """

    @property
    def chat_tokens(self) -> Chat:
        """Tokens of the chat format that the law reads."""
        return Chat()

    def to_dict(self) -> dict[str, Any]:
        """Return the law as recorded in run.json; `ghosttrace.law.parse.law_from_dict` reads it back."""
        return super().to_dict() | {"chat": asdict(self.chat_tokens)}


class NothingRead(Tracker):
    """Tracker of a law that never erases."""

    @property
    def first_erasable(self) -> None:
        return None

    def push(self, token: int) -> list[Erasure]:
        return []


@dataclass(frozen=True)
class KeepAll(SpecifiedLaw):
    """The law under which nothing leaves."""

    name = "none"
    usage = "none"

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "KeepAll":
        if arguments:
            raise UserError(f"the law none takes no arguments, not {arguments!r}")
        return cls()

    def tracker(self) -> Tracker:
        return NothingRead()

    def erasures(self, token_ids: Tokens) -> list[Erasure]:
        return []


def parse_counts(law: type[SpecifiedLaw], arguments: str, minima: Sequence[int]) -> list[int]:
    """Return the comma-separated integers of a specification.

    Args:
        law: the law that is being parsed, for the message.
        arguments: such as `64,16`.
        minima: smallest allowed value of each integer.

    Raises:
        UserError: there are more or fewer integers, or one is below its minimum.
    """
    parts = arguments.split(",")
    if len(parts) == len(minima) and all(part.strip().isdecimal() for part in parts):
        counts = [int(part) for part in parts]
        if all(count >= minimum for count, minimum in zip(counts, minima, strict=True)):
            return counts
    limits = " and ".join(str(minimum) for minimum in minima)
    raise UserError(
        f"the law {law.name} is written {law.usage} with integers of at least {limits}, not {law.name}:{arguments}"
    )
