"""The defence `partial`: the last tokens of each memento are recomputed without its block, in the upper layers.

The whole memento is recomputed, and only the states of the selected tokens and layers are replaced. Recomputing the
last tokens from unchanged first tokens would transfer information about the block again. The defence therefore costs
as much prefill as `restart`; its advantage is that the rest of the memento is unchanged.
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
    """Defence that seals the last tokens of each memento.

    Attributes:
        last: Number of tokens, `<|summary_end|>` included.
        lowest_layer: Lowest sealed layer, counted from 0; all layers above it are sealed too.
    """

    name = "partial"
    summary = "only the last tokens of each memento recomputed without its block, in the upper layers or in all"
    usage = "partial:TOKENS or partial:TOKENS,LOWEST_LAYER"
    last: int = 3
    lowest_layer: int = 0

    @classmethod
    def from_options(cls, options: str) -> Self:
        values = cls.parse_integers(options)
        if len(values) > 2 or values[0] < 1:
            raise cls.option_error(options)
        return cls(*values)

    def check(self, checkpoint: Checkpoint) -> None:
        layers = CacheGeometry.from_config(checkpoint.model.config).layers
        if self.lowest_layer >= layers:
            raise UserError(
                f"partial starts at layer {self.lowest_layer}, but the model has layers 0 to {layers - 1}: "
                "give a lower layer"
            )
        super().check(checkpoint)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        upper_layers = (
            tuple(range(self.lowest_layer, CacheGeometry.from_config(checkpoint.model.config).layers))
            if self.lowest_layer
            else None
        )
        return SealMementos(Part(upper_layers, carrier="mementos", last=self.last))
