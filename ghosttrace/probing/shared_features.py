"""Features in the memory that Ray shares with its workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.features import Features, StateKind


@dataclass(frozen=True)
class SharedFeatures(Features):
    """Extracted states that workers load without the files.

    Attributes:
        shards: For each shard, Ray's references to its tensors, by their names.
    """

    shards: tuple[Mapping[str, Any], ...] = ()

    def load(self, carrier: Carrier, layer: int, kind: StateKind, heads: Sequence[int] | None = None) -> Tensor:
        """Load the states of one carrier and layer, as `Features.load` does."""
        import ray

        tensors = ray.get([shard[f"{carrier.key}.{layer}.{kind}"] for shard in self.shards])
        if heads is not None and kind != "hidden":
            tensors = [tensor[:, :, list(heads)] for tensor in tensors]
        return torch.cat([tensor.flatten(2).float() for tensor in tensors])


def share(features: Mapping[str, Features]) -> dict[str, Features]:
    """Put features into the memory that Ray shares with its workers, which moves what does not fit there to disk."""
    import ray

    def shared(each: Features) -> SharedFeatures:
        shards = []
        for path in each.paths:
            with safe_open(path, "pt") as shard:
                shards.append({name: ray.put(shard.get_tensor(name)) for name in shard.keys()})  # noqa: SIM118
        return SharedFeatures(each.paths, tuple(shards))

    return {cache: shared(each) for cache, each in features.items()}
