"""GPU-hours and memory of `experiments/reproduce_paper.py`, estimated before anything runs.

Nothing here is measured. Training time is the floating point operations of the linear maps and of the visible pairs of
query and key, over the GPUs' peak rate times `TRAINING_UTILISATION`. Decoding time is the bytes that have to be read
(all weights once a step, the retained keys and values once a token), over the memory's peak rate times
`DECODING_UTILISATION`. Responses have the paper's mean lengths; a batch lasts as long as its longest response, taken as
the longest that is allowed. Only the geometry of the model is needed, no weights, and for the models in `GEOMETRIES` no
hub. `python -m experiments.reproduce_plan` records the plan that `docs/reproduce.md` shows.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen3Config

from experiments.reproduce_scale import PAPER, Scale
from ghosttrace.ablation.plan import MARKUP, Plan, arm_plan, average_trace
from ghosttrace.ablation.plan import Assumptions as AblationAssumptions
from ghosttrace.ablation.plan import plan as plan_ablation
from ghosttrace.ablation.published import MEAN_BLOCK_TOKENS, MEAN_MEMENTO_TOKENS, MEAN_RESPONSE_TOKENS
from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.model.checkpoint import load_config
from ghosttrace.model.geometry import CacheGeometry

RESULTS = Path(__file__).parent / "results" / "reproduce_plan.parquet"
PROMPT_TOKENS = 200
TRAINING_UTILISATION, DECODING_UTILISATION = 0.4, 0.3
STATE_BYTES, BFLOAT16, FLOAT32 = 16, 2, 4  # training: weights, gradients and two moments in float32, per parameter
CHECKPOINTS = 3  # on disk at once: the third is written before the first is deleted
MEMORY_SHARE, MAX_ROWS = 0.8, 128  # of the free memory for keys and values, and of rows decoded together
PAPER_DROP = 0.153  # section 6.2.1
QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": False,
}
QWEN3_32B = QWEN3_8B | {
    "hidden_size": 5120,
    "intermediate_size": 25_600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
}
GEOMETRIES: dict[str, dict[str, Any]] = {"Qwen/Qwen3-8B": QWEN3_8B, "Qwen/Qwen3-32B": QWEN3_32B}
"""Geometries of Qwen3 models whose config.json is not needed, by hub id."""


@dataclass(frozen=True)
class Gpu:
    """Figures of a GPU's data sheet.

    Attributes:
        name: Name in tables.
        flops: Dense bfloat16 operations per second.
        bandwidth: Bytes per second read from its memory.
        memory: Bytes of its memory.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


GPUS = {"h100": Gpu("H100 SXM", 989e12, 3.35e12, 80e9), "h200": Gpu("H200 SXM", 989e12, 4.8e12, 141e9)}


@dataclass(frozen=True)
class ModelSize:
    """What the cost of a model depends on.

    Attributes:
        parameters: Number of parameters.
        matrix_parameters: Those that multiply each token: all matrices but the embedding table, the output's included.
        attention_width: Heads times head size times layers.
        layers, hidden: Number of layers, size of the residual stream.
        layer_width: Largest number of values per token that one layer keeps for its backward pass.
        vocabulary_parameters: Those of the embedding table and of the output, which one GPU gathers at once.
        kv_bytes: Bytes of keys and values per token in bfloat16.
    """

    parameters: int
    matrix_parameters: int
    attention_width: int
    layers: int
    hidden: int
    layer_width: int
    vocabulary_parameters: int
    kv_bytes: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "ModelSize":
        """Count the parameters of a model without its weights."""
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        text, geometry = config.get_text_config(), CacheGeometry.from_config(config)
        table, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        parameters = list(model.parameters())
        matrices = sum(weight.numel() for weight in parameters if weight.ndim > 1)
        attention = text.num_attention_heads * geometry.head_dim
        tied = table is output
        return cls(
            parameters=sum(weight.numel() for weight in parameters),
            matrix_parameters=matrices if tied else matrices - table.numel(),
            attention_width=attention * geometry.layers,
            layers=geometry.layers,
            hidden=text.hidden_size,
            layer_width=4 * text.hidden_size
            + 2 * (attention + geometry.kv_heads * geometry.head_dim)
            + 3 * text.intermediate_size,
            vocabulary_parameters=table.numel() if tied else table.numel() + output.numel(),
            kv_bytes=geometry.bytes_per_token(torch.bfloat16),
        )

    def forward_flops(self, tokens: float, pairs: float) -> float:
        """Return the operations of a forward pass over tokens with so many visible pairs of query and key."""
        return 2 * self.matrix_parameters * tokens + 4 * self.attention_width * pairs


