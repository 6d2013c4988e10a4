"""What writes the samples of an ablation: the checkpoint's own model, or another engine under the same law."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ghosttrace.ablation.collect import BenchArm, SampleWriter
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.sampling import Sampling


class Backend(Protocol):
    """An engine that writes samples.

    Attributes:
        name: as in run.json.
        arms: names of the arms that it can run; None: all of them.
    """

    @property
    def name(self) -> str: ...

    @property
    def arms(self) -> Sequence[str] | None: ...

    def settings(self) -> dict[str, Any]:
        """What else decides the samples, for run.json."""

    def open(self, cells: Sequence[BenchArm]) -> AbstractContextManager[SampleWriter]:
        """Get ready to write the samples of these cells.

        Raises:
            UserError: the engine is not installed, or cannot run one of the arms.
        """


@dataclass(frozen=True)
class HuggingFaceBackend:
    """`ghosttrace.generate`, with the checkpoint's own model."""

    name = "hf"
    arms: Sequence[str] | None = None

    def settings(self) -> dict[str, Any]:
        """Nothing else decides the samples."""
        return {}

    @contextmanager
    def open(self, cells: Sequence[BenchArm]) -> Iterator[SampleWriter]:
        """Nothing has to be opened."""
        yield write_samples


def write_samples(cell: BenchArm, requests: Sequence[Request], on_done: Callable[[int, Generation], None]) -> None:
    """Decode a batch; `on_done` is called with each finished response and its number.

    Raises:
        UserError: the batch does not fit into memory.
    """
    checkpoint, arm = cell.checkpoint, cell.arm
    with explain_out_of_memory(checkpoint, requests, cell.sampling):
        law = arm.adapt_policy(checkpoint.policy)
        generate(checkpoint.model, requests, checkpoint.markup, law, cell.sampling, arm.eraser, on_done=on_done)


@contextmanager
def explain_out_of_memory(checkpoint: Checkpoint, requests: Sequence[Request], sampling: Sampling) -> Iterator[None]:
    """Turn running out of memory into one sentence that says what to change.

    Raises:
        UserError: the batch did not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's CPU allocator raises a bare RuntimeError
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)):
            raise
        longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
        per_token = CacheGeometry.from_config(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
        gib = len(requests) * longest * per_token / 2**30
        raise UserError(
            f"out of memory at batch size {len(requests)}, whose KV cache can grow to {gib:.1f} GiB: "
            f"try --batch-size {max(1, len(requests) // 2)} or a smaller --max-new-tokens"
        ) from error


def largest_batch_size(cells: Sequence[BenchArm], maximum: int = 128) -> int:
    """How many rows to decode together: `maximum`, or on a GPU as many as its memory holds at their longest.

    Args:
        cells: whose model and longest responses count.
        maximum: never more than this.
    """
    model = cells[0].checkpoint.model
    if model.device.type != "cuda":
        return maximum
    per_token = CacheGeometry.from_config(model.config).bytes_per_token(model.dtype)
    longest = max(cell.sampling.max_new_tokens * cell.arm.caches for cell in cells)
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(maximum, int(0.8 * free / (longest * per_token))))
