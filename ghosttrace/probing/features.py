"""Features: the cached states of many traces at chosen carriers, stored as shards on disk.

States are read in one masked forward pass per trace and condition, or by a custom reader. A shard holds
`TRACES_PER_SHARD` traces, with one tensor per carrier, layer and kind of state, so that a probe of one layer reads
that layer only. Memory holds at most one shard while writing, and one site of all traces while reading. Shards are
written atomically. A shard that already exists for the same model and traces is reused.
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
from ghosttrace.law.expiry import NEVER, MementoLaw, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.parse import describe_law
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.pool import ModelPool, map_units
from ghosttrace.model.states import States, read_states
from ghosttrace.probing.carriers import Carrier, check_carriers, divide, padded_token_indices

StateReader = Callable[[Sequence[np.ndarray], Sequence[int], Sequence[np.ndarray]], States]
"""Reads states from B token id sequences, int64[T] each, their sample indices, and token indices in each, int64[P]."""

StateKind = Literal["k", "v", "hidden"]
LAYOUTS = {"open": open_layout, "sealed": sealed_layout}
TRACES_PER_SHARD = 512


@dataclass(frozen=True)
class StateSelection:
    """The states to read from each trace.

    Attributes:
        cache: `open`, the normal cache; `sealed`, recomputed from the retained text alone; or any name for the
            cache of a custom reader.
        carriers: Carriers to read.
        layers: Layers of the model, counted from 0.
        hidden: Whether to read the residual stream as well.
    """

    cache: str
    carriers: tuple[Carrier, ...]
    layers: tuple[int, ...]
    hidden: bool = False


@dataclass(frozen=True)
class Features:
    """Extracted states of all traces of a task.

    Attributes:
        paths: The shards, in the order of the traces.
    """

    paths: tuple[Path, ...]

    def load(self, carrier: Carrier, layer: int, kind: StateKind, heads: Sequence[int] | None = None) -> Tensor:
        """Load the states of one carrier and layer for all N traces.

        Args:
            carrier: An extracted carrier.
            layer: An extracted layer.
            kind: `k` for keys, `v` for values, or `hidden`.
            heads: Key-value heads to load, None for all; ignored for hidden states.

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
    pool: ModelPool | None = None,
) -> Features:
    """Extract the states of every trace of a task, reusing shards that exist.

    Args:
        checkpoint: The model and its law.
        task: The task.
        selection: The states to read.
        folder: Folder for the shards; created if missing.
        batch_tokens: Maximum number of tokens per batch, padding included.
        progress: Called with (traces done, total traces).
        read: Custom reader of a batch, which returns keys and values only. By default one masked forward pass, for
            `open` and `sealed` caches.
        pool: Workers that read the states; None reads them here.

    Returns:
        The extracted states.

    Raises:
        UserError: A carrier is missing from a trace, the law does not know or retain a carrier, a secret is never
            erased, or a state is not finite.
    """
    check_carriers([carrier.kind for carrier in selection.carriers if carrier.kind != "secret"], checkpoint)
    samples = task.samples
    check_erased(checkpoint, samples)
    traces = divide(checkpoint, samples)
    pooled_indices = {carrier: padded_token_indices(carrier, traces) for carrier in selection.carriers}
    folder.mkdir(parents=True, exist_ok=True)
    digest = features_digest(checkpoint, task, selection)
    read = read or partial(_one_pass, checkpoint, selection)
    shards = {
        folder / f"{selection.cache}-{number:05d}.safetensors": range(
            begin, min(begin + TRACES_PER_SHARD, len(samples))
        )
        for number, begin in enumerate(range(0, len(samples), TRACES_PER_SHARD))
    }
    missing = {path: rows for path, rows in shards.items() if not _is_complete(path, digest)}
    done = len(samples) - sum(map(len, missing.values()))
    if progress and done:
        progress(done, len(samples))
    here = progress if pool is None else None  # workers do not report within a shard
    read_shard = partial(_read_shard, checkpoint, task, selection, pooled_indices, batch_tokens, read, here)
    for number, tensors in map_units(read_shard, list(missing.values()), pool):
        path = list(missing)[number]
        save_file(tensors, path.with_suffix(".part"), {"provenance": digest})
        path.with_suffix(".part").replace(path)
        done += len(missing[path])
        if progress:
            progress(done, len(samples))
    return Features(tuple(shards))


