"""Backends that generate the samples of an ablation: the checkpoint's own model or another engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ghosttrace.ablation.collect import BenchArm, SampleWriter
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.sampling import Sampling


class Backend(Protocol):
    """Interface of an engine that generates samples.

    Attributes:
        name: Name recorded in run.json.
        arms: Names of the supported arms. None means all arms.
        any_law: Whether it generates under every law, and not under Memento's alone.
        gpus: Number of GPUs that one engine takes.
        model_device: Device on which a worker loads the checkpoint's model; None for a GPU if it has one.
        batches_per_group: Size of a group of samples in batches. 1 if the backend cannot replace finished rows.
    """

    @property
    def name(self) -> str: ...

    @property
    def arms(self) -> Sequence[str] | None: ...

    @property
    def any_law(self) -> bool: ...

    @property
    def gpus(self) -> int: ...

    @property
    def model_device(self) -> str | None: ...

    @property
    def batches_per_group(self) -> int: ...

    def settings(self) -> dict[str, Any]:
        """Return the backend's own settings that affect the samples, to be recorded in run.json."""

    def open(self, bench_arms: Sequence[BenchArm], batch_size: int) -> AbstractContextManager[SampleWriter]:
        """Start the engine and return a context manager that yields a `SampleWriter` for these bench arms.

        Args:
            bench_arms: The bench arms to run.
            batch_size: Maximum number of rows decoded together.

        Raises:
            UserError: The engine is not installed or cannot run one of the arms.
        """


@dataclass(frozen=True)
class HuggingFaceBackend:
    """Backend that calls `ghosttrace.generate` with the checkpoint's own model.

    In a group of several batches, the next samples take the places of finished ones. A larger group leaves fewer rows
    free at its end, and a run that is stopped in it decodes more samples again (`benchmarks/refilling.py`).
    """

    name = "hf"
    arms: Sequence[str] | None = None
    any_law: bool = True
    gpus: int = 1
    model_device: str | None = None
    batches_per_group: int = 4

    def settings(self) -> dict[str, Any]:
        """Return an empty dict: this backend has no settings of its own."""
        return {}

    @contextmanager
    def open(self, bench_arms: Sequence[BenchArm], batch_size: int) -> Iterator[SampleWriter]:
        """Yield `write_samples`; there is no engine to start."""
        yield partial(write_samples, batch_size=batch_size)


def write_samples(
    bench_arm: BenchArm,
    requests: Sequence[Request],
    on_done: Callable[[int, Generation], None],
    batch_size: int | None = None,
) -> None:
    """Generate the responses to a group of requests.

    Args:
        bench_arm: The arm and benchmark, with the model and the sampling parameters.
        requests: The requests of the group.
        on_done: Called with (index of the request, response) as soon as a response is finished.
        batch_size: Maximum number of rows decoded together; None for the whole group.

    Raises:
        UserError: The batch does not fit into memory.
    """
    checkpoint, arm = bench_arm.checkpoint, bench_arm.arm
    with explain_out_of_memory(checkpoint, requests, bench_arm.sampling, batch_size):
        generate(
            checkpoint.model,
            requests,
            checkpoint.markup,
            checkpoint.policy,
            bench_arm.sampling,
            arm.eraser,
            on_done=on_done,
            law=arm.adapt_law(checkpoint.law),
            rows=batch_size,
        )


@contextmanager
def explain_out_of_memory(
    checkpoint: Checkpoint, requests: Sequence[Request], sampling: Sampling, batch_size: int | None = None
) -> Iterator[None]:
    """Convert out-of-memory errors into a `UserError` that suggests a smaller batch.

    Args:
        checkpoint: The checkpoint whose KV cache size is estimated.
        requests: The requests that are decoded inside the context.
        sampling: Sampling parameters; `max_new_tokens` bounds the response length.
        batch_size: Maximum number of rows decoded together; None for all requests.

    Raises:
        UserError: The batch did not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's CPU allocator raises a bare RuntimeError
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)):
            raise
        longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
        per_token = CacheGeometry.from_config(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
        rows = min(batch_size or len(requests), len(requests))
        gib = rows * longest * per_token / 2**30
        raise UserError(
            f"out of memory at batch size {rows}, whose KV cache can grow to {gib:.1f} GiB: "
            f"try --batch-size {max(1, rows // 2)} or a smaller --max-new-tokens"
        ) from error


def largest_batch_size(bench_arms: Sequence[BenchArm], maximum: int = 128) -> int:
    """Return the batch size: `maximum`, or on a GPU at most what its free memory holds at full response length.

    Args:
        bench_arms: Bench arms to run. They share one model; the longest response and the most caches per row count.
        maximum: Upper bound of the batch size.

    Returns:
        Number of rows to decode together, at least 1.
    """
    model = bench_arms[0].checkpoint.model
    if model.device.type != "cuda":
        return maximum
    per_token = CacheGeometry.from_config(model.config).bytes_per_token(model.dtype)
    longest = max(bench_arm.sampling.max_new_tokens * bench_arm.arm.caches for bench_arm in bench_arms)
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(maximum, int(0.8 * free / (longest * per_token))))
