"""The command `ghosttrace ablate`: progress, run folder, resuming, table, figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ghosttrace.ablation.collect import Cell, Write
from ghosttrace.ablation.outcome import Ablation, curves
from ghosttrace.ablation.run import Settings, collect, outcome, plan_cells, rows_at_once, sampling_for, writer
from ghosttrace.bench import SOURCES, Bench
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.model.prompts import template_hash
from ghosttrace.report.ablation.figures import accuracy_figure, sawtooth_figure
from ghosttrace.report.tables import ablation_table, swap_table
from ghosttrace.runs.folder import json_rows, open_run, read_configuration, versions, write_figure, write_summary
from ghosttrace.runs.records import LIGHT, SAMPLES, Log, Records


def run(
    checkpoint: Checkpoint,
    benches: Sequence[Bench],
    settings: Settings,
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Ablation:
    """Run an ablation as the command does and leave a run folder behind.

    Args:
        checkpoint, benches, settings: what to run.
        out: the folder of a new run.
        resume: the folder of a run that was interrupted, to go on with.
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be run as asked. A run that has not begun leaves no folder; of
            one that has, what is done stays.
    """
    console = Console()
    cells = plan_cells(checkpoint, benches, settings)
    batch_size = settings.batch_size or _recorded_batch_size(resume) or rows_at_once(cells)
    now = configuration(cells, settings, batch_size, options or {})
    _warn_of_sizes(benches, settings.limit, warn(console))
    with open_run(out, resume, now, warn(console)) as folder:
        log = Log(folder / "samples.jsonl", SAMPLES, warn(console))
        with writer(cells, settings) as write:
            _collect(cells, log, batch_size, console, write)
        ablation = outcome(cells, log, settings.part, LIGHT)
        _write(folder, ablation, cells, log, unlike(log, console))
    console.print(ablation_table(ablation.results))
    swapped = swap_table(ablation.results)
    if swapped:
        console.print(swapped)
    print_verdict(console, ablation.failures, folder)
    return ablation


def _recorded_batch_size(resume: Path | None) -> int | None:
    """The batch size of the run to go on with, if any: batches stay as they were begun."""
    settings = {} if resume is None else read_configuration(resume, "ablate").get("settings")
    size = settings.get("batch_size") if isinstance(settings, dict) else None
    return size if isinstance(size, int) else None


def _warn_of_sizes(benches: Sequence[Bench], limit: int | None, warn: Callable[[str], None]) -> None:
    """Say where a benchmark of the hub has another number of problems than it should."""
    for bench in benches:
        size = SOURCES[bench.name].size if bench.name in SOURCES else len(bench.problems)
        if len(bench.problems) != min(size, limit or size):
            warn(f"{bench.name} has {size} problems, and {bench.origin} holds {len(bench.problems)}: not the same test")


def _write(folder: Path, ablation: Ablation, cells: Sequence[Cell], log: Log, unlike: list[list[Any]]) -> None:
    """Everything but the samples first: as long as samples.jsonl is there, the run is unfinished."""
    rows, at_k = json_rows(ablation.results), json_rows(ablation.at_k)
    more = {"failures": list(ablation.failures), "unlike": unlike, "at_k": at_k}
    write_summary(folder, "ablate", ablation.valid, rows, **more)
    ceilings = {cell.bench.name: cell.bench.ceiling for cell in cells}
    write_figure(folder, "accuracy", accuracy_figure(ablation.results, ceilings))
    bench, checkpoint = cells[-1].bench, cells[-1].checkpoint
    firsts = [cell.keys[0] for cell in cells if cell.bench is bench]
    held = curves(log.frame(firsts), checkpoint.markup, checkpoint.policy)
    write_figure(folder, "sawtooth", sawtooth_figure(held, f"{checkpoint.name}, {firsts[0][2]}"))
    log.finish([key for cell in cells for key in cell.keys], folder / "samples.parquet")


def warn(console: Console) -> Callable[[str], None]:
    """What prints a warning."""
    return lambda text: console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)


def _collect(cells: Sequence[Cell], log: Log, batch_size: int, console: Console, write: Write) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(what), completed=done, total=total)

        try:
            collect(cells, log, batch_size, show, write)
        except KeyboardInterrupt:
            folder = str(log.path.parent)
            console.print(f"Stopped; what is done is kept: ghosttrace ablate --resume {escape(folder)}", soft_wrap=True)
            raise


def unlike(log: Records, console: Console) -> list[list[Any]]:
    """The keys of samples that came out otherwise when they were taken again, for summary.json; said as well."""
    if log.unlike:
        warn(console)(f"{len(log.unlike)} came out otherwise when their batch was computed again: the first stay")
    return [list(key) for key in log.unlike]


def print_verdict(console: Console, failures: Sequence[str], folder: Path) -> None:
    """Whether the controls held, and where it all is."""
    held = "" if failures else "Controls held. "
    console.print(f"{held}Written to {escape(str(folder))}", soft_wrap=True)
    for failure in failures:
        console.print(f"[bold red]INVALID[/] {escape(failure)}", soft_wrap=True)


def configuration(
    cells: Sequence[Cell], settings: Settings, batch_size: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's samples, for run.json."""
    checkpoint, benches = cells[0].checkpoint, {cell.bench.name: cell.bench for cell in cells}.values()
    family = checkpoint.model.config.model_type
    ids = dict(zip(DELIMITERS, checkpoint.markup.delimiters, strict=True))
    return {
        "command": "ablate",
        "model": checkpoint.name,
        "options": dict(options),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "arms": list(dict.fromkeys(cell.arm.name for cell in cells)),
        "markup": asdict(checkpoint.markup),
        "delimiters": {name: checkpoint.tokenizer.convert_ids_to_tokens(token) for name, token in ids.items()},
        "benches": {
            bench.name: {
                "origin": bench.origin,
                "sha256": bench.digest,
                "problems": len(bench.problems),
                "ceiling": bench.ceiling,
                "template": f"{bench.template.name}/{bench.template.version}",
                "prompt_sha256": template_hash(checkpoint.tokenizer, family, bench.template),
                "sampling": asdict(sampling_for(bench, settings)),
                "repetitions": settings.repetitions or bench.protocol.repetitions,
            }
            for bench in benches
        },
        "settings": asdict(settings) | {"batch_size": batch_size},
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }
