"""What an arm is: a policy, and what happens to the retained cache when a block expires."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.session import Eraser, Session


@dataclass(frozen=True)
class Arm:
    """One condition of an ablation. To add one, write a file here and a row in `ARMS`.

    Attributes:
        name: as in the results.
        summary: one line for the help text.
        sealed: its cache is a function of the retained text alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    sealed: ClassVar[bool] = False

    def law(self, policy: Policy) -> Policy:
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

    def eraser(self, session: Session) -> Eraser:
        """What acts when blocks expire in a batch."""
        return Eraser(session)


@dataclass(frozen=True)
class Part:
    """A part of the cache: which layers, key-value heads, of keys or values, of which carrier.

    None means all of them.

    Attributes:
        last: of each memento only the last so many tokens, `<|summary_end|>` included; the carrier is
            then `mementos`.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    kv: tuple[Literal["k", "v"], ...] = ("k", "v")
    carrier: Literal["delimiters", "mementos"] | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and (self.last < 1 or self.carrier != "mementos"):
            raise UserError("the last tokens of a carrier are those of mementos, and at least 1")

    @property
    def whole(self) -> bool:
        """Nothing is left out."""
        return self == Part()

    def check(self, n_layers: int, n_heads: int) -> None:
        """Refuse what a model does not have.

        Raises:
            UserError: a layer or head is out of range.
        """
        for what, chosen, count in (("layer", self.layers, n_layers), ("head", self.heads, n_heads)):
            for number in chosen or ():
                if not 0 <= number < count:
                    kind = "key-value heads" if what == "head" else "layers"
                    raise UserError(
                        f"{what} {number} is out of range: the model has {count} {kind}, from 0 to {count - 1}"
                    )

    def of_carrier(self, carrier: Literal["delimiters", "mementos"]) -> "Part":
        """The same part of one carrier alone."""
        return replace(self, carrier=carrier)
