"""The command `ghosttrace sft`: its options, and the recipe that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttrace.cli.options import (
    DelimiterMapping,
    Delimiters,
    KeepLast,
    Limit,
    gather_options,
    parse_delimiter_mapping,
    run_options,
    with_options,
)
from ghosttrace.errors import UserError


@with_options(run_options)
def sft(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id, with the delimiters in its tokenizer.")],
    data: Annotated[
        list[str],
        typer.Option(help="OpenMementos rows: JSON, JSONL, Parquet or a hub id, e.g. microsoft/OpenMementos:full."),
    ],
    stage: Annotated[str, typer.Option(help="full attention, memento attention, or over a sealed cache.")] = "memento",
    eval_data: Annotated[list[str] | None, typer.Option(help="Rows held out, for --eval_strategy.")] = None,
    samples: Annotated[int, typer.Option(help="Responses generated at evaluations and at the end: format valid?")] = 0,
    limit: Limit = None,
    sealed_share: Annotated[float, typer.Option(help="Of the traces of a memento stage: laid out sealed.")] = 0.0,
    kernel: Annotated[
        str | None, typer.Option(help="segments, sdpa, flex or matmul; flex on a GPU, else segments.")
    ] = None,
    bad_rows: Annotated[str, typer.Option(help="skip or refuse rows that cannot be trained on.")] = "skip",
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Fine-tune a model to erase: one stage of the recipe. Further flags go to trl's SFTConfig and ModelConfig
    (--learning_rate 8e-5, --packing, --use_peft, --config FILE.yaml); their defaults are the paper's.
    """
    options = gather_options(ctx, "sft")
    if options is not None:
        out, resume = ctx.params["out"], ctx.params["resume"]
        if resume and ctx.args:
            raise UserError(f"a run goes on with its own flags: leave out {' '.join(ctx.args)}")
        options.setdefault("trainer", list(ctx.args))
        start_sft(options, out, resume)


def start_sft(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `sft` with these options of its command line."""
    try:
        from ghosttrace.training.recipe import Recipe
        from ghosttrace.training.sft import sft as train
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -e '.[train]' in the GhostTrace checkout") from error

    if options["kernel"] not in (None, "segments", "sdpa", "flex", "matmul"):
        raise UserError(f"--kernel is segments, sdpa, flex or matmul, not {options['kernel']!r}")
    if options["bad_rows"] not in ("skip", "refuse"):
        raise UserError(f"--bad-rows is skip or refuse, not {options['bad_rows']!r}")
    if (options["limit"] or 1) < 1 or options["samples"] < 0:
        raise UserError("--limit is at least 1, --samples at least 0")
    recipe = Recipe(
        model=options["model"],
        data=tuple(options["data"]),
        eval_data=tuple(options["eval_data"] or ()),
        policy={name: options[name] for name in ("mask_delimiters", "keep_last_n_blocks")},
        delimiters=parse_delimiter_mapping(options["map_delimiters"]),
        trainer=tuple(options["trainer"]),
        **{name: options[name] for name in ("stage", "limit", "samples", "sealed_share", "kernel", "bad_rows")},
    )
    folder = train(recipe, out, resume, options)
    typer.echo(f"Written to {folder}: model, examples.json, summary.json")
