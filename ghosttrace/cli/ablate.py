"""The command `ghosttrace ablate`: its options, and how they start a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.ablation.arms import ARMS
from ghosttrace.bench import BENCH_NAMES, load_bench
from ghosttrace.cli.options import (
    EngineArguments,
    ModelName,
    cluster_options,
    gather_options,
    law_options,
    model_options,
    output_options,
    parse_engine_args,
    parse_integers,
    run_options,
    with_options,
)
from ghosttrace.cli.output import exit_if_invalid, load_and_show_progress, print_result
from ghosttrace.errors import UserError

if TYPE_CHECKING:
    from ghosttrace.ablation.backend import Backend
    from ghosttrace.ablation.result import AblationResult

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "max_block_tokens")


@with_options(model_options, law_options, run_options, cluster_options, output_options)
def ablate(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    bench: Annotated[
        str,
        typer.Option(
            help=f"Benchmark: {', '.join(BENCH_NAMES)}, or a .jsonl file with id, problem, answer and, if problems "
            "are variants of each other, cluster, or with the columns of LiveCodeBench."
        ),
    ] = "ledger",
    bench_file: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file with the problems of --bench (id, problem, answer, optional cluster; for livecodebench "
            "its own columns, or the folder of its files). Default: download them from the hub."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated arms, from {', '.join(ARMS)}. memento always runs. Default: the standard arms that "
            "apply to the checkpoint and the benchmark."
        ),
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(help="Samples per problem. Default: the benchmark's protocol.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of problems per benchmark. Default: all, or 400 for ledger.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of generated problems and of sampling.")] = 0,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 is greedy. Default: the benchmark's protocol.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus sampling; 1 keeps all tokens. Default: the benchmark's protocol.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from the k most likely tokens; 0 keeps all. Default: the benchmark's protocol."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Minimum probability of a token, relative to the most likely one; 0 keeps all. Default: the "
            "benchmark's protocol."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens after which a response is truncated. Default: the benchmark's protocol."),
    ] = None,
    max_block_tokens: Annotated[
        int | None, typer.Option(help="Tokens after which the end of a block is forced. Default: no limit.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences decoded together. Default: 128, or fewer if GPU memory requires it.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers that sealing arms recompute, comma-separated, e.g. 1,2. Default: all.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Key-value heads that sealing arms recompute, comma-separated. Default: all.")
    ] = None,
    kv: Annotated[
        str, typer.Option(help="States that sealing arms recompute: keys (k), values (v) or both (k,v).")
    ] = "k,v",
    noise: Annotated[
        float,
        typer.Option(help="Standard deviation of the arm noise, relative to the root mean square of the states."),
    ] = 0.5,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Margin, in percentage points, within which an arm counts as equivalent to memento; set it before "
            "the run. Default: equivalence is not tested."
        ),
    ] = None,
    decompose: Annotated[
        bool,
        typer.Option(
            "--decompose",
            help="Decompose the drop under restart into unfamiliarity and content, beside what delimiters and "
            "positions add. Needs a benchmark that says what its mementos omit: ledger or story.",
        ),
    ] = False,
    backend: Annotated[
        str, typer.Option(help="Inference backend: hf (transformers), or vllm, which supports fewer arms.")
    ] = "hf",
    engine_args: EngineArguments = None,
) -> None:
    """Run a benchmark while the ghost channel is open, sealed or altered, and measure the effect on accuracy.

    Exit codes: 0, all controls passed; 12, a control failed; 2, invalid input.
    """
    from ghosttrace.ablation.result import AblationResult
    from ghosttrace.report.ablation.decomposition import decomposition_table
    from ghosttrace.report.ablation.table import ablation_table, joint_table, swap_table
    from ghosttrace.runs.folder import json_rows

    options = gather_options(ctx, "ablate")
    result = AblationResult.open(ctx.params["resume"]) if options is None else start_ablation(ctx, options)
    results, margin = result.results, result.configuration["settings"].get("margin")
    components = result.decompose() if decompose or "decomposition" in result.summary else None
    tables = [ablation_table(results), joint_table(results, margin), swap_table(results)]
    if components is None:
        print_result(result, ctx.params["format"], tables)
    else:
        more = {"decomposition": json_rows(components)}
        tables.append(decomposition_table(components))
        print_result(result, ctx.params["format"], tables, more=more)
    exit_if_invalid(result)


def start_ablation(ctx: typer.Context, options: dict[str, Any]) -> "AblationResult":
    """Run `ablate` with the gathered command-line options."""
    from ghosttrace.ablation.arms import Part
    from ghosttrace.ablation.run import run_ablation
    from ghosttrace.ablation.settings import AblationSettings

    kinds = tuple(options["kv"].split(","))
    if not set(kinds) <= {"k", "v"}:
        raise UserError(f"--kv must be k, v or k,v, not {options['kv']!r}")
    both = sorted(kinds) == ["k", "v"]
    layers, heads = (parse_integers(options[name], f"--{name}") for name in ("layers", "heads"))
    settings = AblationSettings(
        arms=None if options["arms"] is None else tuple(options["arms"].split(",")),
        **{name: options[name] for name in ("repetitions", "limit", "seed", "batch_size", "noise")},
        **{name: options[name] for name in ("margin", "decompose")},
        sampling={name: options[name] for name in SAMPLING},
        part=Part(layers, heads, ("k", "v") if both else kinds),
    )
    backend = _backend(options["backend"], options["engine_args"])
    file = None if options["bench_file"] is None else Path(options["bench_file"])
    benches = load_bench(options["bench"], settings.limit, settings.seed, file)
    with load_and_show_progress(ctx, "ablate", options) as (checkpoint, run):
        return run_ablation(checkpoint, benches, settings, backend, **run)


def _backend(name: str, arguments: str | None) -> "Backend":
    """Return the backend of this name; `arguments` is a JSON object of vLLM engine arguments.

    Raises:
        UserError: the backend does not exist, or the arguments are not a JSON object or not for vLLM.
    """
    engine_args = parse_engine_args(name, arguments)
    if name == "hf":
        from ghosttrace.ablation.backend import HuggingFaceBackend

        return HuggingFaceBackend()
    from ghosttrace.serving.vllm.backend import VllmBackend

    return VllmBackend(engine_args)
