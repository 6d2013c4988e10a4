"""What a defence is: an arm of the ablations, chosen by text and perhaps fitted to the traces at hand."""

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import ClassVar, Self

from ghosttrace.ablation.arms import Arm
from ghosttrace.data.task import Task
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.split import Split


@dataclass(frozen=True)
class Defence(ABC):
    """One defence: a frozen dataclass with `name`, `summary` and `arm`.

    A defence of your own is passed as an object, `audit(defence=MyDefence())`; to add it to the package, put it in a
    file of its own here and name it in `ghosttrace.auditing.defences.DEFENCES`.

    Attributes:
        name: as on the command line and in the results.
        summary: one line for the help text.
        usage: how it is given with its options.
        caveat: what a report must say of it whatever was measured; empty if there is nothing.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    usage: ClassVar[str] = ""
    caveat: ClassVar[str] = ""

    @classmethod
    def of(cls, options: str) -> Self:
        """The defence with options as text: what follows the colon.

        Raises:
            UserError: they are not what the defence takes.
        """
        raise UserError(f"the defence {cls.name} takes no options: give {cls.name} alone, without {options!r}")

    @property
    def spec(self) -> str:
        """The defence as the command line takes it, options included."""
        options = [self._text(value) for value in astuple(self)] if self.usage else []
        return ":".join([self.name, *filter(None, [",".join(options)])])

    @staticmethod
    def _text(value: object) -> str:
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, int | float) else str(value)

    @abstractmethod
    def arm(self, checkpoint: Checkpoint) -> Arm:
        """What becomes of the retained cache, as far as it is known before fitting."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that the defence does not fit.

        Raises:
            UserError: it does not; the sentence names the fix.
        """
        arm = self.arm(checkpoint)
        if arm.needs_counterfactuals:
            raise UserError(f"{arm.name} needs counterfactual blocks and is no defence: give one whose arm needs none")
        arm.adapt_policy(checkpoint.policy)
        arm.check(checkpoint.model)

    def fit(self, checkpoint: Checkpoint, task: Task, split: Split) -> Arm:
        """The arm that the defence is.

        Args:
            checkpoint: the model and its law.
            task: traces with secrets.
            split: a defence that learns does so from its train side alone.

        Raises:
            UserError: see `check`.
        """
        self.check(checkpoint)
        return self.arm(checkpoint)

    @classmethod
    def parse_integers(cls, options: str) -> tuple[int, ...]:
        """Options such as `2,3`.

        Raises:
            UserError: they are not whole numbers, at least 0.
        """
        parts = options.split(",")
        if not all(part.isdecimal() for part in parts):
            raise cls.option_error(options)
        return tuple(map(int, parts))

    @classmethod
    def option_error(cls, options: str) -> UserError:
        """What to raise where options cannot be read."""
        return UserError(f"the defence {cls.name} is given as {cls.usage}, not {cls.name}:{options}")
