"""A part of each memento recomputed without its block: its last tokens, in the upper layers.

The new states are those of a whole recomputation, put in where they are wanted: recomputing the last
tokens over first ones that have seen the block would let it through again. So the pass costs what
`restart` costs, and what is gained is what the rest of the memento keeps.
"""

from dataclasses import dataclass
from typing import Self

from ghosttrace.ablation.arms import Arm, Part, SealMementos
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry


@dataclass(frozen=True)
class PartialDefence(Defence):
    """The last tokens of each memento sealed.

    Attributes:
        last: how many tokens, `<|summary_end|>` included.
        lowest_layer: from this layer up, counted from 0.
    """

    name = "partial"
    summary = "only the last tokens of each memento recomputed without its block, in the upper layers or in all"
    usage = "partial:TOKENS or partial:TOKENS,LOWEST_LAYER"
    last: int = 3
    lowest_layer: int = 0

    @classmethod
    def of(cls, options: str) -> Self:
        found = cls.parse_integers(options)
        if len(found) > 2 or found[0] < 1:
            raise cls.option_error(options)
        return cls(*found)

    def check(self, checkpoint: Checkpoint) -> None:
        layers = CacheGeometry.from_config(checkpoint.model.config).layers
        if self.lowest_layer >= layers:
            raise UserError(
                f"partial begins at layer {self.lowest_layer}, and the model has layers 0 to {layers - 1}: give a lower one"
            )
        super().check(checkpoint)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        upper = (
            tuple(range(self.lowest_layer, CacheGeometry.from_config(checkpoint.model.config).layers))
            if self.lowest_layer
            else None
        )
        return SealMementos(Part(upper, carrier="mementos", last=self.last))
