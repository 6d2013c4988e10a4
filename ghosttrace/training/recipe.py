"""Options of a fine-tuning run, and their checks against each other and against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedConfig
from trl.scripts.utils import TrlParser
from trl.trainer.model_config import ModelConfig
from trl.trainer.sft_config import SFTConfig

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import KeepAll, Law
from ghosttrace.law.markup import Markup
from ghosttrace.law.masks import Kernel
from ghosttrace.law.parse import MEMENTO, is_memento, parse_law
from ghosttrace.model.erasure_config import (
    CONFIG_KEY,
    read_block_config,
    recorded_law,
    recorded_policy,
    resolve_policy,
)
from ghosttrace.training.examples import SEALED_ARMS, STAGES, SealedArm, Stage, bare_law, stage_policy
from ghosttrace.training.prepare import BadRows, ExampleBuilder

PAPER_DEFAULTS = {
    "learning_rate": 8e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 512,
    "gradient_checkpointing": True,
    "seed": 42,
    "max_length": 32_768,
    "logging_steps": 1,
    "save_total_limit": 2,
    "report_to": ["tensorboard"],
    "output_dir": "checkpoints",
}
"""Defaults of the trainer's flags for one GPU (arXiv 2604.09852, section 4).

With N GPUs, set --gradient_accumulation_steps to 512/N.
"""

UNSUPPORTED_FLAGS = {
    "model_name_or_path": "use --model",
    "model_revision": "give --model a folder of that revision",
    "trust_remote_code": "code from model repositories is never run",
    "attn_implementation": "use --kernel",
    "chat_template_path": "put chat_template.jinja into the folder of the model's tokenizer",
    "eos_token": "set it in the model's tokenizer",
    "pad_token": "no token attends to padding",
    "packing_strategy": "--packing always fills rows by best fit",
    "padding_free": "use --packing, which avoids padding as well",
    "eval_packing": "--packing also applies to --eval-data",
    "completion_only_loss": "loss is on the completion, or on the labels in the rows",
    "assistant_only_loss": "loss is on the completion, or on the labels in the rows",
    "truncation_mode": "long traces are always truncated between pairs of block and memento",
    "hub_token": "the token would be written to run.json: set HF_TOKEN",
}
"""Flags of TRL that have no effect here, each with the reason or the alternative."""


@dataclass(frozen=True)
class Recipe:
    """Options of a fine-tuning run.

    Attributes:
        model: bundled name, folder or hub id.
        data: files or hub ids, see `ghosttrace.data.read.iter_records`; rows with `input_ids` are not tokenised.
        stage: one of `full`, `memento` or `sealed`.
        limit: maximum number of rows of each source; None uses all.
        sealed_share: share of the rows, from 0 to 1, that are laid out with a sealed cache in the stage `memento`.
        sealed_arms: arms of `ghosttrace ablate` whose caches the sealed rows have, in turn.
        kernel: attention kernel; by default `flex` on a GPU and `segments` elsewhere.
        bad_rows: `skip` to count and skip rows that cannot be used, `refuse` to stop with an error.
        policy: fields of `Policy` that the model's config does not record.
        delimiters: token of each delimiter whose spelling is not `<|name|>`, by name.
        eval_data: held-out files or hub ids, for `--eval_strategy`.
        samples: number of responses generated at every evaluation and at the end, to check their format.
        trainer: command-line flags of `trl.SFTConfig` and `trl.ModelConfig`, including `--config FILE.yaml`.
        law: specification of a law, such as `window:64,16`; by default the one that the model's config records, else
            Memento's.

    Raises:
        UserError: if options are invalid or contradict each other.
    """

    model: str
    data: tuple[str, ...]
    stage: Stage
    limit: int | None = None
    sealed_share: float = 0.0
    kernel: Kernel | None = None
    bad_rows: BadRows = "skip"
    policy: Mapping[str, Any] = field(default_factory=dict)
    delimiters: Mapping[str, str] = field(default_factory=dict)
    eval_data: tuple[str, ...] = ()
    samples: int = 0
    trainer: tuple[str, ...] = ()
    law: str | None = None
    sealed_arms: tuple[SealedArm, ...] = ("restart",)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UserError(f"--stage must be one of {', '.join(STAGES)}, not {self.stage!r}")
        if self.kernel not in (None, "segments", "sdpa", "flex", "matmul"):
            raise UserError(f"--kernel must be segments, sdpa, flex or matmul, not {self.kernel!r}")
        if self.bad_rows not in ("skip", "refuse"):
            raise UserError(f"--bad-rows must be skip or refuse, not {self.bad_rows!r}")
        if (self.limit is not None and self.limit < 1) or self.samples < 0:
            raise UserError("--limit must be at least 1, and --samples at least 0")
        if not 0 <= self.sealed_share <= 1 or (self.sealed_share and self.stage != "memento"):
            raise UserError("--sealed-share must be from 0 to 1, and requires --stage memento")
        if not self.sealed_arms or set(self.sealed_arms) - set(SEALED_ARMS):
            given = ",".join(self.sealed_arms)
            raise UserError(f"--sealed-arms must be one or more of {', '.join(SEALED_ARMS)}, not {given!r}")
        if self.sealed_arms != ("restart",) and not self.seals:
            raise UserError("--sealed-arms requires --stage sealed or --sealed-share")
        keep_last_n_blocks = self.policy.get("keep_last_n_blocks")
        if keep_last_n_blocks is not None and (self.stage == "full" or keep_last_n_blocks < 0):
            raise UserError("keep_last_n_blocks requires a stage that erases, and a value of at least 0: leave it out")
        if not self.data:
            raise UserError("no training data: give --data a file or a hub id")

    @property
    def seals(self) -> bool:
        """Whether any row is laid out with a sealed cache."""
        return self.stage == "sealed" or self.sealed_share > 0


def parse_trainer_flags(flags: Sequence[str]) -> tuple[SFTConfig, ModelConfig]:
    """Parse the trainer's command-line flags, with the defaults of the Memento paper.

    Args:
        flags: flags and values of `trl.SFTConfig` and `trl.ModelConfig`, for example `["--learning_rate", "1e-5"]`.

    Raises:
        UserError: if a flag is unknown or has no effect here, or a value is invalid.
    """
    args, model_args = parse_flags(flags, SFTConfig, PAPER_DEFAULTS, UNSUPPORTED_FLAGS)
    return args, model_args


def parse_flags(
    flags: Sequence[str], config_class: type, defaults: Mapping[str, Any], unsupported: Mapping[str, str]
) -> tuple[Any, ModelConfig]:
    """Parse the flags of one of TRL's trainers and of its `ModelConfig`.

    Args:
        flags: flags and values.
        config_class: class of the trainer's options.
        defaults: values that replace TRL's defaults.
        unsupported: flags that have no effect, each with the reason or the alternative.

    Raises:
        UserError: if a flag is unknown or has no effect, or a value is invalid.
    """
    config_classes: Any = (config_class, ModelConfig)
    parser = TrlParser(config_classes)
    parser.set_defaults(**defaults, use_cpu=not torch.accelerator.is_available())
    try:
        args, model_args, *_ = parser.parse_args_and_config(list(flags))
    except (SystemExit, Exception) as error:  # trl, transformers and yaml raise errors of many types
        raise UserError(
            f"the trainer does not accept {' '.join(flags)!r} ({error}): "
            f"use flags of trl.{config_class.__name__} and trl.ModelConfig"
        ) from error
    for config in (args, model_args):
        for flag in fields(config):
            if flag.name in unsupported and getattr(config, flag.name) != _default(flag):
                raise UserError(f"--{flag.name} has no effect on this trainer, leave it out: {unsupported[flag.name]}")
    return args, model_args


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def resolve_training_policy(config: PreTrainedConfig, recipe: Recipe) -> Policy:
    """Return the policy of a run: the policy in the model's config, completed with the recipe's.

    Raises:
        UserError: if the two policies differ, or neither sets `mask_delimiters`.
    """
    recorded = recorded_policy(config) or {}
    for name, value in recipe.policy.items():
        if value is None or name not in recorded or recorded[name] == value:
            continue
        # The stage `full` records -1 (never erase), and a later stage may choose how many blocks it keeps.
        if not (name == "keep_last_n_blocks" and recorded[name] == -1):
            raise UserError(
                f"{recipe.model} was trained with {name} = {recorded[name]}, but this run sets {value}: "
                "leave the option out, because all stages share one policy, or start from a model of the stage full"
            )
    return resolve_policy(recorded, **recipe.policy)


def resolve_training_law(config: PreTrainedConfig, tokenizer: Any, recipe: Recipe) -> tuple[Markup, Law]:
    """Return the markup and the law of a run: the law in the model's config, or the recipe's.

    Raises:
        UserError: if the model was trained under another law than the recipe's, the law erases nothing or cannot do
            what the recipe asks for, or `resolve_training_policy` raises it.
    """
    recorded = recorded_law(config)
    spec = str(recipe.law or recorded or MEMENTO)
    names = (getattr(config, CONFIG_KEY, None) or {}).get("delimiters", {}) | dict(recipe.delimiters)
    if is_memento(spec):
        markup = Markup.from_tokenizer(tokenizer, names)
        if not markup.assistant_header:
            raise UserError(f"{recipe.model} has no chat template: put chat_template.jinja into its tokenizer's folder")
        _check_trained_law(config, recipe, MEMENTO)
        return markup, MementoLaw(markup, resolve_training_policy(config, recipe))
    law = parse_law(spec, Chat.from_tokenizer(tokenizer))
    _check_trained_law(config, recipe, law.spec)
    if isinstance(law, KeepAll) and recipe.stage != "full":
        raise UserError("the law none erases nothing: give another --law, or --stage full")
    if law.replayed and recipe.samples:
        raise UserError(f"{law.spec} replays recorded tokens and cannot generate: leave out --samples")
    markup, *_ = read_block_config(law.spec, config, tokenizer, names, **recipe.policy)
    return markup, law


def _check_trained_law(config: PreTrainedConfig, recipe: Recipe, spec: str) -> None:
    """Raise an error if a model has been trained with erasures of another law."""
    stages = set((getattr(config, CONFIG_KEY, None) or {}).get("stages", ()))
    trained = recorded_law(config) or MEMENTO
    if stages - {"full"} and trained != spec:
        raise UserError(
            f"{recipe.model} was trained under the law {trained}, but this run sets {spec}: leave the option out, "
            "because all stages share one law, or start from a model of the stage full"
        )


def make_example_builder(recipe: Recipe, config: PreTrainedConfig, tokenizer: Any, args: SFTConfig) -> ExampleBuilder:
    """Return the example builder for a model and a recipe.

    Args:
        recipe: options of the run.
        config: config of the recipe's model.
        tokenizer: tokenizer of the recipe's model.
        args: the trainer's options, of which `max_length` and `seed` are used.

    Raises:
        UserError: if the tokenizer lacks delimiters or a chat template, `max_length` exceeds the model's context, or
            the law contradicts the model or the stage.
    """
    recorded = (getattr(config, CONFIG_KEY, None) or {}).get("delimiters", {})
    changed = [name for name, token in recipe.delimiters.items() if recorded.get(name, f"<|{name}|>") != token]
    if changed and recorded_policy(config):
        raise UserError(
            f"{recipe.model} was trained with other tokens for {', '.join(changed)}: leave out --map-delimiters"
        )
    markup, law = resolve_training_law(config, tokenizer, recipe)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest and "--max_length" not in recipe.trainer and args.max_length == PAPER_DEFAULTS["max_length"]:
        args.max_length = min(args.max_length, longest)
    if args.max_length is None or (longest and args.max_length > longest):
        raise UserError(
            f"--max_length is {args.max_length}, but {recipe.model} takes at most {longest} positions: set a smaller "
            "value"
        )
    vocab_size, largest_id = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest_id >= vocab_size:
        raise UserError(
            f"{recipe.model} has {vocab_size} embeddings, but its tokenizer has the id {largest_id}: use the tokenizer "
            "that belongs to the model"
        )
    if recipe.seals and isinstance(law, MementoLaw) and stage_policy(law.policy, "sealed").keep_last_n_blocks > 0:
        raise UserError("a sealed cache cannot keep finished blocks: set keep_last_n_blocks to 0")
    if "restart-bare" in recipe.sealed_arms:
        bare_law(law)
    return ExampleBuilder(
        tokenizer,
        config.model_type,
        markup,
        law,
        recipe.stage,
        args.max_length,
        recipe.sealed_share,
        recipe.bad_rows,
        args.seed,
        recipe.sealed_arms,
    )
