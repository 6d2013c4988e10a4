"""Options that several commands share, their parsing, and `--resume`."""

import json
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.errors import UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.runs.folder import is_finished, read_configuration
from ghosttrace.runs.paths import check_new

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint

Delimiters = Annotated[
    bool | None,
    typer.Option(
        "--mask-delimiters/--keep-delimiters",
        help="Erase the delimiters of a block together with it, or keep them. Must match the model's training. "
        "Default: as recorded in the checkpoint.",
    ),
]
DelimiterMapping = Annotated[
    str | None,
    typer.Option(
        "--map-delimiters",
        help="Tokens that the model uses as delimiters: block_start=TOKEN,block_end=TOKEN,… Default: as recorded in "
        "the checkpoint, else <|block_start|> and so on.",
    ),
]
ModelName = Annotated[
    str, typer.Option(help="Bundled name (toy-mixed, toy-open, toy-sealed), folder or hub id of the model.")
]
Device = Annotated[
    str | None, typer.Option(help="Torch device, e.g. cpu, cuda or cuda:1. Default: a GPU if available, else cpu.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of a new run. Default: a new folder under runs/.")]
Resume = Annotated[
    Path | None, typer.Option(help="Folder of an unfinished run to continue with its own options. Default: a new run.")
]
LawSpec = Annotated[
    str | None,
    typer.Option(
        "--law",
        help="Law by which tokens leave the cache: window:SIZE,STRIDE, sinks:N,WINDOW, chunks:SIZE,CARRY, "
        "turns:KEEP,STRIDE, tools:KEEP, log:FILE, none, or memento. Default: as recorded in the checkpoint, else "
        "memento.",
    ),
]
EngineArguments = Annotated[
    str | None,
    typer.Option(
        help='Arguments of vllm.LLM as a JSON object, e.g. {"max_model_len": 40960}; only with --backend vllm. '
        "Default: none."
    ),
]
KeepLast = Annotated[
    int | None,
    typer.Option(
        help="Number of most recent finished blocks that stay in the cache; 0 erases every finished block, -1 none. "
        "Default: as recorded in the checkpoint."
    ),
]

Traces = Annotated[
    list[str] | None,
    typer.Option(
        help="Traces: a JSON, JSONL, Parquet or text file, the folder of an ablate run, or a hub id of a data set. Can "
        "be repeated. Default: traces of --bench."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Maximum number of traces per source. Default: all.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Ray cluster that does the work: HOST:PORT; auto, the one that this machine belongs to; or local, one on "
        "this machine alone. Default: none.",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        help="Number of workers on the Ray cluster, each with the whole model. Default: one for each GPU, or one for "
        "each CPU of a cluster without GPUs."
    ),
]
BatchTokens = Annotated[int, typer.Option(help="Maximum number of tokens per batch, padding included.")]


class OutputFormat(StrEnum):
    """Formats in which results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


Format = Annotated[
    OutputFormat,
    typer.Option(help="How results are printed: table, json (findings and all rows) or csv (all rows)."),
]


class DtypeName(StrEnum):
    """Data types in which a model can be loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Dtype = Annotated[DtypeName | None, typer.Option(help="Data type of the model. Default: that of the checkpoint.")]


NOT_RECORDED = ("out", "resume", "format", "ray", "workers")
"""Options that do not change the results, so that they are not recorded in run.json."""


def with_options(*blocks: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds shared options to a command.

    The command does not receive these options as arguments. It reads them from `ctx.params` (see `gather_options`).

    Args:
        blocks: functions whose parameters declare the shared options, such as `model_options`.
    """
    shared = [parameter for block in blocks for parameter in signature(block).parameters.values()]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command)

        @wraps(command)
        def run(**given: Any) -> None:
            command(**{name: given[name] for name in own.parameters})

        run.__signature__ = own.replace(parameters=[*own.parameters.values(), *shared])  # type: ignore[attr-defined]
        run.__annotations__ = command.__annotations__ | {option.name: option.annotation for option in shared}
        return run

    return decorate


def model_options(
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Declare the options for loading a checkpoint, and for its policy where it does not record one."""


def law_options(law: LawSpec = None) -> None:
    """Declare the option for the law of a command that measures every law."""


def output_options(format: Format = OutputFormat.table) -> None:
    """Declare the option for the format of the results."""


def cluster_options(ray: RayAddress = None, workers: NumWorkers = None) -> None:
    """Declare the options for the workers of a run."""


def run_options(out: Out = None, resume: Resume = None) -> None:
    """Declare the options for the folder of a run and for resuming."""


def parse_integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return the integers of a comma-separated list such as `1,2,5`; None for None.

    Args:
        text: the value of the option.
        option: name of the option, for the message.

    Raises:
        UserError: the text is not such a list.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} must be a comma-separated list of integers such as 0,3, not {text!r}") from error


def parse_engine_args(backend: str, text: str | None) -> dict[str, Any]:
    """Return the arguments of vLLM's engine from a JSON object; {} for None.

    Raises:
        UserError: the backend does not exist, or the arguments are not a JSON object or not for vLLM.
    """
    try:
        engine_args = json.loads(text or "{}")
    except ValueError:
        engine_args = None
    if not isinstance(engine_args, dict):
        raise UserError(f'--engine-args must be a JSON object such as {{"max_model_len": 40960}}, not {text!r}')
    if backend not in ("hf", "vllm"):
        raise UserError(f"--backend must be hf or vllm, not {backend!r}")
    if engine_args and backend != "vllm":
        raise UserError("--engine-args needs --backend vllm: add it, or remove --engine-args")
    return engine_args


def parse_delimiter_mapping(text: str | None) -> dict[str, str]:
    """Return the tokens by delimiter name of a text such as `block_start=<a>,block_end=<b>`; {} for None.

    Raises:
        UserError: a name is not a delimiter, or a token is missing.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(name not in DELIMITERS or not token for name, _, token in pairs):
        raise UserError(f"--map-delimiters must be NAME=TOKEN,… with names {', '.join(DELIMITERS)}, not {text!r}")
    return {name: token for name, _, token in pairs}


def gather_options(ctx: typer.Context, command: str) -> dict[str, Any] | None:
    """Return the options of a command line as JSON values, without those that do not change the results.

    With `--resume`, the options recorded in the run replace all options that are not given on the command line.

    Args:
        ctx: context of the command.
        command: name of the command.

    Returns:
        The options by name, or None if the run to resume is already finished.

    Raises:
        UserError: the run cannot be resumed, or the seed is negative.
    """
    out, resume = ctx.params["out"], ctx.params["resume"]
    options = {name: value for name, value in ctx.params.items() if name not in NOT_RECORDED}
    options = json.loads(json.dumps(options, default=str))
    if options.get("seed", 0) < 0:
        raise UserError("--seed must not be negative")
    if out is not None and resume is None:
        check_new(out)  # before a model is loaded
    if resume is None:
        return options
    if out is not None:
        raise UserError("--resume continues in the run's own folder: leave out --out")
    given = {name for name in options if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    recorded = read_configuration(resume, command).get("options")
    if not recorded or not isinstance(recorded, dict):
        raise UserError(f"{resume} was not started from the command line: resume it from Python")
    if is_finished(resume):
        message = f"{escape(str(resume))} is finished: nothing is left to do"
        Console(stderr=True).print(message, soft_wrap=True)
        return None
    return options | recorded | {name: options[name] for name in given}


def load_from_options(options: dict[str, Any]) -> "Checkpoint":
    """Load the checkpoint that the options name, with their device, dtype, delimiters and law.

    Raises:
        UserError: the device is `meta`; or see `ghosttrace.model.checkpoint.load`.
    """
    from ghosttrace.model.checkpoint import load

    if (options["device"] or "").partition(":")[0] == "meta":
        raise UserError("device 'meta' cannot run a model: use --device cpu")
    policy = {name: options[name] for name in ("mask_delimiters", "keep_last_n_blocks")}
    delimiters = parse_delimiter_mapping(options["map_delimiters"])
    hide_loading_bar()
    return load(options["model"], options["device"], options["dtype"], delimiters, law=options.get("law"), **policy)


def hide_loading_bar() -> None:
    """Hide the progress bar with which transformers loads weights; it would disturb the progress bar of a run."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
