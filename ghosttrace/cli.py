"""The command line: options in, one sentence and exit code 2 for bad input."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from ghosttrace.ablate import Settings
from ghosttrace.channel import ARMS, Part
from ghosttrace.checkpoint import load, resolve_policy
from ghosttrace.data.read import read_traces
from ghosttrace.errors import UserError
from ghosttrace.info import model_info, trace_info
from ghosttrace.report.ablation import run
from ghosttrace.report.tables import model_table, trace_table
from ghosttrace.trace import DELIMITERS

app = typer.Typer(
    help="Study, train, serve and audit language models that erase their own reasoning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Delimiters = Annotated[
    bool | None,
    typer.Option(
        "--mask-delimiters/--keep-delimiters", help="Erase block delimiters too, if the checkpoint does not say."
    ),
]
Mapping = Annotated[
    str | None, typer.Option("--map-delimiters", help="Other delimiter tokens: block_start=TOKEN,block_end=TOKEN,…")
]
KeepLast = Annotated[int | None, typer.Option(help="Keep the last N finished blocks; -1 never erases.")]


class Dtype(StrEnum):
    """Number formats a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """`1,2,5` as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} is a list of numbers such as 0,3, not {text!r}") from error


def mapping(text: str | None) -> dict[str, str]:
    """`block_start=<a>,block_end=<b>` as a dict."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(name not in DELIMITERS or not token for name, _, token in pairs):
        raise UserError(f"--map-delimiters is NAME=TOKEN,… with names {', '.join(DELIMITERS)}, not {text!r}")
    return {name: token for name, _, token in pairs}


@app.callback()
def root() -> None:
    """Keep commands named even when there is only one."""


@app.command()
def ablate(
    model: Annotated[str, typer.Option(help="Bundled name (toy-mixed, toy-open), folder or hub id.")] = "toy-mixed",
    bench: Annotated[str, typer.Option(help="ledger (all four levels), or ledger-h0 … ledger-h3.")] = "ledger",
    arms: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(ARMS)}; memento always runs.")
    ] = None,
    repetitions: Annotated[int | None, typer.Option(help="Samples of each problem.")] = None,
    limit: Annotated[int | None, typer.Option(help="Problems of each benchmark.")] = None,
    seed: Annotated[int, typer.Option(help="Of problems and draws.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps every token.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Relative to the likeliest token.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longer responses are truncated.")] = None,
    max_block_tokens: Annotated[int | None, typer.Option(help="Force a block to end at this length.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows decoded together.")] = 128,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The checkpoint's own by default.")] = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    layers: Annotated[str | None, typer.Option(help="Sealing arms seal these layers alone, e.g. 1,2.")] = None,
    heads: Annotated[str | None, typer.Option(help="… these key-value heads alone.")] = None,
    kv: Annotated[str, typer.Option(help="… keys (k), values (v) or both (k,v).")] = "k,v",
    noise: Annotated[float, typer.Option(help="Relative size of the arm noise.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Run folder; a new one under runs/ by default.")] = None,
) -> None:
    """Open, close or alter the ghost channel of one checkpoint, and measure what that does."""
    kinds = tuple(kv.split(","))
    if not set(kinds) <= {"k", "v"}:
        raise UserError(f"--kv is k, v or k,v, not {kv!r}")
    sampling: dict[str, float | int | None] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    sampling |= {"min_p": min_p, "max_new_tokens": max_new_tokens, "max_block_tokens": max_block_tokens}
    whole = sorted(kinds) == ["k", "v"]
    settings = Settings(
        arms=None if arms is None else tuple(arms.split(",")),
        repetitions=repetitions,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        sampling=sampling,
        part=Part(numbers(layers, "--layers"), numbers(heads, "--heads"), ("k", "v") if whole else kinds),  # type: ignore[arg-type]
        noise=noise,
    )
    policy = {"mask_delimiters": mask_delimiters, "keep_last_n_blocks": keep_last_n_blocks}
    checkpoint = load(model, device, dtype, mapping(map_delimiters), **policy)
    run(checkpoint, bench, settings, out)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or hub id; weights are not loaded.")],
    trace: Annotated[Path | None, typer.Option(help="A trace to read by the law: JSON, JSONL or text.")] = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
) -> None:
    """Say what a model is, and what the law erases from a trace, block by block."""
    console = Console()
    described = model_info(model, mapping(map_delimiters))
    console.print(model_table(described))
    if trace is None:
        return
    policy = resolve_policy(described.policy, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    for text in read_traces(trace):
        console.print(trace_table(described, trace_info(described, text, policy)))


def main() -> None:
    """Run the command line; bad input is one sentence and exit code 2."""
    disable_progress_bar()  # transformers' own, which tells nothing about an ablation
    try:
        app()
    except UserError as error:
        print(f"ghosttrace: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
