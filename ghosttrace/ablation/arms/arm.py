"""Base class of all arms: their law, their action on the retained cache when tokens expire, their presentation."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedModel

from ghosttrace.ablation.arms.part import Part
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import Law
from ghosttrace.law.parse import describe_law
from ghosttrace.model.session import Eraser, Session

DonorLookup = Callable[[tuple[int, ...], int, int], list[int] | None]
"""(row key, block number, length in tokens) to the token ids of a counterfactual block, or None for no swap."""


@dataclass(frozen=True)
class Arm:
    """One condition of an ablation.

    A subclass is a frozen dataclass that sets `name` and `summary` and overrides `eraser`, `adapt_policy` or both. Pass
    a custom arm as an object, `ghosttrace.ablate(model, arms=[MyArm()])`. To add an arm to the package, put it into its
    own file here and list it in `ghosttrace.ablation.arms.ARMS`.

    Attributes:
        name: Name in the results.
        summary: One-line description for the help text and the report.
        headline: Action of the arm as the subject of a sentence, such as "Closing the channel".
        colour: Colour of its bars and lines, as a hexadecimal RGB code.
        priority: The report's headline is about the arm with the highest priority in the run.
        sealed: Whether the cache is a function of the retained text alone.
        control: Whether the arm is a negative control. If it changes the accuracy, the run is invalid.
        caches: Number of KV caches held per row, the live cache included.
        default: Whether the arm runs if no arms are selected by name.
        options: Names of the fields that are set from the ablation settings: `part`, `size`.
        needs_counterfactuals: Whether the arm requires a benchmark that writes counterfactual blocks.
        any_law: Whether the arm runs under every law, and not under Memento's alone.
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
    any_law: ClassVar[bool] = False

    def adapt_policy(self, policy: Policy) -> Policy:
        """Return the policy that this arm runs with, given the checkpoint's policy.

        Raises:
            UserError: The arm cannot run with that policy.
        """
        if policy.keep_last_n_blocks < 0:
            raise UserError(
                f"{self.name} needs erased blocks, but keep_last_n_blocks -1 erases none: give --keep-last-n-blocks 0"
            )
        return policy

    def adapt_law(self, law: Law) -> Law:
        """Return the law that this arm runs with, given the checkpoint's law.

        Raises:
            UserError: The arm cannot run with that law.
        """
        if isinstance(law, MementoLaw):
            return replace(law, policy=self.adapt_policy(law.policy))
        if not self.any_law:
            raise UserError(
                f"{self.name} acts on blocks and mementos, which the law {law.spec} does not know: remove it"
            )
        return law

    def check(self, model: PreTrainedModel) -> None:
        """Check that the arm supports the model.

        Raises:
            UserError: The model is not supported.
        """

    def with_donors(self, donors: DonorLookup) -> "Arm":
        """Return the arm with a lookup of counterfactual blocks; arms that need none return themselves."""
        return self

    def without_noise(self) -> "Arm":
        """Return the arm without its random draws, for attackers that imitate the arm but do not know the draws."""
        return self

    def eraser(self, session: Session) -> Eraser:
        """Return the object that acts on the session's cache when tokens expire."""
        return Eraser(session)

    def describe(self, law: Law) -> dict[str, Any]:
        """Return the description of the arm as JSON values for run.json, from which reports are rendered.

        Args:
            law: The checkpoint's law.
        """
        recorded = ("name", "summary", "headline", "colour", "priority", "sealed", "control")
        options = {name: getattr(self, name) for name in self.options}
        options = {name: asdict(value) if isinstance(value, Part) else value for name, value in options.items()}
        described = {name: getattr(self, name) for name in recorded} | {"options": options}
        return described | describe_law(self.adapt_law(law))
