"""The command `ghosttrace ablate`: its options, and the run that they name."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.ablation.arms import ARMS, Part
from ghosttrace.ablation.backend import Backend, HuggingFaceBackend
from ghosttrace.ablation.run import run_ablation
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import BENCH_NAMES, load_bench
from ghosttrace.cli.options import ModelName, gather_options, model_options, parse_integers, run_options, with_options
from ghosttrace.cli.output import load_and_show_progress, print_verdict
from ghosttrace.errors import UserError
from ghosttrace.report.ablation.table import ablation_table, swap_table

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "max_block_tokens")


@with_options(model_options, run_options)
def ablate(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    bench: Annotated[str, typer.Option(help=f"{', '.join(BENCH_NAMES)}, or a .jsonl file.")] = "ledger",
    bench_file: Annotated[
        Path | None, typer.Option(help="JSONL with id, problem and answer: the bench's problems without the hub.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(ARMS)}; memento always runs.")
    ] = None,
    repetitions: Annotated[int | None, typer.Option(help="Samples of each problem; the bench says.")] = None,
    limit: Annotated[int | None, typer.Option(help="Problems of each benchmark.")] = None,
    seed: Annotated[int, typer.Option(help="Of problems and draws.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps every token.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Relative to the likeliest token.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longer responses are truncated.")] = None,
    max_block_tokens: Annotated[int | None, typer.Option(help="Force a block to end at this length.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows decoded together; 128, or what a GPU holds.")] = None,
    layers: Annotated[str | None, typer.Option(help="Sealing arms seal these layers alone, e.g. 1,2.")] = None,
    heads: Annotated[str | None, typer.Option(help="… these key-value heads alone.")] = None,
    kv: Annotated[str, typer.Option(help="… keys (k), values (v) or both (k,v).")] = "k,v",
    noise: Annotated[float, typer.Option(help="Relative size of the arm noise.")] = 0.5,
    backend: Annotated[str, typer.Option(help="hf, or vllm for the arms that it can run.")] = "hf",
    engine_args: Annotated[
        str | None, typer.Option(help='Arguments of vLLM\'s LLM as JSON, e.g. {"max_model_len": 40960}.')
    ] = None,
) -> None:
    """Open, close or alter the ghost channel of one checkpoint, and measure what that does."""
    options = gather_options(ctx, "ablate")
    if options is not None:
        start_ablation(ctx, options)


def start_ablation(ctx: typer.Context, options: dict[str, Any]) -> None:
    """Run `ablate` with these options of its command line."""
    kinds = tuple(options["kv"].split(","))
    if not set(kinds) <= {"k", "v"}:
        raise UserError(f"--kv is k, v or k,v, not {options['kv']!r}")
    whole = sorted(kinds) == ["k", "v"]
    layers, heads = (parse_integers(options[name], f"--{name}") for name in ("layers", "heads"))
    settings = AblationSettings(
        arms=None if options["arms"] is None else tuple(options["arms"].split(",")),
        **{name: options[name] for name in ("repetitions", "limit", "seed", "batch_size", "noise")},
        sampling={name: options[name] for name in SAMPLING},
        part=Part(layers, heads, ("k", "v") if whole else kinds),
    )
    backend = _backend(options["backend"], options["engine_args"])
    file = None if options["bench_file"] is None else Path(options["bench_file"])
    benches = load_bench(options["bench"], settings.limit, settings.seed, file)
    with load_and_show_progress(ctx, "ablate", options) as (checkpoint, run):
        result = run_ablation(checkpoint, benches, settings, backend, **run)
    Console().print(ablation_table(result.results))
    swapped = swap_table(result.results)
    if swapped:
        Console().print(swapped)
    print_verdict(result)


def _backend(name: str, arguments: str | None) -> Backend:
    """The backend of this name, with vLLM's arguments as JSON.

    Raises:
        UserError: no such backend, or arguments that are not a JSON object.
    """
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f'--engine-args is a JSON object, such as {{"max_model_len": 40960}}, not {arguments!r}')
    if name not in ("hf", "vllm") or (found and name != "vllm"):
        raise UserError("--backend is hf or vllm, and --engine-args are vLLM's")
    if name == "hf":
        return HuggingFaceBackend()
    from ghosttrace.serving.vllm.backend import VllmBackend

    return VllmBackend(found)