@dataclass(frozen=True)
class StepPlan:
    """Estimated cost of one step.

    Attributes:
        step: Name of the step.
        gpus: Number of GPUs that it uses.
        work: What is computed, in words.
        flops: Floating point operations.
        bytes_read: Bytes that decoding reads.
        hours: Wall time in hours.
        memory: Bytes of memory per GPU.
        disk: Bytes on disk that it needs at most.
        fits: Whether the memory of a GPU suffices.
    """

    step: str
    gpus: int
    work: str
    flops: float
    bytes_read: float
    hours: float
    memory: float
    disk: float
    fits: bool

    @property
    def gpu_hours(self) -> float:
        """GPU-hours."""
        return self.gpus * self.hours


def model_config(name: str) -> PreTrainedConfig:
    """Return the config of a model: of `GEOMETRIES`, or loaded by name.

    Raises:
        UserError: There is no such model.
    """
    return Qwen3Config(**GEOMETRIES[name]) if name in GEOMETRIES else load_config(name)


def decoding_rows(size: ModelSize, gpu_memory: float, arms: tuple[str, ...], policy: Policy, longest: int) -> int:
    """Return the number of rows to decode together: what fits if every response has blocks and the longest length."""
    held = max(arm_plan(name, policy, PROMPT_TOKENS, longest).peak_tokens for name in arms)
    free = gpu_memory - BFLOAT16 * size.parameters
    return max(1, min(MAX_ROWS, int(MEMORY_SHARE * free / (held * size.kv_bytes))))


def training_plan(stage: str, size: ModelSize, scale: Scale, policy: Policy, gpu: Gpu, gpus: int) -> StepPlan:
    """Estimate one SFT stage: sharded float32 state, bfloat16 compute, gradient checkpointing, one row per GPU."""
    tokens = PROMPT_TOKENS + MEAN_RESPONSE_TOKENS
    expires_at = expiry(average_trace(PROMPT_TOKENS, MEAN_RESPONSE_TOKENS), MARKUP, policy)
    pairs = float((np.minimum(expires_at, tokens) - np.arange(tokens)).sum())
    rows = scale.rows * scale.epochs
    flops = rows * 4 * size.forward_flops(tokens, pairs)  # forward, again for the checkpoints, and backward twice that
    layer = (size.parameters - size.vocabulary_parameters) / size.layers
    gathered = 2 * BFLOAT16 * (size.vocabulary_parameters + 2 * layer)  # weights and gradients, two layers at once
    activations = BFLOAT16 * scale.max_length * (size.layers * size.hidden + size.layer_width)
    memory = STATE_BYTES * size.parameters / gpus + gathered + activations
    return StepPlan(
        f"sft-{stage}",
        gpus,
        f"{rows:,} rows of {tokens:,} tokens",
        flops,
        0.0,
        flops / (gpus * gpu.flops * TRAINING_UTILISATION) / 3600,
        memory,
        (CHECKPOINTS * (STATE_BYTES - FLOAT32) + FLOAT32) * size.parameters,  # gradients are not saved; and the model
        memory <= gpu.memory,
    )


