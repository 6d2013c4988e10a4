"""What each instrument would take on Qwen3-8B and Qwen3-32B with 8 and 64 GPUs: `python -m experiments.scale`.

Nothing here is run or measured: it is the arithmetic of `experiments.reproduce_plan`, operations and bytes over shares
of a GPU's peak, on traces with the paper's mean lengths. `WORKLOADS` states how much each instrument does. Work on a
fixed checkpoint is divided among GPUs that each hold the whole model; training shards it. `docs/scale.md` lists what is
left out.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.reproduce_plan import (
    BFLOAT16,
    DECODING_UTILISATION,
    GPUS,
    PROMPT_TOKENS,
    TRAINING_UTILISATION,
    Gpu,
    ModelSize,
    ablation_plan,
    decoding_plan,
    model_config,
    training_plan,
)
from experiments.reproduce_scale import PAPER
from ghosttrace.ablation.plan import MARKUP, average_trace, count_recomputed_tokens
from ghosttrace.ablation.published import MEAN_BLOCK_TOKENS, MEAN_MEMENTO_TOKENS, MEAN_RESPONSE_TOKENS
from ghosttrace.law.expiry import Policy, expiry

RESULTS = Path(__file__).parent / "results" / "scale.parquet"
MODELS, GPU, NUMBERS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B"), GPUS["h200"], (8, 64)
POLICY, ARMS = Policy(False), ("restart", "placebo")
TOKENS = PROMPT_TOKENS + MEAN_RESPONSE_TOKENS
SECRET_TOKENS = PROMPT_TOKENS + 3 * (
    MEAN_BLOCK_TOKENS + MEAN_MEMENTO_TOKENS + 4
)  # three blocks, as in the paper's probes
BITS_TRACES, PATCHED_TRACES, PATCHED_PARTS, SECRETS, RL_STEPS, RL_RESPONSES = 1000, 50, 8, 15_000, 100, 1920


@dataclass(frozen=True)
class Estimate:
    """Modelled cost of one instrument.

    Attributes:
        model, instrument: What runs.
        gpus: Number of GPUs.
        work: How much it does, in words.
        hours: Wall time in hours.
        memory: Bytes of memory per GPU.
    """

    model: str
    instrument: str
    gpus: int
    work: str
    hours: float
    memory: float


def visible_pairs(tokens: int, policy: Policy = POLICY) -> float:
    """Return the visible pairs of query and key of one trace."""
    expires_at = expiry(average_trace(PROMPT_TOKENS, tokens - PROMPT_TOKENS), MARKUP, policy)
    return float((np.minimum(expires_at, tokens) - np.arange(tokens)).sum())


def pass_flops(size: ModelSize, tokens: int, sealed: bool = False) -> float:
    """Return the operations of one masked pass over a trace; a sealed one reads what is recomputed again."""
    expires_at = expiry(average_trace(PROMPT_TOKENS, tokens - PROMPT_TOKENS), MARKUP, POLICY)
    again = count_recomputed_tokens(expires_at) if sealed else 0
    pairs = visible_pairs(tokens)
    return size.forward_flops(tokens + again, pairs * (1 + again / tokens))


def passes(
    name: str, model: str, size: ModelSize, gpus: int, work: str, traces: int, flops: float, tokens: int
) -> Estimate:
    """Return the cost of masked passes over traces, divided among GPUs in whole traces.

    Args:
        name, model, size, gpus, work: See `Estimate`.
        traces: Number of traces.
        flops: Operations per trace.
        tokens: Tokens per trace, which decide on the memory of a pass.
    """
    hours = ceil(traces / gpus) * flops / (GPU.flops * TRAINING_UTILISATION) / 3600
    logits = size.vocabulary_parameters / size.hidden / 2  # of the output, per token; in float32 below
    memory = BFLOAT16 * size.parameters + tokens * (
        size.kv_bytes + BFLOAT16 * (2 * size.hidden + size.layer_width) + 4 * logits
    )
    return Estimate(model, name, gpus, work, hours, memory)


def ablate(model: str, size: ModelSize, gpus: int, gpu: Gpu = GPU) -> Estimate:
    """Return the cost of the paper's protocol on AIME24, the repetitions divided among the GPUs."""
    repetitions = ceil(PAPER.repetitions / gpus)
    planned = ablation_plan(model, ARMS, repetitions, PAPER, POLICY.mask_delimiters, gpu)
    step = decoding_plan("ablate", planned, size, gpu, PAPER.max_new_tokens)
    samples = PAPER.problems * PAPER.repetitions * (1 + len(ARMS))
    return Estimate(model, "ablate", gpus, f"{samples:,} responses", step.hours, step.memory)


