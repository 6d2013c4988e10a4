"""The command `ghosttrace ablate`: progress, table, run folder, figures."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ghosttrace.ablate import Settings, ablate, sampling_for
from ghosttrace.bench import Bench, load_bench
from ghosttrace.checkpoint import Checkpoint, fingerprint
from ghosttrace.outcome import Ablation, curves
from ghosttrace.report.figures import accuracy_figure, sawtooth_figure
from ghosttrace.report.tables import ablation_table, swap_table
from ghosttrace.runs import run_folder, versions, write_figure, write_json, write_samples, write_summary


def run(checkpoint: Checkpoint, bench: str, settings: Settings, out: Path | None) -> Ablation:
    """Run an ablation as the command does and leave a run folder behind.

    Raises:
        UserError: anything that cannot be run as asked; no folder is left behind then.
    """
    console = Console()
    benches = load_bench(bench, settings.limit, settings.seed)
    with run_folder(out, "ablate", checkpoint.name) as folder:
        write_json(folder / "run.json", configuration(checkpoint, bench, benches, settings))
        ablation = _measure(checkpoint, benches, settings, console)
        _write(folder, ablation, checkpoint, benches)
    _print(console, ablation, folder)
    return ablation


def _write(folder: Path, ablation: Ablation, checkpoint: Checkpoint, benches: list[Bench]) -> None:
    write_samples(folder, ablation.samples)
    results = ablation.results.astype(object).where(ablation.results.notna(), None)
    rows = [{str(name): value for name, value in row.items()} for row in results.to_dict("records")]
    write_summary(folder, "ablate", ablation.valid, rows, failures=list(ablation.failures))
    write_figure(folder, "accuracy", accuracy_figure(ablation.results, {one.name: one.ceiling for one in benches}))
    first = benches[-1].problems[0].id
    held = curves(ablation, checkpoint, first)
    write_figure(folder, "sawtooth", sawtooth_figure(held, f"{checkpoint.name}, {first}"))


def _measure(checkpoint: Checkpoint, benches: list[Bench], settings: Settings, console: Console) -> Ablation:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return ablate(checkpoint, benches, show, **vars(settings))


def _print(console: Console, ablation: Ablation, folder: Path) -> None:
    console.print(ablation_table(ablation.results))
    swapped = swap_table(ablation.results)
    if swapped:
        console.print(swapped)
    if ablation.valid:
        console.print("Controls held. Written to", str(folder), soft_wrap=True)
    for failure in ablation.failures:
        console.print(f"[bold red]INVALID[/] {failure}", soft_wrap=True)


def configuration(checkpoint: Checkpoint, bench: str, benches: list[Bench], settings: Settings) -> dict[str, object]:
    """Everything that decides a run's samples."""
    return {
        "command": "ablate",
        "model": checkpoint.name,
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "markup": asdict(checkpoint.markup),
        "bench": bench,
        "settings": asdict(settings),
        "sampling": {one.name: asdict(sampling_for(one, settings)) for one in benches},
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }
