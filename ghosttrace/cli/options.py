"""What the commands of the command line share: options, how they are read, and --resume."""

import json
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.errors import UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.runs.folder import is_finished, read_configuration

Delimiters = Annotated[
    bool | None,
    typer.Option(
        "--mask-delimiters/--keep-delimiters", help="Erase block delimiters too, if the checkpoint does not say."
    ),
]
DelimiterMapping = Annotated[
    str | None, typer.Option("--map-delimiters", help="Other delimiter tokens: block_start=TOKEN,block_end=TOKEN,…")
]
ModelName = Annotated[str, typer.Option(help="Bundled name (toy-mixed, toy-open, toy-sealed), folder or hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; a new one under runs/ by default.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this run folder, as it was begun.")]
KeepLast = Annotated[int | None, typer.Option(help="Keep the last N finished blocks; -1 never erases.")]

Traces = Annotated[
    list[str] | None,
    typer.Option(help="JSON, JSONL, Parquet or text, a run of ablate, or a hub id; may be given again."),
]
Limit = Annotated[int | None, typer.Option(help="Traces of each source.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens read together, padding included.")]


class DtypeName(StrEnum):
    """Number formats a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Dtype = Annotated[DtypeName | None, typer.Option(help="The checkpoint's own by default.")]


def with_options(*blocks: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command further options besides its own; it reads them from `ctx.params` (see `gather_options`).

    Args:
        blocks: functions whose parameters are the further options, such as `model_options`.
    """
    shared = [parameter for block in blocks for parameter in signature(block).parameters.values()]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command)

        @wraps(command)
        def run(**given: Any) -> None:
            command(**{name: given[name] for name in own.parameters})

        run.__signature__ = own.replace(parameters=[*own.parameters.values(), *shared])  # type: ignore[attr-defined]
        run.__annotations__ = command.__annotations__ | {one.name: one.annotation for one in shared}
        return run

    return decorate


def model_options(
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """How a checkpoint is loaded, and its law where it does not record one."""


def run_options(out: Out = None, resume: Resume = None) -> None:
    """Where a run goes, and which one to go on with."""


def parse_integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """`1,2,5` as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} is a list of numbers such as 0,3, not {text!r}") from error


def parse_delimiter_mapping(text: str | None) -> dict[str, str]:
    """`block_start=<a>,block_end=<b>` as a dict."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(name not in DELIMITERS or not token for name, _, token in pairs):
        raise UserError(f"--map-delimiters is NAME=TOKEN,… with names {', '.join(DELIMITERS)}, not {text!r}")
    return {name: token for name, _, token in pairs}


def gather_options(ctx: typer.Context, command: str) -> dict[str, Any] | None:
    """The options of a command line, as JSON values; with --resume those of the run, and what is given on top.

    Returns:
        None if the run to go on with is finished.

    Raises:
        UserError: the run is not one that can be gone on with, or a number is out of range.
    """
    out, resume = ctx.params["out"], ctx.params["resume"]
    options = {name: value for name, value in ctx.params.items() if name not in ("out", "resume")}
    options = json.loads(json.dumps(options, default=str))
    if options.get("seed", 0) < 0:
        raise UserError("--seed is not negative")
    if resume is None:
        return options
    if out is not None:
        raise UserError("--resume goes on in the run's own folder: leave out --out")
    given = {name for name in options if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    recorded = read_configuration(resume, command).get("options")
    if not recorded or not isinstance(recorded, dict):
        raise UserError(f"{resume} was not begun from the command line: go on with it from Python, as it was begun")
    if is_finished(resume):
        Console().print(f"{escape(str(resume))} is finished: nothing is left to do", soft_wrap=True)
        return None
    return options | recorded | {name: options[name] for name in given}


def load_from_options(options: dict[str, Any]) -> Checkpoint:
    """The checkpoint that a command line names.

    Raises:
        UserError: see `ghosttrace.model.checkpoint.load`.
    """
    if (options["device"] or "").partition(":")[0] == "meta":
        raise UserError("device 'meta' holds no numbers: try --device cpu")
    policy = {name: options[name] for name in ("mask_delimiters", "keep_last_n_blocks")}
    delimiters = parse_delimiter_mapping(options["map_delimiters"])
    return load(options["model"], options["device"], options["dtype"], delimiters, **policy)
