"""The command `ghosttrace sft`: its options, and the training recipe made from them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttrace.cli.options import (
    DelimiterMapping,
    Delimiters,
    KeepLast,
    Limit,
    gather_options,
    hide_loading_bar,
    law_options,
    parse_delimiter_mapping,
    run_options,
    with_options,
)
from ghosttrace.cli.output import print_tables
from ghosttrace.errors import UserError
from ghosttrace.runs.folder import read_json


@with_options(law_options, run_options)
def sft(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bundled name, folder or hub id of a model with the delimiters in its tokenizer. Needed without "
            "--resume."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Training rows in the OpenMementos format: a JSON, JSONL or Parquet file, or a hub id such as "
            "microsoft/OpenMementos:full. Can be repeated. Needed without --resume."
        ),
    ] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="Training stage: full (full attention), memento (what the law erases is masked) or sealed (sealed "
            "cache)."
        ),
    ] = "memento",
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="Held-out rows for --eval_strategy, given like --data. Can be repeated. Default: none."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="Responses to generate at each evaluation and after training, to check their format."),
    ] = 0,
    limit: Limit = None,
    sealed_share: Annotated[
        float, typer.Option(help="Share of traces, from 0 to 1, that stage memento trains over a sealed cache.")
    ] = 0.0,
    sealed_arms: Annotated[
        str,
        typer.Option(
            help="Caches of the sealed traces, in turn: restart, restart-bare, restart-renumbered, as in ablate."
        ),
    ] = "restart",
    kernel: Annotated[
        str | None,
        typer.Option(help="Attention kernel: segments, sdpa, flex or matmul. Default: flex on a GPU, else segments."),
    ] = None,
    bad_rows: Annotated[
        str, typer.Option(help="Rows that cannot be trained on: skip them, or refuse to train.")
    ] = "skip",
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Fine-tune a model to erase its blocks, or what another law erases, in one stage of the training recipe.

    All other flags are passed to SFTConfig and ModelConfig of trl, such as --learning_rate 8e-5, --packing, --use_peft
    or --config FILE.yaml. Their defaults are those of the Memento paper.
    """
    options = gather_training_options(ctx, "sft", "data")
    out, resume = ctx.params["out"], ctx.params["resume"]
    if options is None:  # the run is finished
        print_trained(resume)
        return
    start_sft(options, out, resume)


def gather_training_options(ctx: typer.Context, command: str, source: str) -> dict[str, Any] | None:
    """Return the options of a training command, with the flags for trl under `trainer`; see `gather_options`.

    Args:
        ctx: context of the command.
        command: name of the command.
        source: name of the option with what is trained on, which a new run needs beside a model.

    Raises:
        UserError: an option is missing, or flags for trl are given to a run that has its own.
    """
    options, resume = gather_options(ctx, command), ctx.params["resume"]
    if options is None:
        return None
    if resume and ctx.args:
        raise UserError(f"--resume uses the flags of the run: leave out {' '.join(ctx.args)}")
    missing = [f"--{name}" for name in ("model", source) if not options[name]]
    if missing:
        raise UserError(f"a new run needs {' and '.join(missing)}: give them, or --resume RUN")
    options.setdefault("trainer", list(ctx.args))
    return options


def start_sft(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `sft` with the gathered command-line options.

    Args:
        options: the options, with the flags for trl under `trainer`.
        out: folder of a new run; None for a new folder under runs/.
        resume: folder of an unfinished run to continue.
    """
    try:
        import datasets
        from accelerate import PartialState

        from ghosttrace.training.recipe import Recipe
        from ghosttrace.training.sft import sft as train
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -e '.[train]' in the GhostTrace checkout"
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # in a log, every step of a bar is text

    recipe = Recipe(
        model=options["model"],
        data=tuple(options["data"]),
        eval_data=tuple(options["eval_data"] or ()),
        policy={name: options[name] for name in ("mask_delimiters", "keep_last_n_blocks")},
        delimiters=parse_delimiter_mapping(options["map_delimiters"]),
        trainer=tuple(options["trainer"]),
        sealed_arms=tuple(options["sealed_arms"].split(",")),
        **{name: options[name] for name in ("stage", "limit", "samples", "sealed_share", "kernel", "bad_rows", "law")},
    )
    hide_loading_bar()
    folder = train(recipe, out, resume, options)
    if PartialState().is_main_process:  # the others may finish before the summary is written
        print_trained(folder)


def print_trained(folder: Path) -> None:
    """Print the summary of a finished run, its files and the next command."""
    from ghosttrace.report.training import training_findings

    print_tables(training_findings(read_json(folder / "summary.json", "valid", "steps", "results")), [])
    typer.echo(f"\nWritten to {folder}: model, examples.json, summary.json")
    typer.echo(f"Next: ghosttrace ablate --model {folder / 'model'} --bench BENCH")
