"""The command `ghosttrace plan`: what an ablation can find, and what it takes."""

from typing import Annotated

import torch
import typer
from rich.console import Console

from ghosttrace.ablation.plan import ASSUMED_ACCURACY, MEAN_RESPONSE_TOKENS, Assumptions
from ghosttrace.ablation.plan import plan as make_plan
from ghosttrace.bench import GENERATED_BENCHES, HUB_SOURCES, bench_size
from ghosttrace.cli.options import Delimiters, Dtype, KeepLast
from ghosttrace.data.info import stored_dtype
from ghosttrace.model.checkpoint import load_config, recorded_policy, resolve_policy
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.report.plan import plan_table


def plan(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or hub id; config.json is enough.")],
    bench: Annotated[
        str, typer.Option(help=f"{', '.join([*GENERATED_BENCHES, *HUB_SOURCES])}, or a .jsonl file.")
    ] = "aime24",
    effect: Annotated[float, typer.Option(help="The drop to be found, in points.")] = 5.0,
    accuracy: Annotated[float, typer.Option(help="Assumed under memento, in %.")] = 100 * ASSUMED_ACCURACY,
    arms: Annotated[str, typer.Option(help="Beside memento.")] = "restart,placebo",
    repetitions: Annotated[int | None, typer.Option(help="Samples of each problem; the bench says.")] = None,
    response_tokens: Annotated[int, typer.Option(help="Of a response, on average.")] = MEAN_RESPONSE_TOKENS,
    batch_size: Annotated[int, typer.Option(help="Rows decoded together.")] = 32,
    throughput: Annotated[float | None, typer.Option(help="Tokens decoded a second by the whole batch.")] = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
) -> None:
    """Say what an ablation can find and what it takes: repetitions, tokens, KV memory, time."""
    config = load_config(model)
    recorded = {"mask_delimiters": False} | (recorded_policy(config) or {})
    policy = resolve_policy(recorded, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    problems, usual = bench_size(bench)
    assumptions = Assumptions(
        n_problems=problems,
        repetitions=usual if repetitions is None else repetitions,
        effect=effect / 100,
        arms=tuple(arms.split(",")),
        accuracy=accuracy / 100,
        response_tokens=response_tokens,
        batch_size=batch_size,
        throughput=throughput,
    )
    kind = stored_dtype(config) if dtype is None else getattr(torch, dtype)
    for table in plan_table(make_plan(CacheGeometry.from_config(config), kind, policy, assumptions)):
        Console().print(table)
