"""Supervised fine-tuning on the law: rows in, a model folder that knows its policy out."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from trl.scripts.utils import TrlParser
from trl.trainer.model_config import ModelConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from ghosttrace.attention import attending
from ghosttrace.checkpoint import RECORD, load_config, load_tokenizer, recorded_policy, resolve_policy, source
from ghosttrace.errors import UserError
from ghosttrace.expiry import Policy
from ghosttrace.masks import FLEX_BLOCK, Kernel
from ghosttrace.records import settle
from ghosttrace.runs import open_run, versions, write_json, write_summary
from ghosttrace.trace import Markup
from ghosttrace.train.collate import Collator
from ghosttrace.train.examples import STAGES, Stage, stage_policy
from ghosttrace.train.prepare import BadRows, Reader, open_examples, write_examples
from ghosttrace.train.sampled import SampleFormat, prompts_of
from ghosttrace.train.trainer import MementoTrainer

PAPER = {
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
        kernel: how attention runs; FlexAttention on a GPU and stretches elsewhere unless told.
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
        if not self.data:
            raise UserError("there is nothing to train on: give --data a file or a hub id")


def arguments(flags: Sequence[str]) -> tuple[SFTConfig, ModelConfig]:
    """The trainer's options: the paper's, and what is given on top.

    Raises:
        UserError: a flag is unknown, or its value is not of its kind.
    """
    kinds: Any = (SFTConfig, ModelConfig)
    parser = TrlParser(kinds)
    parser.set_defaults(**PAPER, use_cpu=not torch.accelerator.is_available())
    try:
        args, model_args, *_ = parser.parse_args_and_config(list(flags))
    except (SystemExit, ValueError, OSError) as error:
        raise UserError(
            f"the trainer does not take {' '.join(flags)!r} ({error}): flags are those of trl.SFTConfig and "
            "trl.ModelConfig, with their values"
        ) from error
    return args, model_args


def law_of(config: PreTrainedConfig, recipe: Recipe) -> Policy:
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


def reader_of(recipe: Recipe, config: PreTrainedConfig, tokenizer: Any, args: SFTConfig) -> Reader:
    """How rows become examples, for this model.

    Raises:
        UserError: no delimiters, no chat template, examples longer than the model, or a policy that does not fit.
    """
    names = (getattr(config, RECORD, None) or {}).get("delimiters", {}) | dict(recipe.delimiters)
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
    law = law_of(config, recipe)
    if (recipe.stage == "sealed" or recipe.sealed_share) and stage_policy(law, "sealed").keep_last_n_blocks > 0:
        raise UserError("a sealed stage needs keep_last_n_blocks 0: kept blocks would have to be read many times")
    return Reader(
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


def sft(
    recipe: Recipe, out: Path | None = None, resume: Path | None = None, options: Mapping[str, Any] | None = None
) -> Path:
    """Train, and leave a run folder: `model/` is the result, with its policy in config.json.

    Args:
        recipe: what to train on what.
        out: the run folder; a new one under runs/ by default.
        resume: a run to go on with, from its last whole checkpoint.
        options: the command line's, for run.json.

    Returns:
        The run folder.

    Raises:
        UserError: anything that cannot be trained as asked.
    """
    args, model_args = arguments(recipe.trainer)
    config, tokenizer = load_config(recipe.model), load_tokenizer(recipe.model)
    reader = reader_of(recipe, config, tokenizer, args)
    if recipe.kernel == "flex" and args.device.type == "cpu":
        raise UserError("FlexAttention has no backward pass on a CPU: leave --kernel out")
    if recipe.samples and PartialState().distributed_type in ("FSDP", "DEEPSPEED"):
        raise UserError("samples are generated by one process, which holds the whole model: leave --samples out")
    if args.eval_strategy != "no" and not recipe.eval_data:
        raise UserError("--eval_strategy needs rows that are held out: give --eval-data")
    decided = {
        "command": "sft",
        "model": recipe.model,
        "options": dict(options or asdict(recipe)),
        "policy": reader.policy.to_dict(),
        "arguments": json.loads(json.dumps(args.to_dict() | asdict(model_args), default=str)),
        "versions": versions() | {name: _version(name) for name in ("trl", "accelerate", "peft")},
    }
    state = PartialState()
    with _folder(state, out, resume, decided) as folder:
        args.output_dir = str(folder / "checkpoints")
        if state.is_main_process:
            _prepare(folder, recipe, reader)
        state.wait_for_everyone()
        trainer = make_trainer(recipe, reader, args, model_args, folder)
        _watch_samples(trainer, recipe, reader, folder)
        kernel = recipe.kernel or ("flex" if trainer.accelerator.device.type == "cuda" else "stretches")
        with attending(base_of(trainer.model), kernel):
            trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
        finish(trainer, recipe, reader, folder)
    return folder


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


@contextmanager
def _folder(state: PartialState, out: Path | None, resume: Path | None, decided: dict[str, Any]) -> Iterator[Path]:
    """The run folder: the first process makes and locks it, the others wait for it."""
    if state.num_processes > 1 and out is None and resume is None:
        raise UserError("several processes share one run folder: give --out")
    if state.is_main_process:
        with open_run(out, resume, decided, print) as folder:
            yield folder
        return
    found = resume or out
    assert found is not None
    yield found


def _prepare(folder: Path, recipe: Recipe, reader: Reader) -> None:
    """Write examples and their report, unless they are there."""
    for name, data in (("examples", recipe.data), ("held-out", recipe.eval_data)):
        path = folder / f"{name}.parquet"
        if data and not path.exists():
            report = write_examples(path, reader, data, recipe.limit)
            write_json(folder / f"{name}.json", asdict(report))


def make_trainer(
    recipe: Recipe, reader: Reader, args: SFTConfig, model_args: ModelConfig, folder: Path
) -> MementoTrainer:
    """The trainer on the examples of a folder."""
    pack = reader.max_length if args.packing else None
    args.packing, args.padding_free, args.eval_packing = False, False, None  # done here, by the law
    args.remove_unused_columns, args.dataset_kwargs = False, {"skip_prepare_dataset": True}
    multiple = int(args.pad_to_multiple_of or (FLEX_BLOCK if recipe.kernel == "flex" else 1))
    work = folder / "cache"
    with PartialState().main_process_first():
        found = {
            name: open_examples(folder / f"{name}.parquet", work, pack)
            for name in ("examples", "held-out")
            if (folder / f"{name}.parquet").exists()
        }
    tokenizer = reader.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return MementoTrainer(
        model=load_model(recipe.model, model_args),
        args=args,
        data_collator=Collator(pad or 0, multiple),
        train_dataset=found["examples"],
        eval_dataset=found.get("held-out"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )


def _watch_samples(trainer: MementoTrainer, recipe: Recipe, reader: Reader, folder: Path) -> None:
    if recipe.samples:
        held_out = folder / "held-out.parquet"
        prompts = prompts_of(held_out if held_out.exists() else folder / "examples.parquet", recipe.samples)
        trainer.add_callback(SampleFormat(trainer, reader, prompts))


def load_model(name: str, model_args: ModelConfig) -> PreTrainedModel:
    """The weights, in the number format that was asked for."""
    quantised = get_quantization_config(model_args)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source(name), dtype=model_args.dtype, quantization_config=quantised, revision=model_args.model_revision
    )
    return model


def base_of(model: Any) -> PreTrainedModel:
    """The model itself, without adapters around it."""
    found: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return found


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole: trainer_state.json is written last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if number:
            whole.append((int(number[1]), str(path)))
    return max(whole)[1] if whole else None


def finish(trainer: MementoTrainer, recipe: Recipe, reader: Reader, folder: Path) -> None:
    """Write the model with its policy, the log, and the summary."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = trainer.model = model.merge_and_unload()
    model.config.ghosttrace = record(model.config, recipe, reader)
    partial = folder / "model.part"
    trainer.save_model(str(partial))
    if not trainer.accelerator.is_main_process:
        return
    partial.rename(folder / "model")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    partial = folder / "samples.part"
    pd.DataFrame(rows).to_parquet(partial, index=False)
    sampled = [row for row in trainer.state.log_history if "sampled_valid" in row]
    write_summary(folder, "sft", True, rows[-1:], steps=trainer.state.global_step, sampled=sampled)
    settle(partial, folder / "samples.parquet")


def record(config: Any, recipe: Recipe, reader: Reader) -> dict[str, Any]:
    """What the model's config says of its training, for whatever loads it."""
    before = dict(getattr(config, RECORD, None) or {})
    names = before.get("delimiters", {}) | dict(recipe.delimiters)
    found = before | {
        "policy": stage_policy(reader.policy, recipe.stage).to_dict(),
        "stages": [*before.get("stages", []), recipe.stage],
    }
    return found | ({"delimiters": names} if names else {})
