"""vLLM backend of ablations: `ghosttrace ablate --backend vllm`.

It uses the same prompts, harness and random numbers as the Hugging Face backend: the draws of (seed, problem,
repetition), which are the same in every arm (see `ghosttrace.serving.vllm.engine`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, ClassVar

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.collect import BenchArm, SampleWriter
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request
from ghosttrace.serving.paging import PAGED_ARMS
from ghosttrace.serving.vllm.engine import open_engine, write_responses


@dataclass(frozen=True)
class VllmBackend:
    """Ablation backend that generates samples with vLLM.

    Attributes:
        engine_args: additional arguments of vLLM's `LLM`, such as `max_model_len`.
        name: name of the backend.
        arms: names of the supported arms.
        any_law: whether it generates under every law.
        model_device: device of the checkpoint's own model on a worker: the engine has weights of its own.
        batches_per_group: 1, because the engine itself decides which requests run.
    """

    engine_args: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "vllm"
    arms: ClassVar[tuple[str, ...] | None] = PAGED_ARMS
    any_law: ClassVar[bool] = True
    batches_per_group: ClassVar[int] = 1
    model_device: ClassVar[str | None] = "cpu"

    @property
    def gpus(self) -> int:
        """Number of GPUs that one engine takes, by its tensor and pipeline parallel sizes.

        Raises:
            UserError: one of the sizes is no positive integer.
        """
        sizes = {name: self.engine_args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
        wrong = next((name for name, size in sizes.items() if not isinstance(size, int) or size < 1), None)
        if wrong is not None:
            raise UserError(f"{wrong} in --engine-args must be a positive integer, not {sizes[wrong]!r}")
        return prod(sizes.values())

    def settings(self) -> dict[str, Any]:
        """Return the settings of the backend for `run.json`."""
        return {"engine": dict(self.engine_args)}

    def open(self, bench_arms: Sequence[BenchArm], batch_size: int) -> AbstractContextManager[SampleWriter]:
        """Return a context manager that starts an engine and yields a function that generates with it.

        Args:
            bench_arms: arms and benchmarks to generate; all have the same checkpoint.
            batch_size: not used; the engine decides how many requests it runs at once.

        Raises:
            UserError: if vLLM is not installed or does not support one of the arms.
        """
        return open_vllm_generator(bench_arms[0].checkpoint, bench_arms, self.engine_args)


def check_arms(bench_arms: Sequence[BenchArm]) -> None:
    """Raise an error if vLLM does not support one of the arms, or an arm covers only a part of the cache.

    Raises:
        UserError: if an arm is not in `PAGED_ARMS`, or is restricted to some layers, heads, keys or values; or blocks
            are limited under another law than Memento's.
    """
    for bench_arm in bench_arms:
        if bench_arm.arm.name not in PAGED_ARMS or not getattr(bench_arm.arm, "part", Part()).is_whole_cache:
            raise UserError(
                f"vLLM runs the arms {', '.join(PAGED_ARMS)}, of all layers and heads: leave out {bench_arm.arm.name}"
            )
        if bench_arm.checkpoint.other_law is not None and bench_arm.sampling.max_block_tokens is not None:
            raise UserError("vLLM limits the blocks of Memento's law only: leave out max_block_tokens")


@contextmanager
def open_vllm_generator(
    checkpoint: Checkpoint, bench_arms: Sequence[BenchArm], options: Mapping[str, Any]
) -> Iterator[SampleWriter]:
    """Start an engine, yield a function that generates with it, and stop the engine at the end.

    Args:
        checkpoint: the checkpoint that vLLM loads.
        bench_arms: arms and benchmarks to generate.
        options: additional arguments of vLLM's `LLM`.

    Raises:
        UserError: if vLLM is not installed or does not support one of the arms.
    """
    check_arms(bench_arms)
    with open_engine(checkpoint, options) as llm:
        yield partial(_write, llm)


def _write(llm: Any, bench_arm: BenchArm, requests: Sequence[Request], keep: Callable[[int, Generation], None]) -> None:
    """Generate the responses to a batch of requests and pass each to `keep`, with its index in the batch."""
    responses = write_responses(llm, bench_arm.checkpoint, bench_arm.arm, bench_arm.sampling, requests)
    for index, generation in enumerate(responses):
        keep(index, generation)
