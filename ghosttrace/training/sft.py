"""Supervised fine-tuning under a law of eviction, such as Memento's; the resulting model's config records the law."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.model_config import ModelConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.law.masks import FLEX_TILE_SIZE, Kernel
from ghosttrace.law.parse import describe_law
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import load_config, load_tokenizer, resolve_pretrained_path
from ghosttrace.model.erasure_config import CONFIG_KEY
from ghosttrace.runs.atomic import commit_file
from ghosttrace.runs.folder import json_rows, open_run_folder, versions, write_json
from ghosttrace.training.collate import Collator
from ghosttrace.training.examples import stage_law
from ghosttrace.training.format_samples import FormatCallback, read_prompts
from ghosttrace.training.prepare import ExampleBuilder, open_examples, write_examples
from ghosttrace.training.recipe import Recipe, make_example_builder, parse_trainer_flags
from ghosttrace.training.trainer import MementoTrainer


def sft(
    recipe: Recipe, out: Path | None = None, resume: Path | None = None, options: Mapping[str, Any] | None = None
) -> Path:
    """Run one training stage and write its run folder.

    `model/` in the run folder is the trained model, with its law in config.json.

    Args:
        recipe: options of the run.
        out: run folder to create; by default a new folder under runs/.
        resume: folder of a run to resume from its last complete checkpoint.
        options: options of the command line, recorded in run.json; None records the recipe.

    Returns:
        The run folder.

    Raises:
        UserError: if the recipe, the model, the data or the run folder does not permit the training.
    """
    args, model_args = parse_trainer_flags(recipe.trainer)
    config, tokenizer = load_config(recipe.model), load_tokenizer(recipe.model)
    example_builder = make_example_builder(recipe, config, tokenizer, args)
    kernel: Kernel = recipe.kernel or ("flex" if args.device.type == "cuda" else "segments")
    if kernel == "flex" and args.device.type == "cpu":
        raise UserError("FlexAttention has no backward pass on a CPU: leave out --kernel")
    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    if recipe.samples and sharded:
        raise UserError("--samples needs an unsharded model, without FSDP or DeepSpeed: leave out --samples")
    if args.eval_strategy != "no" and not recipe.eval_data:
        raise UserError("--eval_strategy needs held-out rows: give --eval-data")
    run_record = {
        "command": "sft",
        "model": recipe.model,
        **run_options(recipe, options),
        **describe_law(example_builder.law),
        "arguments": json.loads(json.dumps(args.to_dict() | asdict(model_args), default=str)),
        "versions": versions() | {name: version(name) for name in ("trl", "accelerate", "peft")},
    }
    state = PartialState()
    with shared_run_folder(state, out, resume, run_record) as folder:
        args.output_dir = str(folder / "checkpoints")
        if state.is_main_process:
            _prepare(folder, recipe, example_builder)
        state.wait_for_everyone()
        prompts = _prompts(recipe, folder)  # may raise an error, so it comes before the weights are loaded
        trainer = make_trainer(
            recipe, example_builder, args, model_args, folder, FLEX_TILE_SIZE if kernel == "flex" else 1
        )
        if prompts:
            trainer.add_callback(FormatCallback(trainer, example_builder, prompts))
        with attending(base_model(trainer.model), kernel):
            train(trainer, last_checkpoint(folder / "checkpoints"))
        save_results(trainer, folder)
    state.wait_for_everyone()  # the main process writes the summary
    return folder


def run_options(recipe: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what run.json records of the options: those of the command line, or the recipe of a run from Python."""
    return {"recipe": asdict(recipe)} if options is None else {"options": dict(options)}


@contextmanager
def shared_run_folder(
    state: PartialState, out: Path | None, resume: Path | None, run_record: dict[str, Any]
) -> Iterator[Path]:
    """Yield the run folder, which only the main process creates and locks."""
    if state.num_processes > 1 and out is None and resume is None:
        raise UserError("several processes need the same run folder: give --out")
    if state.is_main_process:
        with open_run_folder(out, resume, run_record) as folder:
            yield folder
        return
    shared = resume or out
    assert shared is not None
    yield shared


def _prepare(folder: Path, recipe: Recipe, example_builder: ExampleBuilder) -> None:
    """Write the examples and their reports, unless they exist."""
    for name, data in (("examples", recipe.data), ("held-out", recipe.eval_data)):
        path = folder / f"{name}.parquet"
        if data and not path.with_suffix(".json").exists():  # the report is written after the examples
            report = write_examples(path, example_builder, data, recipe.limit)
            write_json(path.with_suffix(".json"), asdict(report))
            for reason, count in report.dropped.items():
                print(f"{name}: {count} rows dropped: {reason}")


