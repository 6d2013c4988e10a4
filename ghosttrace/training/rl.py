"""Reinforcement learning with verifiable rewards, with rollouts and training under one law of eviction."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
from accelerate import PartialState
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config

from ghosttrace.bench import Bench, as_benches
from ghosttrace.errors import UserError
from ghosttrace.law.law import KeepAll
from ghosttrace.law.parse import describe_law
from ghosttrace.model.checkpoint import load_config, load_tokenizer
from ghosttrace.model.prompts import prompt_ids
from ghosttrace.model.sampling import Sampling
from ghosttrace.runs.folder import stable_repr, versions
from ghosttrace.training.channel import ChannelCallback, ChannelMeasure
from ghosttrace.training.grpo import ErasingGRPOTrainer
from ghosttrace.training.recipe import Recipe, parse_flags, resolve_training_law
from ghosttrace.training.rewards import Reward, channel, checked, parse_rewards
from ghosttrace.training.rollouts import Rollouts
from ghosttrace.training.sft import (
    base_model,
    last_checkpoint,
    load_model,
    run_options,
    save_results,
    shared_run_folder,
    train,
    training_record,
)
from ghosttrace.training.vllm_rollouts import check_vllm_rollouts, vllm_engine

PAPER_DEFAULTS = {
    "loss_type": "cispo",
    "beta": 0.001,
    "epsilon_high": 1.2,  # TRL clips the weight itself, so that the paper's 0.2 is 1 + 0.2 here
    "num_generations": 8,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1920,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "temperature": 1.0,
    "max_completion_length": 31_744,
    "gradient_checkpointing": True,
    "seed": 42,
    "logging_steps": 1,
    "save_total_limit": 2,
    "report_to": ["tensorboard"],
    "output_dir": "checkpoints",
}
"""Defaults of the trainer's flags for one GPU (arXiv 2604.09852, section on RL): 240 prompts with 8 responses a step.

With N GPUs, set --gradient_accumulation_steps to 1920/N.
"""

CHANNEL_SEED = 20_260_000
"""Seed of the generated problems on which the channel is measured: the same for all runs, and not those of training.

A benchmark with published problems, or a file, has only those: give another one for the measurement.
"""

UNSUPPORTED_FLAGS = {
    "use_vllm": "use --backend vllm",
    "model_name_or_path": "use --model",
    "trust_remote_code": "code from model repositories is never run",
    "attn_implementation": "rollouts and training attend by the law",
    "use_transformers_paged": "rollouts evict keys from a cache of their own",
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), "rollouts draw from the policy as it is"),
    "hub_token": "the token would be written to run.json: set HF_TOKEN",
    "fsdp": "every process needs the whole model to write rollouts: use several processes with --use_peft",
    "deepspeed": "every process needs the whole model to write rollouts: use several processes with --use_peft",
}
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables by which `accelerate launch` asks for a sharded model."""


