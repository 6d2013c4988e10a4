"""The command `ghosttrace rl`: its options, and the training recipe made from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttrace.cli.options import (
    DelimiterMapping,
    Delimiters,
    EngineArguments,
    KeepLast,
    hide_loading_bar,
    law_options,
    parse_delimiter_mapping,
    parse_engine_args,
    run_options,
    with_options,
)
from ghosttrace.cli.sft import gather_training_options, print_trained
from ghosttrace.errors import UserError


@with_options(law_options, run_options)
def rl(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="Bundled name, folder or hub id of a model that was trained under a law. Needed at first."),
    ] = None,
    bench: Annotated[
        str | None,
        typer.Option(help="Benchmark whose problems are the prompts: a name or a .jsonl file. Needed at first."),
    ] = None,
    rewards: Annotated[
        str,
        typer.Option(help="Rewards with weights, such as correct,format:0.1: correct, format, compression, channel."),
    ] = "correct",
    limit: Annotated[int | None, typer.Option(help="Number of problems. Default: all.")] = None,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Write the rollouts, and train, over a sealed cache: no ghost channel.")
    ] = False,
    max_block_tokens: Annotated[
        int | None, typer.Option(help="Tokens in a block after which its end is forced. Default: no limit.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What writes the rollouts: hf (the model that is trained), or vllm in the same process.")
    ] = "hf",
    engine_args: EngineArguments = None,
    channel_every: Annotated[
        int | None,
        typer.Option(help="Steps between measurements of the ghost channel on fixed problems. Default: none."),
    ] = None,
    channel_bench: Annotated[
        str | None, typer.Option(help="Benchmarks on which the channel is measured, by commas. Default: --bench.")
    ] = None,
    channel_problems: Annotated[
        int, typer.Option(help="Problems per benchmark on which the channel is measured.")
    ] = 100,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Improve a model with verifiable rewards, with rollouts and training under one law.

    All other flags are passed to GRPOConfig and ModelConfig of trl, such as --learning_rate 1e-6, --use_peft or
    --config FILE.yaml. Their defaults are those of the Memento paper.
    """
    options = gather_training_options(ctx, "rl", "bench")
    out, resume = ctx.params["out"], ctx.params["resume"]
    if options is None:  # the run is finished
        print_trained(resume)
        return
    if any(options[name] is not None and options[name] < 1 for name in ("limit", "max_block_tokens")):
        raise UserError("--limit and --max-block-tokens must be at least 1")
    start_rl(options, out, resume)


def start_rl(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `rl` with the gathered command-line options.

    Args:
        options: the options, with the flags for trl under `trainer`.
        out: folder of a new run; None for a new folder under runs/.
        resume: folder of an unfinished run to continue.
    """
    try:
        from accelerate import PartialState

        from ghosttrace.training.rl import RLRecipe
        from ghosttrace.training.rl import rl as train
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -e '.[train]' in the GhostTrace checkout"
        ) from error
    recipe = RLRecipe(
        backend=options["backend"],
        engine_args=parse_engine_args(options["backend"], options["engine_args"]),
        policy={name: options[name] for name in ("mask_delimiters", "keep_last_n_blocks")},
        delimiters=parse_delimiter_mapping(options["map_delimiters"]),
        trainer=tuple(options["trainer"]),
        **{name: options[name] for name in ("model", "bench", "rewards", "limit", "sealed", "max_block_tokens", "law")},
        **{f"channel_{name}": options[f"channel_{name}"] for name in ("every", "bench", "problems")},
    )
    hide_loading_bar()
    defaults = {"backend": "hf", "engine_args": None}  # not recorded: earlier versions did not have these options
    recorded = {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}
    folder = train(recipe, out, resume, recorded)
    if PartialState().is_main_process:
        print_trained(folder)
