"""vLLM backend of ablations: `ghosttrace ablate --backend vllm`.

The backend uses the same prompts, harness and random numbers as the Hugging Face backend: `ghosttrace.model.sampling`
samples from vLLM's logits with the uniform draws of (seed, problem, repetition), which are the same in every arm. The
texts of the two backends are therefore equal, except where a rounding error moves a cumulative probability across a
draw.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.collect import BenchArm, SampleWriter
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import alive, expiry
from ghosttrace.law.markup import DELIMITERS, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, stop_ids
from ghosttrace.model.sampling import Sampling, random_stream, sample
from ghosttrace.serving.paging import PAGED_ARMS
from ghosttrace.serving.settings import OVERRIDE_PREFIX
from ghosttrace.serving.vllm.engine_args import engine_args


@dataclass(frozen=True)
class VllmBackend:
    """Ablation backend that generates samples with vLLM.

    Attributes:
        engine_args: additional arguments of vLLM's `LLM`, such as `max_model_len`.
        name: name of the backend.
        arms: names of the supported arms.
        any_law: whether it generates under every law.
    """

    engine_args: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "vllm"
    arms: ClassVar[tuple[str, ...] | None] = PAGED_ARMS
    any_law: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        """Return the settings of the backend for `run.json`."""
        return {"engine": dict(self.engine_args)}

    def open(self, bench_arms: Sequence[BenchArm]) -> AbstractContextManager[SampleWriter]:
        """Return a context manager that starts an engine and yields a function that generates with it.

        Args:
            bench_arms: arms and benchmarks to generate; all have the same checkpoint.

        Raises:
            UserError: if vLLM is not installed or does not support one of the arms.
        """
        return open_vllm_generator(bench_arms[0].checkpoint, bench_arms, self.engine_args)


class SharedNoiseSampler:
    """Sampler that always uses the n-th draw of a random stream for the n-th token of a response.

    Repeated calls with the same index use the same draw, so recomputed tokens do not change.

    Args:
        key: key of the random stream.
        sampling: temperature and filters.
    """

    def __init__(self, key: tuple[int, ...], sampling: Sampling) -> None:
        self._stream, self._sampling = random_stream(*key), sampling
        self._draws: list[float] = []

    def __call__(self, index: int, logits: Tensor) -> int:
        """Return the sampled token id.

        Args:
            index: index of the token in the response.
            logits: float[V].
        """
        while len(self._draws) <= index:
            self._draws.append(self._stream.random())
        return sample(logits[None], self._sampling, np.array([self._draws[index]]))[0]


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
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # harness and draws are Python functions of this process
    try:
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory
    except ModuleNotFoundError as error:
        raise UserError("vllm is not installed: pip install -e '.[vllm]' in the GhostTrace checkout") from error

    settings: dict[str, Any] = {"law": checkpoint.law.spec}
    if checkpoint.markup.has_delimiters:
        tokens = checkpoint.tokenizer.convert_ids_to_tokens(list(checkpoint.markup.delimiters))
        settings["delimiters"] = dict(zip(DELIMITERS, tokens, strict=True))
    if checkpoint.other_law is None:
        settings |= checkpoint.policy.to_dict()
    arguments = engine_args(checkpoint.name, async_scheduling=False, arm="memento", **settings)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    llm = LLM(**{**arguments, "dtype": dtype, **options})
    try:
        yield partial(_write, llm)
    finally:
        del llm
        cleanup_dist_env_and_memory()


def _write(llm: Any, bench_arm: BenchArm, requests: Sequence[Request], keep: Callable[[int, Generation], None]) -> None:
    """Generate the responses to a batch of requests and pass each to `keep`, with its index in the batch.

    Raises:
        UserError: the law cannot hold for a prompt or a response; for example, the prompt does not fit into a window.
    """
    from vllm import SamplingParams

    law = bench_arm.arm.adapt_law(bench_arm.checkpoint.law)
    for request in requests:
        law.erasures(request.prompt)
    params = [
        SamplingParams(
            max_tokens=bench_arm.sampling.max_new_tokens,
            temperature=0,
            stop_token_ids=sorted(stop_ids(bench_arm.checkpoint.model)),
            detokenize=False,
            extra_args={
                OVERRIDE_PREFIX + name: value
                for name, value in _overrides(bench_arm, request).items()
                if value is not None
            },
        )
        for request in requests
    ]
    prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for index, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        completion = output.outputs[0]
        law.erasures([*request.prompt, *completion.token_ids])  # vLLM has ended a response for which it cannot hold
        keep(index, _generation(bench_arm, request, list(completion.token_ids), completion.finish_reason))


def _overrides(bench_arm: BenchArm, request: Request) -> dict[str, Any]:
    sampling = bench_arm.sampling
    draws = SharedNoiseSampler(request.key, sampling) if sampling.temperature > 0 else None
    return {
        "arm": bench_arm.arm.name,
        "harness": request.harness,
        "draws": draws,
        "max_block_tokens": sampling.max_block_tokens,
    }


def _generation(bench_arm: BenchArm, request: Request, tokens: list[int], finish_reason: str) -> Generation:
    """Return a response as a `Generation`; the law of its arm determines the number of KV tokens at each step."""
    checkpoint, computed = bench_arm.checkpoint, [*request.prompt, *tokens[:-1]]
    kv_tokens = alive(expiry(computed, bench_arm.arm.adapt_law(checkpoint.law)))
    finish = "eos" if finish_reason == "stop" else "length"
    blocks = len(find_blocks(computed, checkpoint.markup, checkpoint.policy.require_assistant_section))
    return Generation(list(request.prompt), tokens, finish, blocks, kv_tokens)  # type: ignore[arg-type]
