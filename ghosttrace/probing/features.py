"""Features: the cached states of many traces at chosen carriers, as shards on the disk.

One masked forward pass a trace and condition, or another reader if one is given. A shard holds a few
hundred traces, one tensor a carrier, layer and kind of state, so that a probe of one layer reads that
layer alone: memory never holds more than one shard while writing, or one site of all traces while
reading. A shard appears whole or not at all; one that is there already, made from the same model and
traces, is not made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ghosttrace.data.task import Sample, Task
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import erasures
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.states import States, read_states
from ghosttrace.probing.carriers import Carrier, padded_token_indices

StateReader = Callable[[Sequence[np.ndarray], Sequence[int], Sequence[np.ndarray]], States]
"""From B sequences, int64[T] each, their numbers in the task, and places in each, int64[P]."""

StateKind = Literal["k", "v", "hidden"]
LAYOUTS = {"open": open_layout, "sealed": sealed_layout}
TRACES_PER_SHARD = 512  # traces


@dataclass(frozen=True)
class StateSelection:
    """What to read of each trace.

    Attributes:
        cache: `open`, as the model leaves it; `sealed`, recomputed from the retained text alone; or the name
            of what a reader of its own leaves.
        carriers: where.
        layers: of the model, counted from 0.
        hidden: the residual stream as well.
    """

    cache: str
    carriers: tuple[Carrier, ...]
    layers: tuple[int, ...]
    hidden: bool = False


@dataclass(frozen=True)
class Features:
    """Shards on the disk."""

    paths: tuple[Path, ...]

    def load(self, carrier: Carrier, layer: int, kind: StateKind, heads: Sequence[int] | None = None) -> Tensor:
        """One site of all traces.

        Args:
            carrier, layer: among those extracted.
            kind: keys, values or hidden states.
            heads: key-value heads; all of them if None. Hidden states have none.

        Returns:
            float32[N, tokens, heads x dim] on the CPU; tokens is 1 if the carrier is pooled by mean.
        """
        parts = []
        for path in self.paths:
            with safe_open(path, "pt") as shard:
                states = shard.get_tensor(f"{carrier.key}.{layer}.{kind}")  # [n, P, H, D] or [n, P, d]
            if heads is not None and kind != "hidden":
                states = states[:, :, list(heads)]
            parts.append(states.flatten(2).float())
        return torch.cat(parts)


def extract_features(
    checkpoint: Checkpoint,
    task: Task,
    selection: StateSelection,
    folder: Path,
    batch_tokens: int = 16_384,
    progress: Callable[[int, int], None] | None = None,
    read: StateReader | None = None,
) -> Features:
    """Read the states of every trace of a task, or find them read.

    Args:
        checkpoint: the model and its law.
        task: the traces.
        selection: what to read of them.
        folder: for the shards; made if it is not there.
        batch_tokens: traces read together, padding included.
        progress: called with (traces done, traces in all).
        read: what reads a batch; for `open` and `sealed` caches one masked pass. Keys and values alone, if given.

    Raises:
        UserError: a carrier that no trace has, delimiters that are erased, states that are not finite.
    """
    if checkpoint.policy.mask_delimiters and any(carrier.kind == "delimiters" for carrier in selection.carriers):
        raise UserError("no trace keeps its delimiters: this policy erases them with their block (--keep-delimiters)")
    samples, section = task.samples, checkpoint.policy.require_assistant_section
    blocks = [find_blocks(sample.ids, checkpoint.markup, section) for sample in samples]
    places = {carrier: padded_token_indices(carrier, samples, blocks) for carrier in selection.carriers}
    folder.mkdir(parents=True, exist_ok=True)
    digest = features_digest(checkpoint, task, selection)
    read = read or partial(_one_pass, checkpoint, selection)
    paths = []
    for begin in range(0, len(samples), TRACES_PER_SHARD):
        rows = range(begin, min(begin + TRACES_PER_SHARD, len(samples)))
        paths.append(folder / f"{selection.cache}-{begin // TRACES_PER_SHARD:05d}.safetensors")
        if not _made(paths[-1], digest):
            tensors = _shard(checkpoint, task, selection, rows, places, batch_tokens, read)
            unsettled = paths[-1].with_suffix(".part")
            save_file(tensors, unsettled, {"provenance": digest})
            unsettled.replace(paths[-1])
        if progress:
            progress(rows.stop, len(samples))
    return Features(tuple(paths))


def resolve_layers(checkpoint: Checkpoint, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers, ascending; all of the model's if None.

    Raises:
        UserError: the model has no such layer.
    """
    count = CacheGeometry.from_config(checkpoint.model.config).layers
    chosen = () if layers is None else tuple(sorted(set(map(int, layers))))
    for layer in chosen:
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} is out of range: the model has {count} layers, from 0 to {count - 1}")
    return chosen or tuple(range(count))


