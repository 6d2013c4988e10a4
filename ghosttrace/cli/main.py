"""The command line: options in, one sentence and exit code 2 for bad input."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils.logging import disable_progress_bar

from ghosttrace.ablation.arms import ARMS, Part
from ghosttrace.ablation.plan import ACCURACY, RESPONSE, Assumptions
from ghosttrace.ablation.plan import plan as make_plan
from ghosttrace.ablation.run import Settings
from ghosttrace.bench import GROUPS, LEDGERS, SOURCES, bench_size, load_bench
from ghosttrace.cli.audit import audit
from ghosttrace.cli.options import (
    Delimiters,
    Device,
    Dtype,
    KeepLast,
    Mapping,
    ModelName,
    Out,
    Resume,
    gather_options,
    load_as_told,
    mapping,
    numbers,
)
from ghosttrace.cli.patch import trace
from ghosttrace.cli.probe import probe
from ghosttrace.cli.serve import serve
from ghosttrace.cli.sft import PASSED_ON, init_tokens, sft
from ghosttrace.data.info import dtype_of, model_info, trace_info
from ghosttrace.data.read import read_traces
from ghosttrace.data.tokens import reference_traces, traces_of
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Geometry, load_config, recorded_policy, resolve_policy
from ghosttrace.report import ghost_bits as report_bits
from ghosttrace.report.ablation.page import write_report
from ghosttrace.report.ablation.run import run
from ghosttrace.report.plan import plan_table
from ghosttrace.report.tables import model_table, trace_table

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "max_block_tokens")

app = typer.Typer(
    help="Study, train, serve and audit language models that erase their own reasoning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Keep commands named even when there is only one."""


@app.command()
def ablate(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    bench: Annotated[
        str, typer.Option(help=f"{', '.join([*GROUPS, *LEDGERS, *SOURCES])}, or a .jsonl file.")
    ] = "ledger",
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
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    layers: Annotated[str | None, typer.Option(help="Sealing arms seal these layers alone, e.g. 1,2.")] = None,
    heads: Annotated[str | None, typer.Option(help="… these key-value heads alone.")] = None,
    kv: Annotated[str, typer.Option(help="… keys (k), values (v) or both (k,v).")] = "k,v",
    noise: Annotated[float, typer.Option(help="Relative size of the arm noise.")] = 0.5,
    backend: Annotated[str, typer.Option(help="hf, or vllm for the arms that it can run.")] = "hf",
    engine_args: Annotated[
        str | None, typer.Option(help='Arguments of vLLM\'s LLM as JSON, e.g. {"max_model_len": 40960}.')
    ] = None,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Open, close or alter the ghost channel of one checkpoint, and measure what that does."""
    options = gather_options(ctx, "ablate", out, resume)
    if options is not None:
        start_ablation(options, out, resume)


def start_ablation(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `ablate` with these options of its command line."""
    kinds = tuple(options["kv"].split(","))
    if not set(kinds) <= {"k", "v"}:
        raise UserError(f"--kv is k, v or k,v, not {options['kv']!r}")
    whole = sorted(kinds) == ["k", "v"]
    layers, heads = (numbers(options[name], f"--{name}") for name in ("layers", "heads"))
    settings = Settings(
        arms=None if options["arms"] is None else tuple(options["arms"].split(",")),
        **{name: options[name] for name in ("repetitions", "limit", "seed", "batch_size", "noise")},
        sampling={name: options[name] for name in SAMPLING},
        part=Part(layers, heads, ("k", "v") if whole else kinds),
        backend=options["backend"],
        engine=_engine_arguments(options["engine_args"]),
    )
    file = None if options["bench_file"] is None else Path(options["bench_file"])
    benches = load_bench(options["bench"], settings.limit, settings.seed, file)
    run(load_as_told(options), benches, settings, out, resume, options)


def _engine_arguments(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f'--engine-args is a JSON object, such as {{"max_model_len": 40960}}, not {text!r}')
    return found


@app.command()
def bits(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    traces: Annotated[
        list[str] | None,
        typer.Option(help="JSON, JSONL, Parquet or text, a run of ablate, or a hub id; may be given again."),
    ] = None,
    bench: Annotated[
        str, typer.Option(help="Without --traces: a bench that knows its own, such as ledger.")
    ] = "ledger",
    limit: Annotated[int, typer.Option(help="Traces of each source.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the bench's problems.")] = 0,
    arms: Annotated[
        str, typer.Option(help="What to compare with memento; placebo, the control, always runs.")
    ] = "restart",
    batch_tokens: Annotated[int, typer.Option(help="Tokens read together, padding included.")] = 65_536,
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Measure on existing traces, token by token, what the ghost channel tells about the text that follows."""
    options = gather_options(ctx, "bits", out, resume)
    if options is not None:
        start_bits(options, out, resume)


def start_bits(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `bits` with these options of its command line."""
    arms = options["arms"].split(",")
    for name in arms:
        if name not in ARMS or name in ("swap", "memento"):
            known = ", ".join(name for name in ARMS if name not in ("swap", "memento"))
            raise UserError(f"--arms of bits are of {known}, not {name!r}")
    if min(options["limit"], options["batch_tokens"]) < 1:
        raise UserError("--limit and --batch-tokens are at least 1")
    checkpoint = load_as_told(options)
    benches = [] if options["traces"] else load_bench(options["bench"], options["limit"], options["seed"])
    found = [trace for bench in benches for trace in reference_traces(checkpoint, bench)]
    found += traces_of(checkpoint, options["traces"] or [], options["limit"])
    ceilings = {bench.name: bench.ceiling for bench in benches}
    report_bits.run(checkpoint, found, arms, options["batch_tokens"], ceilings, out, resume, options)


app.command()(audit)
app.command(context_settings=PASSED_ON)(sft)
app.command("init-tokens")(init_tokens)
app.command()(probe)
app.command()(trace)
app.command(context_settings=PASSED_ON)(serve)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished run of ghosttrace ablate.")]) -> None:
    """Write one self-contained HTML page of an ablation: effects, answers, KV, and a reader of its traces."""
    Console().print("Written to", escape(str(write_report(run))), soft_wrap=True)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or hub id; config.json is enough.")],
    bench: Annotated[str, typer.Option(help=f"{', '.join([*LEDGERS, *SOURCES])}, or a .jsonl file.")] = "aime24",
    effect: Annotated[float, typer.Option(help="The drop to be found, in points.")] = 5.0,
    accuracy: Annotated[float, typer.Option(help="Assumed under memento, in %.")] = 100 * ACCURACY,
    arms: Annotated[str, typer.Option(help="Beside memento.")] = "restart,placebo",
    repetitions: Annotated[int | None, typer.Option(help="Samples of each problem; the bench says.")] = None,
    response_tokens: Annotated[int, typer.Option(help="Of a response, on average.")] = RESPONSE,
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
    kind = dtype_of(config) if dtype is None else getattr(torch, dtype)
    for table in plan_table(make_plan(Geometry.of(config), kind, policy, assumptions)):
        Console().print(table)


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
