"""A site of a probe: the states of a cache that it reads."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.features import Features, StateKind

Kv = Literal["k", "v", "kv", "hidden"]


@dataclass(frozen=True)
class ProbeSite:
    """The states that a probe reads.

    Attributes:
        carrier: The carrier.
        layers: Layers of the model; the states of several are concatenated.
        kv: Kind of states.
        head: Key-value head; None for all.
        layers_name: Value of the column `layer` for several layers.
    """

    carrier: Carrier
    layers: tuple[int, ...]
    kv: Kv
    head: int | None = None
    layers_name: str = "joint"

    @property
    def result_columns(self) -> dict[str, Any]:
        """The site in the columns of the results: carrier, hop, layer, kv and head."""
        layer = str(self.layers[0]) if len(self.layers) == 1 else self.layers_name
        head = "all" if self.head is None else str(self.head)
        return {"carrier": self.carrier.name, "hop": self.carrier.hop, "layer": layer, "kv": self.kv, "head": head}

    def read(self, features: Features) -> Tensor:
        """Load the states of all N samples, flattened to float32[N, d]."""
        kinds: tuple[StateKind, ...] = ("k", "v") if self.kv == "kv" else (self.kv,)
        heads = None if self.head is None else (self.head,)
        parts = [features.load(self.carrier, layer, kind, heads) for layer in self.layers for kind in kinds]
        return torch.cat(parts, dim=2).flatten(1)