def resolve_layers(checkpoint: Checkpoint, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the chosen layers without duplicates, ascending; all layers of the model if None or empty.

    Raises:
        UserError: A layer is out of range.
    """
    count = CacheGeometry.from_config(checkpoint.model.config).layers
    chosen = () if layers is None else tuple(sorted(set(map(int, layers))))
    for layer in chosen:
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} is out of range: the model has {count} layers, from 0 to {count - 1}")
    return chosen or tuple(range(count))


def features_digest(checkpoint: Checkpoint, task: Task, selection: StateSelection) -> str:
    """Return the SHA-256 hex digest of everything that determines the features: model, law, traces, selection."""
    law = describe_law(checkpoint.law)
    digest = sha256(repr((fingerprint(checkpoint), law, selection, checkpoint.model.dtype)).encode())
    for sample in task.samples:
        digest.update(repr((list(sample.ids), sample.block, sample.secret_indices)).encode())
    return digest.hexdigest()


def _is_complete(path: Path, digest: str) -> bool:
    """Return whether the shard exists and was made from the same inputs."""
    try:
        with safe_open(path, "pt") as shard:
            return (shard.metadata() or {}).get("provenance") == digest
    except (FileNotFoundError, SafetensorError):
        return False


def _read_shard(
    checkpoint: Checkpoint,
    task: Task,
    selection: StateSelection,
    pooled_indices: dict[Carrier, tuple[np.ndarray, np.ndarray]],
    batch_tokens: int,
    read: StateReader,
    progress: Callable[[int, int], None] | None,
    rows: range,
) -> dict[str, Tensor]:
    """Read the tensors of one shard, in the order of its rows; `progress` is called after every batch."""
    indices = np.concatenate([per_carrier for per_carrier, _ in pooled_indices.values()], axis=1)  # int64[N, P]
    ends = {row: _num_tokens_to_read(checkpoint, task.samples[row], int(indices[row].max()) + 1) for row in rows}
    parts: list[dict[str, Tensor]] = []
    done = rows.start
    order = sorted(rows, key=ends.__getitem__)
    for batch in batch_by_tokens(order, ends, batch_tokens):
        ids = [np.asarray(task.samples[row].ids)[: ends[row]] for row in batch]
        states = read(ids, batch, list(indices[batch]))
        weights = {carrier: weight[batch] for carrier, (_, weight) in pooled_indices.items()}
        parts.append(_named_tensors(states, selection, weights))
        done += len(batch)
        if progress:
            progress(done, len(task.samples))
    original_order = torch.from_numpy(np.argsort(order, kind="stable"))
    return {name: torch.cat([part[name] for part in parts])[original_order].contiguous() for name in parts[0]}


def _one_pass(
    checkpoint: Checkpoint,
    selection: StateSelection,
    ids: Sequence[np.ndarray],
    rows: Sequence[int],
    token_indices: Sequence[np.ndarray],
) -> States:
    """Read a batch in one masked forward pass; a `StateReader` once the first two arguments are bound."""
    layouts = [LAYOUTS[selection.cache](tokens, checkpoint.law) for tokens in ids]
    return read_states(checkpoint.model, layouts, token_indices, selection.hidden)


def check_erased(checkpoint: Checkpoint, samples: Sequence[Sample]) -> None:
    """Check that the block with the secret of every sample leaves the cache, or the secret itself under other laws.

    Raises:
        UserError: It is never erased.
    """
    law, memento = checkpoint.law, isinstance(checkpoint.law, MementoLaw)
    for sample in samples:
        if isinstance(law, MementoLaw):
            blocks = find_blocks(sample.ids, law.markup, law.policy.require_assistant_section)
            erased = [erasure.block for erasure in law.erasures(sample.ids)]
            stays = not 0 <= sample.block < len(blocks) or blocks[sample.block] not in erased
        else:
            stays = secret_expires_at(checkpoint, sample) == NEVER
        if stays:
            where, mend = ("block", "hide the secret in an earlier block, or give --keep-last-n-blocks 0")
            if not memento:
                where, mend = ("turn", "hide the secret in an earlier turn, or give a law that erases it")
            raise UserError(
                f"{where} {sample.block} of trace {sample.base} is never erased under this "
                f"{'policy' if memento else f'law, {checkpoint.law.spec}'}: {mend}"
            )


def secret_expires_at(checkpoint: Checkpoint, sample: Sample) -> int:
    """Return the token index of the first query that sees no token of the secret; `NEVER` if there is none."""
    return int(expiry(sample.ids, checkpoint.law)[list(sample.secret_indices)].max())


def _num_tokens_to_read(checkpoint: Checkpoint, sample: Sample, end: int) -> int:
    """Return the number of tokens to read: up to the first erasure at or after `end`, or `end` if there is none.

    A sealed layout recomputes a memento where its block expires, so that token must be read as well. Under other laws
    than Memento's, the secret may leave after the carriers have been read.
    """
    law = checkpoint.law
    if not isinstance(law, MementoLaw):
        end = max(end, secret_expires_at(checkpoint, sample))
    # One token more: a block kept for the answer expires when the token at `expires_at` is read.
    return min(
        (erasure.expires_at + 1 for erasure in law.erasures(sample.ids) if erasure.expires_at >= end), default=end
    )


def batch_by_tokens(order: Sequence[int], lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Group rows into consecutive batches of at most `max_tokens` tokens, padding included.

    Args:
        order: Rows, ascending by length.
        lengths: Number of tokens of each row.
        max_tokens: Maximum number of tokens per batch; a longer row is a batch of its own.
    """
    batches: list[list[int]] = [[]]
    for row in order:
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > max_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _named_tensors(states: States, selection: StateSelection, weights: dict[Carrier, np.ndarray]) -> dict[str, Tensor]:
    """Return pooled states by their names in a shard: [n, P, H, D] for keys and values, [n, P, d] for hidden states."""
    tensors: dict[str, Tensor] = {}
    begin = 0
    for carrier, weight in weights.items():
        columns = slice(begin, begin + weight.shape[1])
        begin = columns.stop
        for layer in selection.layers:
            kinds = {"k": states.keys[layer][:, :, columns].transpose(1, 2)}
            kinds["v"] = states.values[layer][:, :, columns].transpose(1, 2)
            if states.hidden is not None:
                kinds["hidden"] = states.hidden[layer][:, columns]
            for kind, tensor in kinds.items():
                if carrier.pool == "mean":
                    scale = torch.from_numpy(weight).to(tensor).reshape(*weight.shape, *[1] * (tensor.ndim - 2))
                    tensor = (tensor * scale).sum(1, keepdim=True)
                tensors[f"{carrier.key}.{layer}.{kind}"] = tensor.cpu()
    return tensors
