"""The command `ghosttrace plan`: the statistical power and the cost of an ablation."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.ablation.published import ASSUMED_ACCURACY, MEAN_RESPONSE_TOKENS
from ghosttrace.bench import BENCH_GROUPS, BENCH_NAMES, bench_size
from ghosttrace.cli.options import Delimiters, Dtype, Format, KeepLast, OutputFormat
from ghosttrace.cli.output import print_rows, print_tables


def plan(
    model: Annotated[
        str, typer.Argument(help="Bundled name, folder or hub id of the model; only its config.json is read.")
    ],
    bench: Annotated[
        str, typer.Option(help=f"Benchmark: {', '.join(BENCH_NAMES[len(BENCH_GROUPS) :])}, or a .jsonl file.")
    ] = "aime24",
    effect: Annotated[float, typer.Option(help="Decrease of accuracy to detect, in percentage points.")] = 5.0,
    accuracy: Annotated[float, typer.Option(help="Assumed accuracy under memento, in %.")] = 100 * ASSUMED_ACCURACY,
    arms: Annotated[str, typer.Option(help="Comma-separated arms to compare with memento.")] = "restart,placebo",
    repetitions: Annotated[
        int | None, typer.Option(help="Samples per problem. Default: the benchmark's protocol.")
    ] = None,
    response_tokens: Annotated[int, typer.Option(help="Mean length of a response, in tokens.")] = MEAN_RESPONSE_TOKENS,
    batch_size: Annotated[int, typer.Option(help="Sequences decoded together.")] = 32,
    throughput: Annotated[
        float | None,
        typer.Option(help="Tokens that the whole batch decodes per second. Default: unknown, so no time is estimated."),
    ] = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    format: Format = OutputFormat.table,
) -> None:
    """Estimate what effect an ablation can detect, and its cost in repetitions, tokens, KV memory and time."""
    import torch

    from ghosttrace.ablation.plan import Assumptions
    from ghosttrace.ablation.plan import plan as make_plan
    from ghosttrace.data.info import stored_dtype
    from ghosttrace.model.checkpoint import load_config
    from ghosttrace.model.erasure_config import recorded_law, recorded_policy, require_memento, resolve_policy
    from ghosttrace.model.geometry import CacheGeometry
    from ghosttrace.report.plan import plan_findings, plan_table

    config = load_config(model)
    require_memento(recorded_law(config), "plan")
    recorded = recorded_policy(config) or {"mask_delimiters": bool(mask_delimiters)}
    policy = resolve_policy(recorded, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    n_problems, default_repetitions = bench_size(bench)
    assumptions = Assumptions(
        n_problems=n_problems,
        repetitions=default_repetitions if repetitions is None else repetitions,
        effect=effect / 100,
        arms=tuple(arms.split(",")),
        accuracy=accuracy / 100,
        response_tokens=response_tokens,
        batch_size=batch_size,
        throughput=throughput,
    )
    cache_dtype = stored_dtype(config) if dtype is None else getattr(torch, dtype)
    planned = make_plan(CacheGeometry.from_config(config), cache_dtype, policy, assumptions)
    if format is not OutputFormat.table:
        entries = asdict(planned)
        print_rows(format, plan_findings(planned), entries.pop("arms"), entries)
        return
    print_tables(plan_findings(planned), plan_table(planned))
    Console().print(
        f"\nNext: ghosttrace ablate --model {escape(model)} --bench {escape(bench)} --arms {escape(arms)}",
        soft_wrap=True,
    )