@dataclass(frozen=True)
class RLRecipe:
    """Options of a run of reinforcement learning.

    Attributes:
        model: Bundled name, folder or hub id of a model that was trained under a law.
        bench: Names of benchmarks whose problems are the prompts; see `ghosttrace.bench.load_bench`.
        rewards: Rewards with their weights; see `ghosttrace.training.rewards.parse_rewards`.
        limit: Number of problems per benchmark; None for all.
        sealed: Whether the rollouts, and with them the training, use a sealed cache.
        max_block_tokens: Number of tokens in a block after which its end is forced; None for no limit.
        backend: What writes the rollouts: `hf`, the model that is trained, or `vllm`, an engine in the same process.
        engine_args: Additional arguments of `vllm.LLM`, such as `gpu_memory_utilization`.
        channel_every: Number of steps between measurements of the ghost channel; None measures nothing.
        channel_bench: Names of the benchmarks on which it is measured; by default `bench`.
        channel_problems: Number of problems per benchmark on which it is measured.
        policy, delimiters, law: As in `ghosttrace.training.recipe.Recipe`.
        trainer: Command-line flags of `trl.GRPOConfig` and `trl.ModelConfig`.
    """

    model: str
    bench: str
    rewards: str = "correct"
    limit: int | None = None
    sealed: bool = False
    max_block_tokens: int | None = None
    backend: Literal["hf", "vllm"] = "hf"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    channel_every: int | None = None
    channel_bench: str | None = None
    channel_problems: int = 100
    policy: Mapping[str, Any] = field(default_factory=dict)
    delimiters: Mapping[str, str] = field(default_factory=dict)
    law: str | None = None
    trainer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.backend not in ("hf", "vllm"):
            raise UserError(f"--backend must be hf or vllm, not {self.backend!r}")
        if self.engine_args and self.backend != "vllm":
            raise UserError("--engine-args needs --backend vllm: add it, or remove --engine-args")

    @property
    def as_sft(self) -> Recipe:
        """The options that it shares with fine-tuning."""
        return Recipe(
            self.model, (self.bench,), "memento", policy=self.policy, delimiters=self.delimiters, law=self.law
        )