def make_trainer(
    recipe: Recipe,
    example_builder: ExampleBuilder,
    args: SFTConfig,
    model_args: ModelConfig,
    folder: Path,
    pad_to_multiple_of: int,
) -> MementoTrainer:
    """Return the trainer for the examples in a run folder.

    Args:
        recipe: options of the run.
        example_builder: defines the tokenizer, the law and the maximum length.
        args: the trainer's options; changed in place.
        model_args: options for loading the model, such as dtype, quantisation and adapters.
        folder: run folder with `examples.parquet` and optionally `held-out.parquet`.
        pad_to_multiple_of: the batch width is a multiple of this number, unless `args` sets another.

    Raises:
        UserError: if the model cannot be loaded or trained with these options.
    """
    packed_width = example_builder.max_length if args.packing else None
    args.packing, args.padding_free, args.eval_packing = False, False, None  # `open_examples` packs
    args.remove_unused_columns, args.dataset_kwargs = False, {"skip_prepare_dataset": True}
    pad_to_multiple_of = int(args.pad_to_multiple_of or pad_to_multiple_of)
    cache_dir = folder / "cache"
    with PartialState().main_process_first():
        datasets = {
            name: open_examples(folder / f"{name}.parquet", cache_dir, packed_width)
            for name in ("examples", "held-out")
            if (folder / f"{name}.parquet").exists()
        }
    tokenizer = example_builder.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        model = load_model(recipe.model, model_args)
        model.config.ghosttrace = training_record(
            model.config, recipe, example_builder.law
        )  # saved in checkpoints as well
        trainer = MementoTrainer(
            model=model,
            args=args,
            data_collator=Collator(pad_id or 0, pad_to_multiple_of),
            train_dataset=datasets["examples"],
            eval_dataset=datasets.get("held-out"),
            processing_class=tokenizer,
            peft_config=adapter_config(model_args, model, example_builder.markup),
        )
        output = base_model(trainer.model).get_output_embeddings()
        if not hasattr(output, "bias"):  # peft's wrapper around trained embeddings lacks it, and trl's loss reads it
            output.register_parameter("bias", None)
        return trainer
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{recipe.model} cannot be trained with these options ({error}): change them") from error


def adapter_config(model_args: ModelConfig, model: PreTrainedModel, markup: Markup) -> Any:
    """Return the configuration of the adapter, or None without `--use_peft`.

    An adapter also trains the embeddings of the delimiters, which are new to the model and which no low-rank update
    of other weights can set.
    """
    config = get_peft_config(model_args)
    if config is not None and markup.has_delimiters:
        ids = sorted(markup.delimiters)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        config.trainable_token_indices = ids if tied else {"embed_tokens": ids, "lm_head": ids}  # type: ignore[attr-defined]
    return config


def train(trainer: Any, checkpoint: str | None) -> None:
    """Train from a checkpoint, or from the start if it is None.

    If the checkpoint is already at the last step, this only restores it: transformers would train one more step before
    it checks the number of steps.
    """
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:
            trainer._load_from_checkpoint(checkpoint)
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=checkpoint)


def _prompts(recipe: Recipe, folder: Path) -> list[list[int]]:
    """Return the prompts for `recipe.samples`, from held-out examples if there are any."""
    held_out = folder / "held-out.parquet"
    path = held_out if held_out.exists() else folder / "examples.parquet"
    return read_prompts(path, recipe.samples) if recipe.samples else []


def load_model(name: str, model_args: ModelConfig) -> PreTrainedModel:
    """Load a model with the dtype and the quantisation of the options."""
    quantization_config = get_quantization_config(model_args)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        resolve_pretrained_path(name), dtype=model_args.dtype, quantization_config=quantization_config
    )
    return model


def base_model(model: Any) -> PreTrainedModel:
    """Return the model without the adapters that may wrap it."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of the newest complete checkpoint in a folder; None if there is none.

    The trainer writes trainer_state.json last, so a checkpoint in which it is readable is complete.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if number:
            complete.append((int(number[1]), str(path)))
    return max(complete)[1] if complete else None


def save_results(trainer: Any, folder: Path, command: str = "sft") -> None:
    """Write the model, unless it exists, then the training log and the summary of a command."""
    if not (folder / "model").exists():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if hasattr(model, "merge_and_unload"):
            trainer.model = model.merge_and_unload()
        partial = folder / "model.part"
        trainer.save_model(str(partial))
        if trainer.accelerator.is_main_process:
            partial.rename(folder / "model")
    if not trainer.accelerator.is_main_process:
        return
    shutil.rmtree(folder / "cache", ignore_errors=True)
    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    log = log.sort_index(axis=1)  # a resumed run reads its history from a file with sorted keys
    partial = folder / "samples.part"
    log.to_parquet(partial, index=False)
    sampled = pd.DataFrame([row for row in trainer.state.log_history if "sampled_valid" in row])
    assert trainer.model is not None
    finite = all(bool(weights.isfinite().all()) for weights in trainer.model.parameters())
    steps = trainer.state.global_step
    last = log.tail(1).replace([np.inf, -np.inf], np.nan)
    summary = {"command": command, "valid": finite, "steps": steps, "sampled": json_rows(sampled)}
    write_json(folder / "summary.json", summary | {"results": json_rows(last)})
    commit_file(partial, folder / "samples.parquet")


def training_record(config: Any, recipe: Recipe, law: Law, stage: str | None = None) -> dict[str, Any]:
    """Return the entry `ghosttrace` of the trained model's config: law, past training stages and delimiters.

    Memento's law is recorded as its policy, any other as its specification. After the stage `full` the record says that
    nothing was erased, so that a later stage may erase.

    Args:
        config: the model's config before the training.
        recipe: options of the run.
        law: the checkpoint's law.
        stage: name of the stage in the record; by default the recipe's.
    """
    before = dict(getattr(config, CONFIG_KEY, None) or {})
    before.pop("law", None)
    names = before.get("delimiters", {}) | dict(recipe.delimiters)
    law = stage_law(law, recipe.stage)
    recorded = {"policy": law.policy.to_dict()} if isinstance(law, MementoLaw) else {"law": law.spec}
    record = before | recorded | {"stages": [*before.get("stages", []), stage or recipe.stage]}
    return record | ({"delimiters": names} if names else {})