def features_digest(checkpoint: Checkpoint, task: Task, selection: StateSelection) -> str:
    """SHA-256 of all that decides the features: weights, law, traces, and what is read."""
    digest = sha256(repr((fingerprint(checkpoint), checkpoint.policy, selection, checkpoint.model.dtype)).encode())
    for sample in task.samples:
        digest.update(repr((list(sample.ids), sample.block, sample.secret_indices)).encode())
    return digest.hexdigest()


def _made(path: Path, digest: str) -> bool:
    try:
        with safe_open(path, "pt") as shard:
            return (shard.metadata() or {}).get("provenance") == digest
    except (FileNotFoundError, SafetensorError):
        return False


def _shard(
    checkpoint: Checkpoint,
    task: Task,
    selection: StateSelection,
    rows: range,
    places: dict[Carrier, tuple[np.ndarray, np.ndarray]],
    batch_tokens: int,
    read: StateReader,
) -> dict[str, Tensor]:
    """The tensors of one shard, in the order of its rows."""
    everything = np.concatenate([at for at, _ in places.values()], axis=1)  # int64[N, all places]
    ends = {row: _end(checkpoint, task.samples[row], int(everything[row].max()) + 1) for row in rows}
    parts: list[dict[str, Tensor]] = []
    order = sorted(rows, key=ends.__getitem__)
    for batch in batch_by_tokens(order, ends, batch_tokens):
        ids = [np.asarray(task.samples[row].ids)[: ends[row]] for row in batch]
        states = read(ids, batch, list(everything[batch]))
        weights = {carrier: weight[batch] for carrier, (_, weight) in places.items()}
        parts.append(_named(states, selection, weights))
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return {name: torch.cat([part[name] for part in parts])[back].contiguous() for name in parts[0]}


def _one_pass(
    checkpoint: Checkpoint,
    selection: StateSelection,
    ids: Sequence[np.ndarray],
    rows: Sequence[int],
    places: Sequence[np.ndarray],
) -> States:
    layouts = [LAYOUTS[selection.cache](tokens, checkpoint.markup, checkpoint.policy) for tokens in ids]
    return read_states(checkpoint.model, layouts, places, selection.hidden)


def _end(checkpoint: Checkpoint, sample: Sample, end: int) -> int:
    """How much of a trace is read: what stands behind `end` is not, but for what a memento there waits for.

    Raises:
        UserError: the block with the secret is never erased.
    """
    gone = erasures(sample.ids, checkpoint.markup, checkpoint.policy)
    blocks = find_blocks(sample.ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    if not 0 <= sample.block < len(blocks) or blocks[sample.block] not in [erasure.block for erasure in gone]:
        raise UserError(
            f"block {sample.block} of trace {sample.base} is never erased under this policy: "
            "hide the secret in an earlier block, or give --keep-last-n-blocks 0"
        )
    # One more: a block that stays for the answer expires as the token at this place is read.
    return min((erasure.expires_at + 1 for erasure in gone if erasure.expires_at >= end), default=end)


def batch_by_tokens(order: Sequence[int], lengths: Mapping[int, int], tokens: int) -> list[list[int]]:
    """Rows in order of length, in batches that stay under so many tokens, padding included."""
    batches: list[list[int]] = [[]]
    for row in order:
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _named(states: States, selection: StateSelection, weights: dict[Carrier, np.ndarray]) -> dict[str, Tensor]:
    """States as a shard names them: [n, P, H, D] for keys and values, [n, P, d] for hidden states."""
    found: dict[str, Tensor] = {}
    begin = 0
    for carrier, weight in weights.items():
        here = slice(begin, begin + weight.shape[1])
        begin = here.stop
        for layer in selection.layers:
            kinds = {"k": states.keys[layer][:, :, here].transpose(1, 2)}
            kinds["v"] = states.values[layer][:, :, here].transpose(1, 2)
            if states.hidden is not None:
                kinds["hidden"] = states.hidden[layer][:, here]
            for kind, tensor in kinds.items():
                if carrier.pool == "mean":
                    scale = torch.from_numpy(weight).to(tensor).reshape(*weight.shape, *[1] * (tensor.ndim - 2))
                    tensor = (tensor * scale).sum(1, keepdim=True)
                found[f"{carrier.key}.{layer}.{kind}"] = tensor.cpu()
    return found
