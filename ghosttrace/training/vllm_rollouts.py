"""Rollouts by a vLLM engine in the trainer's process, with the weights of the policy at every step."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from ghosttrace.ablation.arms import Arm
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request
from ghosttrace.model.sampling import Sampling
from ghosttrace.serving.vllm.engine import erasure_settings, open_engine, write_responses
from ghosttrace.serving.vllm.engine_args import read_settings
from ghosttrace.training.rollouts import Rollouts

MEMORY_SHARE = 0.3
"""Default share of a GPU's memory for the engine, which leaves the rest to the trainer."""
GO_ON = "go on from the last saved step with --resume RUN, maybe with other --engine-args"


def check_vllm_rollouts(rollouts: Rollouts) -> None:
    """Check that vLLM is installed and can write these rollouts.

    Raises:
        UserError: it is not installed, there are several processes, or the model or the law cannot be served.
    """
    if find_spec("vllm") is None:
        raise UserError("vllm is not installed: pip install -e '.[vllm]' in the GhostTrace checkout")
    if PartialState().num_processes > 1:
        raise UserError("--backend vllm takes one process: leave out accelerate launch, or --backend vllm")
    settings = erasure_settings(rollouts.tokenizer, rollouts.markup, rollouts.law)
    read_settings(rollouts.name, max_block_tokens=rollouts.sampling.max_block_tokens, **settings)


class VllmWriter:
    """Writes responses with an engine, which is given the policy's weights when they have changed.

    Args:
        llm: engine of `ghosttrace.serving.vllm.engine.open_engine`.
        arm: how tokens are erased.
        sampling: sampling settings with a temperature above 0, so that log-probabilities are recorded.
    """

    def __init__(self, llm: Any, arm: Arm, sampling: Sampling) -> None:
        self._llm, self._arm, self._sampling = llm, arm, sampling
        self._loaded_step: int | None = None

    def load(self, policy: Any, step: int) -> None:
        """Give the engine the weights of the policy at a training step, unless it has them.

        Args:
            policy: the model that is trained, maybe with adapters.
            step: number of the training step.

        Raises:
            UserError: vLLM fails.
        """
        if step == self._loaded_step:
            return
        with _explaining_failure(GO_ON):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy_weights(policy)})
            if not self._llm.reset_prefix_cache():  # its keys and values are those of the former weights
                raise RuntimeError("its prefix cache cannot be cleared")
        self._loaded_step = step

    def __call__(self, checkpoint: Checkpoint, requests: Sequence[Request]) -> list[Generation]:
        """Return the responses to a batch of requests, with log-probabilities and forced tokens.

        Raises:
            UserError: the law cannot hold for a prompt or a response, or vLLM fails.
        """
        with _explaining_failure(GO_ON):
            return list(write_responses(self._llm, checkpoint, self._arm, self._sampling, requests))


@contextmanager
def vllm_engine(rollouts: Rollouts, policy: Any, longest: int, options: Mapping[str, Any]) -> Iterator[None]:
    """Start an engine that writes the rollouts, and stop it at the end.

    The engine sets the seeds of this process when it starts. They are put back, so that a resumed training draws what
    an uninterrupted one draws.

    Args:
        rollouts: the rollouts, whose `engine` is set. The engine starts with the weights of their model on disk.
        policy: the model that is trained, without adapters; its data type is the engine's.
        longest: largest number of tokens of a prompt with its response.
        options: additional arguments of vLLM's `LLM`.

    Raises:
        UserError: vLLM cannot start.
    """
    defaults: dict[str, Any] = {"max_model_len": longest}
    if torch.accelerator.is_available():
        defaults["gpu_memory_utilization"] = MEMORY_SHARE
    with ExitStack() as stack:
        with _kept_random_state(), _explaining_failure("change --engine-args"):
            llm = stack.enter_context(open_engine(rollouts.checkpoint(policy), defaults | dict(options)))
        rollouts.engine = VllmWriter(llm, rollouts.arm, rollouts.sampling)
        yield


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Put the states of all global random generators back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def policy_weights(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values of every weight of a model, with its adapters merged into a copy.

    Args:
        policy: a transformers model, or one of peft's around it, which stays as it is: merging into its own weights and
            taking the adapter out again would leave rounding errors behind.
    """
    if hasattr(policy, "merge_and_unload"):
        policy = copy.deepcopy(policy).merge_and_unload()
    for name, weight in policy.named_parameters():
        yield name, weight.detach()


@contextmanager
def _explaining_failure(mend: str) -> Iterator[None]:
    """Convert an error of vLLM into one that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # vLLM raises errors of many types
        raise UserError(f"vLLM failed ({error}): {mend}") from error
