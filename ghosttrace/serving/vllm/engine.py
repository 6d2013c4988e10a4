"""vLLM engine in this process, and the responses that it writes with the project's harness and random draws.

`ghosttrace.model.sampling` samples from vLLM's logits with the uniform draws of a request's key. The texts are
therefore those of `ghosttrace.generate`, except where a rounding error moves a cumulative probability across a draw.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from ghosttrace.ablation.arms import Arm
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, alive, expiry
from ghosttrace.law.law import Law
from ghosttrace.law.markup import DELIMITERS, Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, log_prob, stop_ids
from ghosttrace.model.sampling import Sampling, random_stream, sample
from ghosttrace.serving.settings import OVERRIDE_PREFIX
from ghosttrace.serving.vllm.engine_args import engine_args


class SharedNoiseSampler:
    """Sampler that always uses the n-th draw of a random stream for the n-th token of a response.

    Repeated calls with the same index use the same draw, so recomputed tokens do not change.

    Args:
        key: key of the random stream.
        sampling: temperature and filters.

    Attributes:
        log_probs: log-probability of each sampled token in nats, by its index in the response. Tokens that a harness
            or a block's maximum length forces are not sampled, and are missing here.
    """

    def __init__(self, key: tuple[int, ...], sampling: Sampling) -> None:
        self._stream, self._sampling = random_stream(*key), sampling
        self._draws: list[float] = []
        self.log_probs: dict[int, float] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedNoiseSampler":
        """Return the same object: vLLM copies the parameters of a request, and the record must stay one."""
        return self

    def __call__(self, index: int, logits: Tensor) -> int:
        """Return the sampled token id.

        Args:
            index: index of the token in the response.
            logits: float[V].
        """
        while len(self._draws) <= index:
            self._draws.append(self._stream.random())
        token = sample(logits[None], self._sampling, np.array([self._draws[index]]))[0]
        self.log_probs[index] = log_prob(logits, token, self._sampling)
        return token


@contextmanager
def open_engine(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Iterator[Any]:
    """Start an engine, yield its `vllm.LLM`, and stop the engine at the end.

    Args:
        checkpoint: the checkpoint that vLLM loads, by its name.
        options: additional arguments of vLLM's `LLM`.

    Raises:
        UserError: vLLM is not installed, or cannot serve the checkpoint.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # harness and draws are Python functions of this process
    try:
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory
    except ModuleNotFoundError as error:
        raise UserError("vllm is not installed: pip install -e '.[vllm]' in the GhostTrace checkout") from error

    settings = erasure_settings(checkpoint.tokenizer, checkpoint.markup, checkpoint.law)
    arguments = engine_args(checkpoint.name, async_scheduling=False, arm="memento", **settings)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    llm = LLM(**{**arguments, "dtype": dtype, **options})
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()


def erasure_settings(tokenizer: Any, markup: Markup, law: Law) -> dict[str, Any]:
    """Return the arguments of `engine_args` and `read_settings` that describe a law and its delimiters."""
    settings: dict[str, Any] = {"law": law.spec}
    if markup.has_delimiters:
        settings["delimiters"] = dict(
            zip(DELIMITERS, tokenizer.convert_ids_to_tokens(list(markup.delimiters)), strict=True)
        )
    return settings | (law.policy.to_dict() if isinstance(law, MementoLaw) else {})


def write_responses(
    llm: Any, checkpoint: Checkpoint, arm: Arm, sampling: Sampling, requests: Sequence[Request]
) -> Iterator[Generation]:
    """Yield the response to each request, in order.

    Args:
        llm: engine of `open_engine`.
        checkpoint: the checkpoint that the engine has loaded.
        arm: one of `ghosttrace.serving.paging.PAGED_ARMS`.
        sampling: sampling settings; a temperature above 0 also records log-probabilities and forced tokens.
        requests: the batch.

    Raises:
        UserError: the law cannot hold for a prompt or a response; for example, the prompt does not fit into a window.
    """
    from vllm import SamplingParams

    law = arm.adapt_law(checkpoint.law)
    for request in requests:
        law.erasures(request.prompt)
    samplers = [SharedNoiseSampler(request.key, sampling) if sampling.temperature > 0 else None for request in requests]
    params = []
    for request, sampler in zip(requests, samplers, strict=True):
        overrides = {
            "arm": arm.name,
            "harness": request.harness,
            "draws": sampler,
            "max_block_tokens": sampling.max_block_tokens,
        }
        params.append(
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=0,
                stop_token_ids=sorted(stop_ids(checkpoint.model)),
                detokenize=False,
                extra_args={OVERRIDE_PREFIX + name: value for name, value in overrides.items() if value is not None},
            )
        )
    prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for request, output, sampler in zip(requests, outputs, samplers, strict=True):
        completion = output.outputs[0]
        law.erasures([*request.prompt, *completion.token_ids])  # vLLM has ended a response for which it cannot hold
        yield _generation(checkpoint, arm, request, completion, sampler)


def _generation(
    checkpoint: Checkpoint, arm: Arm, request: Request, completion: Any, sampler: SharedNoiseSampler | None
) -> Generation:
    """Return a response as a `Generation`; the law of its arm determines the number of KV tokens at each step."""
    tokens = list(completion.token_ids)
    computed = [*request.prompt, *tokens[:-1]]
    kv_tokens = alive(expiry(computed, arm.adapt_law(checkpoint.law)))
    finish = "eos" if completion.finish_reason == "stop" else "length"
    blocks = len(find_blocks(computed, checkpoint.markup, checkpoint.policy.require_assistant_section))
    sampled = {} if sampler is None else sampler.log_probs
    return Generation(
        list(request.prompt),
        tokens,
        finish,  # type: ignore[arg-type]
        blocks,
        kv_tokens,
        () if sampler is None else tuple(index not in sampled for index in range(len(tokens))),
        () if sampler is None else tuple(sampled.get(index, 0.0) for index in range(len(tokens))),
    )
