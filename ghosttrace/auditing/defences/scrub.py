"""The defence `scrub`: some layers of the retained tokens are recomputed without the erased blocks."""

from dataclasses import dataclass
from typing import Self

from ghosttrace.ablation.arms import Arm, Part, Restart
from ghosttrace.auditing.defences.defence import Defence
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.geometry import CacheGeometry


@dataclass(frozen=True)
class ScrubDefence(Defence):
    """Defence that seals chosen layers.

    Attributes:
        layers: Layer indices, counted from 0; empty for the last layer.
    """

    name = "scrub"
    summary = "chosen layers of the retained tokens recomputed without the blocks; the last layer by default"
    usage = "scrub or scrub:LAYER,LAYER,…"
    layers: tuple[int, ...] = ()

    @classmethod
    def from_options(cls, options: str) -> Self:
        return cls(cls.parse_integers(options))

    def check(self, checkpoint: Checkpoint) -> None:
        geometry = CacheGeometry.from_config(checkpoint.model.config)
        Part(self.layers).check(geometry.layers, geometry.kv_heads)
        super().check(checkpoint)

    def arm(self, checkpoint: Checkpoint) -> Arm:
        return Restart(Part(self.layers or (CacheGeometry.from_config(checkpoint.model.config).layers - 1,)))
