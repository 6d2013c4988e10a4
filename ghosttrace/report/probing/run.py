"""The command `ghosttrace probe`: progress, run folder, table."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.probing.carriers import secret_carrier
from ghosttrace.probing.evidence import ALPHA, CELLS, CONDITIONS, TRIVIAL, failed_controls, headlines, summarise
from ghosttrace.probing.features import Features, extract
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Settings, Sweep, ask, text_rows, wanted
from ghosttrace.probing.text import retained
from ghosttrace.report.ablation.run import print_verdict, unlike, warn
from ghosttrace.report.probing.figures import curves_figure, heads_figure, heat_figure
from ghosttrace.runs.folder import json_rows, open_run, versions, write_figure, write_summary
from ghosttrace.runs.records import Key, Log, settle


@dataclass(frozen=True)
class Probed:
    """What a run of probes found.

    Attributes:
        results: see `ghosttrace.probing.evidence.summarise`.
        failures: the controls that did not hold, in words.
        folder: of the run.
    """

    results: pd.DataFrame
    failures: tuple[str, ...]
    folder: Path

    @property
    def valid(self) -> bool:
        """Every control held."""
        return not self.failures


def run(
    checkpoint: Checkpoint,
    task: Task,
    settings: Settings | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
    keep_features: bool = False,
    batch_tokens: int = 16_384,
) -> Probed:
    """Probe a task as the command does and leave a run folder behind.

    Args:
        checkpoint: the model and its law.
        task: traces with secrets, and the questions.
        settings: what to probe and how.
        out, resume, options: as for `ghosttrace.report.ablation.run.run`.
        keep_features: leave the shards in the run folder; they are large.
        batch_tokens: traces read together, padding included.

    Raises:
        UserError: anything that cannot be run as asked.
    """
    settings = settings or Settings()
    settings.check(checkpoint)
    task.check()
    parts = split(task.samples, settings.seed, settings.within_traces)
    console = Console()
    with open_run(
        out, resume, configuration(checkpoint, task, settings, parts, options or {}), warn(console)
    ) as folder:
        write_traces(folder / "traces.parquet", checkpoint, task, parts)
        log = Log(folder / "samples.jsonl", CELLS, warn(console))
        features = _extract(checkpoint, task, settings, folder / "features", batch_tokens, console)
        asked, plain = ask(checkpoint, task, parts)
        for row in text_rows(task, asked, plain, parts):
            log.add(row)
        with Progress(console=console, transient=True) as bar:
            job = bar.add_task("probes", total=None)
            secret = secret_carrier(task.samples)
            sweep = Sweep(checkpoint, settings, parts, features, asked, secret, checkpoint.model.device)
            sweep.run(log, lambda done, total: bar.update(job, completed=done, total=total))
        order = sorted(log.keys(), key=_rank)
        results = summarise((log.get(key) for key in order), task, parts)
        found = Probed(results, failed_controls(results), folder)
        rows = json_rows(results)
        write_summary(folder, "probe", found.valid, rows, failures=list(found.failures), unlike=unlike(log, console))
        for name, figure in figures(found, task).items():
            write_figure(folder, name, figure)
        log.finish(order, folder / "samples.parquet")
        if not keep_features:
            shutil.rmtree(folder / "features")
    console.print(probe_table(found))
    print_verdict(console, found.failures, folder)
    return found


def figures(found: Probed, task: Task) -> dict[str, Any]:
    """The figures of a run, by name."""
    drawn = {
        "layers": heat_figure(found.results, found.valid),
        "hops": curves_figure(found.results, found.valid),
    }
    if (found.results["head"].str.isdigit()).any():
        drawn["heads"] = heads_figure(found.results, found.valid)
    return drawn


def _rank(key: Key) -> tuple[Any, ...]:
    """An order of cells that does not depend on how often a run was interrupted."""
    return (CONDITIONS.index(key[0]), key[1], key[2], *(str(part).rjust(6) for part in key[3:]))


def _extract(
    checkpoint: Checkpoint, task: Task, settings: Settings, folder: Path, batch_tokens: int, console: Console
) -> dict[str, Features]:
    found: dict[str, Features] = {}
    secret = secret_carrier(task.samples)
    with Progress(console=console, transient=True) as bar:
        for part in wanted(checkpoint, settings, secret):
            job = bar.add_task(f"{part.cache} cache", total=len(task.samples))
            show = partial(_show, bar, job)
            found[part.cache] = extract(checkpoint, task, part, folder, batch_tokens, show)
    return found


def _show(bar: Progress, job: TaskID, done: int, total: int) -> None:
    bar.update(job, completed=done, total=total)


def write_traces(path: Path, checkpoint: Checkpoint, task: Task, parts: Split) -> None:
    """One row a trace: base, secret, block, split, labels, and the retained tokens with their places."""
    texts = retained(checkpoint, task)
    columns: dict[str, Any] = {
        "base": [sample.base for sample in task.samples],
        "secret": [sample.secret for sample in task.samples],
        "block": [sample.block for sample in task.samples],
        "where": [list(sample.where) for sample in task.samples],
        "split": parts.names().tolist(),
        "retained": [tokens.tolist() for tokens, _ in texts],
        "places": [places.tolist() for _, places in texts],
    }
    for number, target in enumerate(task.targets):
        columns[target.name] = [
            None if sample.labels[number] < 0 else target.classes[sample.labels[number]] for sample in task.samples
        ]
    unsettled = path.with_suffix(".part")
    parquet.write_table(pa.table(columns), unsettled, compression="zstd")
    settle(unsettled, path)


def configuration(
    checkpoint: Checkpoint, task: Task, settings: Settings, parts: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's numbers, for run.json."""
    digest = sha256()
    for sample in task.samples:
        digest.update(
            repr((list(map(int, sample.ids)), sample.base, sample.secret, sample.block, sample.labels)).encode()
        )
    return {
        "command": "probe",
        "model": checkpoint.name,
        "options": dict(options),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "task": {"name": task.name, "samples": len(task.samples), "sha256": digest.hexdigest()},
        "targets": {target.name: list(target.classes) for target in task.targets},
        "split": {
            "shares no": parts.shares,
            **{name: len(getattr(parts, name)) for name in ("train", "validation", "test")},
            "sha256": sha256(" ".join(parts.names()).encode()).hexdigest(),
        },
        "settings": asdict(settings),
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }


