"""What to train on what: the options of a fine-tune, held to each other and to the model."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedConfig
from trl.scripts.utils import TrlParser
from trl.trainer.model_config import ModelConfig
from trl.trainer.sft_config import SFTConfig

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.law.masks import Kernel
from ghosttrace.model.checkpoint import CONFIG_KEY, recorded_policy, resolve_policy
from ghosttrace.training.examples import STAGES, Stage, stage_policy
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
"""Defaults: arXiv 2604.09852, section 4, on one GPU; with N of them give --gradient_accumulation_steps 512/N."""

UNSUPPORTED_FLAGS = {
    "model_name_or_path": "the model is --model",
    "model_revision": "give --model a folder of that revision",
    "trust_remote_code": "code of a model's own is not run",
    "attn_implementation": "the law attends, by --kernel",
    "chat_template_path": "put chat_template.jinja beside the model's tokenizer",
    "eos_token": "set it in the model's tokenizer",
    "pad_token": "nothing ever sees the padding",
    "packing_strategy": "packs are filled in order",
    "padding_free": "--packing wastes no padding either",
    "eval_packing": "--packing holds for held-out rows, too",
    "completion_only_loss": "loss is on the completion, or on the labels that rows bring",
    "assistant_only_loss": "loss is on the completion, or on the labels that rows bring",
    "truncation_mode": "what is too long is cut between pairs",
    "hub_token": "it would be written into run.json: set HF_TOKEN",
}
"""Flags of TRL that mean nothing here, and what does instead."""


@dataclass(frozen=True)
class Recipe:
    """What to train on what.

    Attributes:
        model: a bundled name, folder or hub id.
        data: files or hub ids, see `ghosttrace.data.read.records`; rows with `input_ids` and `labels` are taken as
            they are.
        stage: `full`, `memento` or `sealed`.
        limit: rows of each source.
        sealed_share: in the stage `memento`, the share of traces laid out over a sealed cache.
        kernel: how attention runs; FlexAttention on a GPU and segments elsewhere unless told.
        bad_rows: what is done about rows that cannot be used.
        policy: fields of `Policy` that the model does not record.
        delimiters: other spellings of the delimiter tokens.
        eval_data: held-out rows, for `--eval_strategy`.
        samples: responses generated at every evaluation and at the end, to see whether their format is valid.
        trainer: flags of `trl.SFTConfig` and `trl.ModelConfig`, `--config FILE.yaml` among them.
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

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UserError(f"--stage is one of {', '.join(STAGES)}, not {self.stage!r}")
        if not 0 <= self.sealed_share <= 1 or (self.sealed_share and self.stage != "memento"):
            raise UserError("--sealed-share lies between 0 and 1, and belongs to --stage memento")
        told = self.policy.get("keep_last_n_blocks")
        if told is not None and (self.stage == "full" or told < 0):
            raise UserError("keep_last_n_blocks is for the stages that erase, and then 0 or more: leave it out")
        if not self.data:
            raise UserError("there is nothing to train on: give --data a file or a hub id")


def parse_trainer_flags(flags: Sequence[str]) -> tuple[SFTConfig, ModelConfig]:
    """The trainer's options: the paper's, and what is given on top.

    Raises:
        UserError: a flag is unknown, or its value is not of its kind.
    """
    kinds: Any = (SFTConfig, ModelConfig)
    parser = TrlParser(kinds)
    parser.set_defaults(**PAPER_DEFAULTS, use_cpu=not torch.accelerator.is_available())
    try:
        args, model_args, *_ = parser.parse_args_and_config(list(flags))
    except (SystemExit, Exception) as error:  # of trl, transformers, yaml and whatever a flag pulls in
        raise UserError(
            f"the trainer does not take {' '.join(flags)!r} ({error}): flags are those of trl.SFTConfig and "
            "trl.ModelConfig, with their values"
        ) from error
    for told in (args, model_args):
        for each in fields(told):
            if each.name in UNSUPPORTED_FLAGS and getattr(told, each.name) != _default(each):
                raise UserError(
                    f"--{each.name} has no effect on this trainer, so leave it out: {UNSUPPORTED_FLAGS[each.name]}"
                )
    return args, model_args


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def resolve_training_policy(config: PreTrainedConfig, recipe: Recipe) -> Policy:
    """The policy to train for: what the model records, and what is told where it records nothing.

    Raises:
        UserError: they differ, or neither says whether delimiters are erased.
    """
    recorded = recorded_policy(config) or {}
    for name, value in recipe.policy.items():
        if value is None or name not in recorded or recorded[name] == value:
            continue
        if not (name == "keep_last_n_blocks" and recorded[name] == -1):  # after the stage `full` nothing is fixed yet
            raise UserError(
                f"{recipe.model} was trained with {name} = {recorded[name]}, and this stage is told {value}: "
                "stages share one policy, so leave the option out, or begin from a model of the stage full"
            )
    return resolve_policy(recorded, **recipe.policy)


def make_example_builder(recipe: Recipe, config: PreTrainedConfig, tokenizer: Any, args: SFTConfig) -> ExampleBuilder:
    """How rows become examples, for this model.

    Raises:
        UserError: no delimiters, no chat template, examples longer than the model, or a policy that does not fit.
    """
    recorded = (getattr(config, CONFIG_KEY, None) or {}).get("delimiters", {})
    other = {name: token for name, token in recipe.delimiters.items() if recorded.get(name, f"<|{name}|>") != token}
    if other and recorded_policy(config):
        raise UserError(
            f"{recipe.model} was trained with other tokens for {', '.join(other)}: leave --map-delimiters out"
        )
    names = recorded | dict(recipe.delimiters)
    try:
        markup = Markup.from_tokenizer(tokenizer, names)
    except UserError as error:
        raise UserError(f"{error}; or add them with ghosttrace init-tokens") from error
    if not markup.assistant_header:
        raise UserError(f"{recipe.model} has no chat template: put chat_template.jinja beside its tokenizer")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if args.max_length is None or (longest and args.max_length > longest):
        raise UserError(
            f"--max_length is {args.max_length} and {recipe.model} takes at most {longest} positions: give a number "
            "up to that"
        )
    rows, largest = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"{recipe.model} has {rows} embeddings, and its tokenizer an id {largest}: use its own tokenizer"
        )
    law = resolve_training_policy(config, recipe)
    if (recipe.stage == "sealed" or recipe.sealed_share) and stage_policy(law, "sealed").keep_last_n_blocks > 0:
        raise UserError("a sealed stage needs keep_last_n_blocks 0: kept blocks would have to be read many times")
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
    )
