"""The base class of defences."""

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
    """Base class of defences. A subclass is a frozen dataclass that sets `name` and `summary` and defines `arm`.

    A defence is an ablation arm that is selected by name and may be fitted to the training traces. Pass a defence of
    your own as an object: `audit(defence=MyDefence())`. To add a defence to the package, put it in its own file in this
    folder and list it in `ghosttrace.auditing.defences.DEFENCES`.

    Attributes:
        name: Name on the command line and in the results.
        summary: One line for the help text.
        usage: Syntax of the defence with its options; empty if it has none.
        caveat: A sentence that every report on the defence must contain; empty if there is none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    usage: ClassVar[str] = ""
    caveat: ClassVar[str] = ""

    @classmethod
    def from_options(cls, options: str) -> Self:
        """Build the defence from the text after the colon on the command line.

        Raises:
            UserError: The defence does not accept the options.
        """
        raise UserError(f"the defence {cls.name} takes no options: give {cls.name} alone, without {options!r}")

    @property
    def spec(self) -> str:
        """The defence as given on the command line, options included."""
        options = [self._format_option(value) for value in astuple(self)] if self.usage else []
        return ":".join([self.name, *filter(None, [",".join(options)])])

    @staticmethod
    def _format_option(value: object) -> str:
        """Return an option as text."""
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, int | float) else str(value)

    @abstractmethod
    def arm(self, checkpoint: Checkpoint) -> Arm:
        """Return the ablation arm before fitting."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint with which the defence cannot be used.

        Raises:
            UserError: The law or the model of the checkpoint does not fit the defence.
        """
        arm = self.arm(checkpoint)
        if arm.needs_counterfactuals:
            raise UserError(
                f"the arm {arm.name} needs counterfactual blocks and cannot be a defence: give one that needs none"
            )
        arm.adapt_law(checkpoint.law)
        arm.check(checkpoint.model)

    def fit(self, checkpoint: Checkpoint, task: Task, split: Split) -> Arm:
        """Fit the defence and return its ablation arm.

        Args:
            checkpoint: Model, tokenizer, markup and policy.
            task: Traces with secrets.
            split: Train, validation and test samples; defences are fitted on train only.

        Raises:
            UserError: See `check`.
        """
        self.check(checkpoint)
        return self.arm(checkpoint)

    @classmethod
    def parse_integers(cls, options: str) -> tuple[int, ...]:
        """Parse comma-separated integers, such as `2,3`.

        Raises:
            UserError: An option is not an integer of at least 0.
        """
        parts = options.split(",")
        if not all(part.isdecimal() for part in parts):
            raise cls.option_error(options)
        return tuple(map(int, parts))

    @classmethod
    def option_error(cls, options: str) -> UserError:
        """Return the error to raise for invalid options."""
        return UserError(f"the defence {cls.name} is given as {cls.usage}, not {cls.name}:{options}")