def probe_table(found: Probed) -> Table:
    """By target and hop: the site that did best on validation, its probes, and the sealed cache beside."""
    state = "" if found.valid else " [bold red]INVALID: a control failed.[/]"
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="Bits beyond the text a target, with 95 % intervals over base traces, at the site that did best on "
        "validation; * p <= 0.05 after Holm over the sweep and more than 0.01 bits; online: what the features save of "
        "the labels' code length, learning included; sealed: the same site, nothing to find. "
        f"All sites: summary.json.{state}",
    )
    for name in ("carrier", "hop", "site", "probe"):
        table.add_column(name, no_wrap=True)
    for name in ("right %", "bits beyond the text", "sealed"):
        table.add_column(name, justify="right", no_wrap=True)
    results = found.results
    for name in headlines(results):
        rows = results[results["target"] == name].drop(columns="target")
        table.add_section()
        first = rows[rows["condition"] == "open"].iloc[0]
        chance, unknown = f"{100 * first['chance']:.1f} by chance", f"{first['unknown']:.2f} to be known"
        table.add_row(f"[bold]{name}[/]", "", "", "", chance, unknown, "")
        for row in rows[rows["condition"].isin(["text", "exact"])].to_dict("records"):
            _add(table, row, rows)
        for row in best_rows(rows).to_dict("records"):
            _add(table, row, rows)
    return table


def best_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one target: the worst causal row, and at each hop all probes of the site the MLP was fitted at."""
    parts = []
    for (_, hop), part in rows.groupby(["carrier", "hop"], sort=False):
        if int(str(hop)) < 0:
            parts.append(part.nlargest(1, "bits"))
            continue
        online = part[(part["condition"] == "open") & (part["probe"] == "online")]
        site = online[["layer", "kv", "head"]].iloc[:1]
        parts.append(part[part["condition"] == "open"].merge(site))
    return pd.concat(parts) if parts else rows.iloc[:0]


def _add(table: Table, row: Mapping[Any, Any], rows: pd.DataFrame) -> None:
    """One line of the table."""
    same = rows[rows["condition"] == "sealed"]
    for name in ("carrier", "hop", "layer", "kv", "head", "probe"):
        same = same[same[name] == row[name]]
    star = "*" if row["p_holm"] <= ALPHA and row["bits"] > TRIVIAL else " "
    told = row["probe"] in ("text", "exact")
    where = row["layer"] + " " + row["kv"] + ("" if row["head"] in ("all", "") else f" h{row['head']}")
    table.add_row(
        row["carrier"] if row["condition"] == "open" else row["condition"],
        "" if told else str(row["hop"]),
        where,
        "" if told else row["probe"],
        f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]",
        f"{row['bits']:+.3f} [{row['bits_low']:+.3f}, {row['bits_high']:+.3f}]{star}",
        f"{same['bits'].iloc[0]:+.3f}" if len(same) else "",
    )