def decoding_plan(step: str, planned: Plan, size: ModelSize, gpu: Gpu, longest: int) -> StepPlan:
    """Estimate the decoding of the samples of an ablation on one GPU."""
    rows, policy, response = planned.rows, planned.policy, planned.assumptions.response_tokens
    batches = -(-planned.samples // rows)
    weights_read = len(planned.arms) * batches * longest * BFLOAT16 * size.parameters
    keys_read = sum(arm.mean_tokens for arm in planned.arms) * planned.samples * response * size.kv_bytes
    flops = planned.recomputed_tokens * size.forward_flops(1, 0)
    seconds = (weights_read + keys_read) / (gpu.bandwidth * DECODING_UTILISATION)
    seconds += flops / (gpu.flops * TRAINING_UTILISATION)
    held = max(arm_plan(arm.name, policy, PROMPT_TOKENS, longest).peak_tokens for arm in planned.arms)
    memory = BFLOAT16 * size.parameters + rows * held * size.kv_bytes
    return StepPlan(
        step,
        1,
        f"{planned.samples * len(planned.arms):,} responses, {rows} at a time",
        flops,
        weights_read + keys_read,
        seconds / 3600,
        memory,
        0.0,
        memory <= gpu.memory,
    )


def probing_plan(size: ModelSize, scale: Scale, gpu: Gpu) -> StepPlan:
    """Estimate the forward passes of the probes, over the open and the sealed cache; fitting takes no GPU-hours."""
    samples = scale.problems * scale.codes_per_trace
    tokens = PROMPT_TOKENS + 3 * (MEAN_BLOCK_TOKENS + MEAN_MEMENTO_TOKENS + 4)
    flops = 2 * samples * size.forward_flops(tokens, tokens * tokens / 2)
    memory = BFLOAT16 * (size.parameters + scale.batch_tokens * (2 * size.hidden + size.layer_width))
    memory += scale.batch_tokens * size.kv_bytes
    hours = flops / (gpu.flops * TRAINING_UTILISATION) / 3600
    disk = float(FLOAT32 * samples * 3 * 2 * size.kv_bytes / BFLOAT16 * 2 / size.layers)  # three mementos, two layers
    return StepPlan(
        "probes",
        1,
        f"{samples:,} traces of {tokens:,} tokens, twice",
        flops,
        0.0,
        hours,
        memory,
        disk,
        memory <= gpu.memory,
    )


def ablation_plan(
    model: str, arms: tuple[str, ...], repetitions: int, scale: Scale, mask_delimiters: bool, gpu: Gpu
) -> Plan:
    """Plan an ablation on 30 problems with `ghosttrace.ablation.plan`."""
    config, policy = model_config(model), Policy(mask_delimiters)
    size = ModelSize.from_config(config)
    rows = decoding_rows(size, gpu.memory, ("memento", *arms), policy, scale.max_new_tokens)
    assumptions = AblationAssumptions(
        n_problems=scale.problems,
        repetitions=repetitions,
        effect=PAPER_DROP,
        arms=arms,
        prompt_tokens=PROMPT_TOKENS,
        batch_size=rows,
    )
    return plan_ablation(CacheGeometry.from_config(config), torch.bfloat16, policy, assumptions)


def plan_chain(model: str, scale: Scale, mask_delimiters: bool, gpu: Gpu, gpus: int) -> list[StepPlan]:
    """Estimate every step that takes GPU time, in order.

    Args:
        model: Name of the base model.
        scale: Rows, lengths and repetitions.
        mask_delimiters: See `ghosttrace.law.expiry.Policy`.
        gpu: The kind of GPU.
        gpus: Number of GPUs for training; decoding and probing use one.

    Raises:
        UserError: There is no such model.
    """
    size = ModelSize.from_config(model_config(model))
    stages = {name: Policy(mask_delimiters, keep_last_n_blocks=kept) for name, kept in (("full", -1), ("memento", 0))}
    ablation = ablation_plan(model, scale.arms, scale.repetitions, scale, mask_delimiters, gpu)
    traces = ablation_plan(model, (), scale.trace_repetitions, scale, mask_delimiters, gpu)
    return [
        *(training_plan(name, size, scale, policy, gpu, gpus) for name, policy in stages.items()),
        decoding_plan("ablation", ablation, size, gpu, scale.max_new_tokens),
        decoding_plan("traces", traces, size, gpu, scale.max_new_tokens),
        probing_plan(size, scale, gpu),
    ]


def main() -> None:
    """Write the plan of the paper's Qwen3-8B on eight GPUs of each kind to `experiments/results`."""
    model = "Qwen/Qwen3-8B"
    kinds = [plan_chain(model, PAPER, False, gpu, 8) for gpu in GPUS.values()]
    rows = [
        {"model": model, "gpu": gpu.name, "flops_share": TRAINING_UTILISATION, "bandwidth_share": DECODING_UTILISATION}
        | asdict(step)
        | {"gpu_hours": step.gpu_hours}
        for gpu, planned in zip(GPUS.values(), kinds, strict=True)
        for step in planned
    ]
    pd.DataFrame(rows).to_parquet(RESULTS, index=False)


if __name__ == "__main__":
    main()
