"""Selection of a part of the cache by layers, key-value heads, keys or values, and carrier."""

from dataclasses import dataclass, replace
from typing import Literal

from ghosttrace.errors import UserError


@dataclass(frozen=True)
class Part:
    """Part of the retained cache that a sealing arm recomputes.

    Attributes:
        layers: Layer indices. None means all layers.
        heads: Key-value head indices. None means all heads.
        kv: Keys ("k"), values ("v") or both.
        carrier: The retained tokens to recompute, block delimiters or mementos. None means all retained tokens.
        last: Number of tokens at the end of each memento, `<|summary_end|>` included; requires the carrier
            "mementos". None means the whole memento.

    Raises:
        UserError: `last` is below 1 or is given for another carrier.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    kv: tuple[Literal["k", "v"], ...] = ("k", "v")
    carrier: Literal["delimiters", "mementos"] | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and (self.last < 1 or self.carrier != "mementos"):
            raise UserError("last selects tokens of mementos: give at least 1 and the carrier mementos")

    @property
    def is_whole_cache(self) -> bool:
        """Whether the part is the whole retained cache."""
        return self == Part()

    @property
    def python_text(self) -> str:
        """The part as Python text."""
        return f"ghosttrace.{self!r}"

    def check(self, n_layers: int, n_heads: int) -> None:
        """Check that the model has the selected layers and heads.

        Args:
            n_layers: Number of layers of the model.
            n_heads: Number of key-value heads of the model.

        Raises:
            UserError: A layer or head is out of range.
        """
        for kind, indices, count in (("layer", self.layers, n_layers), ("head", self.heads, n_heads)):
            for index in indices or ():
                if not 0 <= index < count:
                    plural = "key-value heads" if kind == "head" else "layers"
                    raise UserError(
                        f"{kind} {index} is out of range: the model has {count} {plural}, from 0 to {count - 1}"
                    )

    def of_carrier(self, carrier: Literal["delimiters", "mementos"]) -> "Part":
        """Return the same part, restricted to one carrier."""
        return replace(self, carrier=carrier)
