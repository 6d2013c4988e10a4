"""What an arm is: a policy, what happens to the retained cache when a block expires, and how it is presented."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.session import Eraser, Session

DonorLookup = Callable[[tuple[int, ...], int, int], list[int] | None]
"""(row key, block number, length) to the token ids of a counterfactual block, None for no swap."""


@dataclass(frozen=True)
class Arm:
    """One condition of an ablation: a frozen dataclass with its own `name`, `summary` and `eraser`.

    An arm of your own is passed as an object, `ghosttrace.ablate(model, arms=[MyArm()])`; to add it to the package,
    put it in a file of its own here and name it in `ghosttrace.ablation.arms.ARMS`.

    Attributes:
        name: as in the results.
        summary: one line for the help text and the report.
        headline: what the arm does, as the subject of a sentence: "Closing the channel".
        colour: of its bars and lines, as a hexadecimal RGB code.
        priority: the report's headline is about the arm with the highest priority among those that were run.
        sealed: its cache is a function of the retained text alone.
        control: it must change nothing; where it does, the run is invalid.
        caches: key-value caches that it holds for each row, the live one included.
        default: it runs where no arms are asked for by name.
        options: which of its fields the settings of an ablation fill in: `part`, `size`.
        needs_counterfactuals: it runs only on a benchmark that writes counterfactual blocks.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    headline: ClassVar[str] = "The arm"
    colour: ClassVar[str] = "#999999"
    priority: ClassVar[int] = 0
    sealed: ClassVar[bool] = False
    control: ClassVar[bool] = False
    caches: ClassVar[int] = 1
    default: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    needs_counterfactuals: ClassVar[bool] = False

    def adapt_policy(self, policy: Policy) -> Policy:
        """The policy this arm runs under, given the checkpoint's.

        Raises:
            UserError: the arm means nothing under that policy.
        """
        if policy.keep_last_n_blocks < 0:
            raise UserError(f"{self.name} acts when blocks are erased, and keep_last_n_blocks -1 erases none: give 0")
        return policy

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model on which the arm cannot be run.

        Raises:
            UserError: it cannot.
        """

    def with_donors(self, donors: DonorLookup) -> "Arm":
        """The arm with a benchmark's counterfactual blocks; only arms that need them differ."""
        return self

    def without_noise(self) -> "Arm":
        """The arm without what it draws at random, as an attacker who does not know the draws would imitate it."""
        return self

    def eraser(self, session: Session) -> Eraser:
        """What acts when blocks expire in a batch."""
        return Eraser(session)

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The arm as run.json records it, for reports that know nothing of arms: JSON values.

        Args:
            policy: the checkpoint's.
        """
        shown = ("name", "summary", "headline", "colour", "priority", "sealed", "control")
        return {name: getattr(self, name) for name in shown} | {"policy": self.adapt_policy(policy).to_dict()}
