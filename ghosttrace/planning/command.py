"""The command line of an instrument that is planned, and what it says about the size of the run."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ghosttrace.errors import UserError

INSTRUMENTS = ("ablate", "bits", "probe", "patch", "audit", "sft", "rl")
"""Commands that can be planned."""

NOT_PLANNED = {
    "--out": "a calibration writes short runs in folders of its own",
    "--resume": "a calibration starts runs of its own, and an unfinished run cannot be planned",
    "--help": "it runs nothing",
}
"""Options that a planned command may not have, each with the reason."""


@dataclass(frozen=True)
class Command:
    """Command line of an instrument.

    Attributes:
        instrument: One of `INSTRUMENTS`.
        arguments: Its options, as on the command line.
    """

    instrument: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, command: str | Sequence[str]) -> "Command":
        """Split a command line, with or without `ghosttrace` at its beginning.

        Raises:
            UserError: It names no instrument, or an option that has no place in a calibration.
        """
        words = shlex.split(command) if isinstance(command, str) else list(map(str, command))
        words = words[1:] if words[:1] == ["ghosttrace"] else words
        if not words or words[0] not in INSTRUMENTS:
            given = repr(words[0]) if words else "nothing"
            raise UserError(
                f"{given} is no instrument to plan: give the command line of one of {', '.join(INSTRUMENTS)}"
            )
        parsed = cls(words[0], tuple(words[1:]))
        for name, reason in NOT_PLANNED.items():
            if parsed.has(name):
                raise UserError(f"{name} cannot be planned, because {reason}: leave it out")
        return parsed

    def __str__(self) -> str:
        return shlex.join((self.instrument, *self.arguments))

    def has(self, *names: str) -> bool:
        """Return whether one of these options is given."""
        return any(word.partition("=")[0] in names for word in self.arguments)

    def values(self, *names: str) -> list[str]:
        """Return all values that are given for an option, which may have several spellings."""
        found = []
        for word, following in zip(self.arguments, (*self.arguments, "")[1:], strict=True):
            name, equals, value = word.partition("=")
            if name in names:
                found.append(value if equals else following)
        return found

    def value(self, *names: str) -> str | None:
        """Return the last value of an option, which is the one that counts; None if it is not given."""
        return next(reversed(self.values(*names)), None)

    def integer(self, *names: str) -> int | None:
        """Return the value of an option as a number; None if it is not given.

        Raises:
            UserError: It is no number, or below 1.
        """
        text = self.value(*names)
        if text is None:
            return None
        try:
            number = int(text)
        except ValueError as error:
            raise UserError(f"{names[0]} must be a number, not {text!r}") from error
        if number < 1:
            raise UserError(f"{names[0]} must be at least 1, not {number}")
        return number

    def with_size(self, option: str, size: int) -> list[str]:
        """Return the words of the command with another size; the last value of an option counts."""
        return [self.instrument, *self.arguments, option, str(size)]