def reinforce(model: str, size: ModelSize, gpus: int, gpu: Gpu = GPU) -> Estimate:
    """Return the cost of `rl`: in each step the rollouts, divided among the GPUs, and one training pass over them.

    Every GPU holds the whole model, of which an adapter is trained: its state is small and is not counted.
    """
    planned = ablation_plan(model, (), ceil(RL_RESPONSES / PAPER.problems / gpus), PAPER, POLICY.mask_delimiters, gpu)
    rollouts = decoding_plan("rl", planned, size, gpu, PAPER.max_new_tokens)
    one_step = replace(PAPER, rows=RL_RESPONSES, epochs=1)
    trained = training_plan("rl", size, one_step, POLICY, gpu, gpus)
    hours = RL_STEPS * (rollouts.hours + trained.hours)
    work = f"{RL_STEPS} steps of {RL_RESPONSES:,} responses"
    longest_row = PAPER.max_length * (size.layers * size.hidden + size.layer_width)
    training_memory = BFLOAT16 * (size.parameters + longest_row)
    return Estimate(model, "rl", gpus, work, hours, max(rollouts.memory, training_memory))


def estimates(model: str, gpus: int) -> list[Estimate]:
    """Return the modelled cost of every instrument on a model."""
    size = ModelSize.from_config(model_config(model))
    opened, sealed = (pass_flops(size, TOKENS, seal) for seal in (False, True))
    short = sum(pass_flops(size, SECRET_TOKENS, seal) for seal in (False, True))
    blocks = MEAN_RESPONSE_TOKENS // (MEAN_BLOCK_TOKENS + MEAN_MEMENTO_TOKENS + 4)
    sites = 2 * (size.layers + PATCHED_PARTS)  # keys and values, of each layer and of each run of tokens
    sft = training_plan("memento", size, PAPER, POLICY, GPU, gpus)
    given = model, size, gpus
    patching = PATCHED_TRACES * blocks * sites
    return [
        ablate(*given),
        passes("bits", *given, f"{BITS_TRACES:,} traces, three passes", BITS_TRACES, opened + 2 * sealed, TOKENS),
        passes("probe", *given, f"{SECRETS:,} traces of {SECRET_TOKENS:,} tokens, two passes", SECRETS, short, TOKENS),
        passes("patch", *given, f"{patching:,} passes over half a trace", patching, opened / 2, TOKENS),
        passes(
            "audit",
            *given,
            f"{SECRETS:,} traces of {SECRET_TOKENS:,} tokens, three passes",
            SECRETS,
            1.5 * short,
            TOKENS,
        ),
        Estimate(model, "sft", gpus, sft.work, sft.hours, sft.memory),
        reinforce(*given),
    ]


def main() -> None:
    """Write `experiments/results/scale.parquet`."""
    rows = [asdict(each) for model in MODELS for gpus in NUMBERS for each in estimates(model, gpus)]
    shares: dict[str, Any] = {"gpu": GPU.name, "gpu_memory": GPU.memory}
    shares |= {"flops_share": TRAINING_UTILISATION, "bandwidth_share": DECODING_UTILISATION}
    pd.DataFrame(rows).assign(**shares).to_parquet(RESULTS, index=False)


if __name__ == "__main__":
    main()
