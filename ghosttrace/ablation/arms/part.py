"""Which part of a cache an arm acts on: layers, key-value heads, keys or values, and which carrier."""

from dataclasses import dataclass, replace
from typing import Literal

from ghosttrace.errors import UserError


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
    def is_whole_cache(self) -> bool:
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