def rl(
    recipe: RLRecipe,
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
    rewards: Sequence[Reward] | None = None,
) -> Path:
    """Train a model on the problems of benchmarks and write the run folder, with the trained model in `model/`.

    Args:
        recipe: Options of the run.
        out: Run folder to create; by default a new folder under runs/.
        resume: Folder of a run to resume from its last complete checkpoint.
        options: Options of the command line, recorded in run.json; None records the recipe.
        rewards: Functions that replace the recipe's rewards; see `ghosttrace.training.rewards`.

    Returns:
        The run folder.

    Raises:
        UserError: The recipe, the model, the problems or the run folder do not permit the training.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its warning that rollout functions may change
    if any(os.environ.get(name, "false") == "true" for name in SHARDING):
        raise UserError(
            "every process needs the whole model to write rollouts, and the configuration of accelerate shards it: "
            "launch with --multi_gpu, and --use_peft for a large model"
        )
    args, model_args = parse_flags(recipe.trainer, GRPOConfig, PAPER_DEFAULTS, UNSUPPORTED_FLAGS)
    if args.temperature <= 0:
        raise UserError("--temperature must be above 0: the responses to one problem must differ")
    chosen, weights = parse_rewards(recipe.rewards) if rewards is None else (list(rewards), None)
    args.reward_weights = weights or args.reward_weights
    config, tokenizer = load_config(recipe.model), load_tokenizer(recipe.model)
    markup, law = resolve_training_law(config, tokenizer, recipe.as_sft)
    if law.replayed or isinstance(law, KeepAll):
        raise UserError(f"{law.spec} cannot write rollouts: give a --law that evicts tokens while text is generated")
    bench = _joined(as_benches(recipe.bench, recipe.limit, args.seed))
    rollouts = Rollouts(
        bench,
        tokenizer,
        partial(prompt_ids, tokenizer, config.model_type),
        markup,
        law,
        Sampling(args.max_completion_length, args.temperature, max_block_tokens=recipe.max_block_tokens),
        recipe.sealed,
        args.seed,
        channel in chosen,
        recipe.model,
    )
    longest = _check_lengths(rollouts, bench, config)
    if recipe.backend == "vllm":
        check_vllm_rollouts(rollouts)
    measure = channel_measure(recipe, rollouts, config)
    run_record = {
        "command": "rl",
        "model": recipe.model,
        **run_options(recipe, options),
        **({} if rewards is None else {"rewards": [stable_repr(reward) for reward in rewards]}),
        **describe_law(law),
        "arguments": json.loads(json.dumps(args.to_dict() | asdict(model_args), default=str)),
        "versions": versions() | {name: version(name) for name in ("trl", "accelerate", "peft")},
    }
    with shared_run_folder(PartialState(), out, resume, run_record) as folder:
        args.output_dir = str(folder / "checkpoints")
        trainer = make_trainer(recipe, args, model_args, rollouts, chosen)
        channel_callback = None if measure is None else ChannelCallback(trainer, measure, folder)
        if channel_callback is not None:
            trainer.add_callback(channel_callback)
        policy = base_model(trainer.accelerator.unwrap_model(trainer.model))
        engine = nullcontext() if recipe.backend == "hf" else vllm_engine(rollouts, policy, longest, recipe.engine_args)
        with engine, trainer.under_law():
            train(trainer, last_checkpoint(folder / "checkpoints"))
            if channel_callback is not None:
                channel_callback.finish()
        save_results(trainer, folder, "rl")
    PartialState().wait_for_everyone()  # the main process writes the summary
    return folder


def make_trainer(
    recipe: RLRecipe, args: GRPOConfig, model_args: ModelConfig, rollouts: Rollouts, rewards: Sequence[Reward]
) -> ErasingGRPOTrainer:
    """Return the trainer; it is built before the models attend by the law, because it loads the reference model.

    Raises:
        UserError: The model cannot be loaded or trained with these options.
    """
    rows = [
        {"prompt": problem.id, "question": problem.prompt, "answer": problem.answer}
        for problem in rollouts.bench.problems
    ]
    try:
        model = load_model(recipe.model, model_args)
        stage = "rl-sealed" if recipe.sealed else "rl"
        model.config.ghosttrace = training_record(model.config, recipe.as_sft, rollouts.law, stage)
        return ErasingGRPOTrainer(
            model=model,
            reward_funcs=[checked(reward) for reward in rewards],
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=rollouts.tokenizer,
            rollout_func=rollouts,
            peft_config=get_peft_config(model_args),  # the delimiters are not new, so their embeddings stay
            law=rollouts.law,
            sealed=recipe.sealed,
        )
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{recipe.model} cannot be trained with these options ({error}): change them") from error


def channel_measure(recipe: RLRecipe, rollouts: Rollouts, config: Any) -> ChannelMeasure | None:
    """Return the measurement of the ghost channel that a recipe asks for.

    Raises:
        UserError: A number is not positive, a benchmark is unknown, or its prompts are too long.
    """
    if recipe.channel_every is None:
        return None
    if min(recipe.channel_every, recipe.channel_problems) < 1:
        raise UserError("--channel-every and --channel-problems must be at least 1")
    benches = as_benches(recipe.channel_bench or recipe.bench, recipe.channel_problems, CHANNEL_SEED)
    for bench in benches:
        _check_lengths(rollouts, bench, config)
    sampling = {"max_new_tokens": rollouts.sampling.max_new_tokens, "max_block_tokens": recipe.max_block_tokens}
    return ChannelMeasure(tuple(benches), rollouts.checkpoint, sampling, recipe.channel_every)


def _joined(benches: Sequence[Bench]) -> Bench:
    """Return the only benchmark.

    Raises:
        UserError: There are several, which have graders and harnesses of their own.
    """
    if len(benches) > 1:
        names = ", ".join(bench.name for bench in benches)
        raise UserError(f"the rewards need one grader, and these are several benchmarks ({names}): give one --bench")
    return benches[0]


def _check_lengths(rollouts: Rollouts, bench: Bench, config: Any) -> int:
    """Check that a benchmark's prompts with responses fit into the model's context, and the prompts into the cache.

    Returns:
        The largest number of tokens of a prompt with its response.

    Raises:
        UserError: One does not.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    largest = 0
    for problem in bench.problems:
        prompt = rollouts.prompt_ids(problem.messages or problem.prompt)
        rollouts.law.erasures(prompt)  # raises, for example if the prompt does not fit into a window
        needed = len(prompt) + rollouts.sampling.max_new_tokens
        largest = max(largest, needed)
        if longest is not None and needed > longest:
            raise UserError(
                f"the prompt of {problem.id} and a response take up to {needed} tokens, and the model at most "
                f"{longest}: lower --max_completion_length"
            )
    return largest
