"""The command `ghosttrace audit`: progress, run folder, terminal."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from ghosttrace.ablation.arms import Arm
from ghosttrace.auditing.context import Exhibit
from ghosttrace.auditing.cost import cost, token_utility, utility
from ghosttrace.auditing.defences import Defence
from ghosttrace.auditing.marked import Excluded
from ghosttrace.auditing.plan import Plan
from ghosttrace.auditing.run import PROBES, Audited, audit, exhibit_of, least_seen, read_caches
from ghosttrace.auditing.threats import THREATS
from ghosttrace.data.task import Sample, Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.evidence import ALPHA, CELLS
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import Settings
from ghosttrace.report.ablation.run import unlike, warn
from ghosttrace.report.audit.figures import leak_figure, sites_figure
from ghosttrace.report.audit.page import write_reports
from ghosttrace.report.audit.words import BITS, number, span
from ghosttrace.report.probing.run import configuration, write_traces
from ghosttrace.runs.folder import json_rows, open_run, write_figure, write_summary
from ghosttrace.runs.records import Log

COSTED = 2  # traces on which the cost of a defence is measured, token by token
JUDGED = 50  # traces on which its utility is, where there are no graded problems
COLOUR = {
    "leak": "red",
    "not detected": "green",
    "within the limit": "yellow",
    "not enough data": "yellow",
    "invalid": "red",
}


class Bars:
    """One progress bar for whatever is under way."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.jobs: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        """Steps of one kind of work."""
        if what not in self.jobs:
            self.jobs[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.jobs[what], completed=done, total=total)


def run(
    checkpoint: Checkpoint,
    task: Task,
    settings: Settings,
    defence: Defence,
    plan: Plan,
    excluded: Sequence[Excluded] = (),
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Audit as the command does, leave a run folder behind, and return the exit code.

    Args:
        checkpoint: the model and its law.
        task: traces with secrets.
        settings: where probes look.
        defence: what is done to the retained cache.
        plan: which attacks, and what may leak.
        excluded: secrets that were left out.
        out, resume, options: as for `ghosttrace.report.ablation.run.run`.

    Raises:
        UserError: anything that cannot be audited as asked.
    """
    options = dict(options or {})
    task.check()
    parts = split(task.samples, settings.seed, settings.within_traces)
    plan.check(Exhibit(checkpoint, task, parts, defence.arm(checkpoint), settings, [], {}, ALPHA))
    console = Console()
    decided = configuration(checkpoint, task, settings, parts, options) | {
        "command": "audit",
        "defence": repr(defence),
        "attacks": list(plan.attacks),
        "prompts": {secret: prompt.text for secret, prompt in plan.prompts.items()},
    }
    with open_run(out, resume, decided, warn(console)) as folder:
        arm = defence.fit(checkpoint, task, parts)
        write_traces(folder / "traces.parquet", checkpoint, task, parts)
        log = Log(folder / "samples.jsonl", CELLS, warn(console))
        with Progress(console=console, transient=True) as progress:
            show = Bars(progress).show
            tokens = int(options.get("batch_tokens", 16_384))
            features = read_caches(checkpoint, task, settings, arm, folder / "features", tokens, show)
            exhibit, plain = exhibit_of(checkpoint, task, parts, arm, settings, features, plan)
            found = audit(exhibit, plan, plain, log, show)
            show("the defence's cost", 0, 1)
            worth = price(checkpoint, task, arm, defence, options)
        summary = summary_of(checkpoint, task, found, plan, defence, worth, excluded)
        rows = summary.pop("results")
        write_summary(folder, "audit", not found.failures, rows, unlike=unlike(log, console), **summary)
        for name, figure in (("leak", leak_figure(summary | {"results": rows})), ("sites", sites_figure(summary))):
            if figure is not None:
                write_figure(folder, name, figure)
        log.finish(sorted(log.keys(), key=str), folder / "samples.parquet")
        shutil.rmtree(folder / "features")
        write_reports(folder)
    _print(console, found, rows, excluded, folder)
    return found.verdict.exit_code


def price(checkpoint: Checkpoint, task: Task, arm: Arm, defence: Defence, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the defence costs, on the same problems where there are graded ones, else on the same traces."""
    traces = [list(sample.ids) for sample in unlike_bases(task.samples)[:JUDGED]]
    spent = cost(checkpoint, arm, traces[:COSTED])
    if task.name.startswith("ledger") and not options.get("traces"):
        worth = utility(checkpoint, arm, task.name, int(options.get("utility_limit", 100)), int(options.get("seed", 0)))
    else:
        worth = token_utility(checkpoint, arm, traces)
    return {
        "name": defence.spec,
        "summary": defence.summary,
        "utility_unit": worth.unit,
        "accuracy": worth.defended.value,
        "accuracy_low": worth.defended.low,
        "accuracy_high": worth.defended.high,
        "undefended_accuracy": worth.undefended.value,
        "effect": worth.effect.value,
        "effect_low": worth.effect.low,
        "effect_high": worth.effect.high,
        **asdict(spent),
    }


def unlike_bases(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, those that are the first of their base trace first, then the seconds, and so on."""
    seen = Counter[str]()
    turns = []
    for sample in samples:
        turns.append(seen[sample.base])
        seen[sample.base] += 1
    return [samples[row] for row in sorted(range(len(samples)), key=turns.__getitem__)]


def summary_of(
    checkpoint: Checkpoint,
    task: Task,
    found: Audited,
    plan: Plan,
    defence: Defence,
    worth: dict[str, Any],
    excluded: Sequence[Excluded],
) -> dict[str, Any]:
    """What summary.json says beside command and validity."""
    rows = []
    for one, p in zip(found.evidence, found.p_holm, strict=True):
        tried = one.attack in (*PROBES, "tenant") and one.unit in BITS and one.condition == "open"
        limit = found.detectable.get(one.secret) if tried else None
        row = one.row(defence.spec) | {"p_holm": p, "detectable": limit, "valid": not found.failures}
        rows.append({name: row[name] for name in row if name != "head"})
    verdict = found.verdict
    return {
        "failures": list(found.failures),
        "verdict": verdict.verdict,
        "exit_code": verdict.exit_code,
        "sentence": verdict.sentence,
        "max_leak_bits": plan.max_leak,
        "ceiling_bits": verdict.ceiling,
        "detectable_bits": least_seen(found.detectable),
        "traces": len(task.samples),
        "traces_needed": verdict.traces_needed,
        "model": checkpoint.name,
        "defence": worth,
        "secrets": [
            {"name": name, "targets": len(members), "unknown_bits": found.unknown[name], "text_bits": found.told[name]}
            for name, members in found.secrets.items()
        ],
        "excluded": [asdict(one) for one in excluded],
        "left_out": list(found.left_out),
        "threats": [asdict(threat) | {"attacks": list(threat.attacks)} for threat in THREATS],
        "sites": json_rows(found.sites),
        "results": json_rows(pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each attack found, secret by secret, 80 columns wide; what the unit needs to be read is in the report."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("attack", no_wrap=True, min_width=11)
    for name in ("found", "baseline", "sealed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True, overflow="ellipsis", min_width=8, max_width=24)
    sealed = {_kind(row): row["estimate"] for row in rows if row["condition"] == "sealed"}
    shown = [row for row in rows if row["condition"] in ("open", "text")]
    for secret in dict.fromkeys(row["secret"] for row in shown):
        table.add_section()
        table.add_row(f"[bold]{escape(secret)}[/]")
        for row in (row for row in shown if row["secret"] == secret):
            value = f"{number(row['estimate'])} {span(row)}{'*' if row['gate'] else ' '}"
            base, beside = number(row["baseline"]), sealed.get(_kind(row))
            unit = escape(f"{row['unit']} {row['note']}")
            table.add_row(row["attack"], value, base, "" if beside is None else number(beside), unit)
    return table


def _kind(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a row and its control have in common."""
    return row["attack"], row["secret"], row["unit"], row["note"].partition(" ")[0]


def _print(
    console: Console, found: Audited, rows: Sequence[Mapping[str, Any]], excluded: Sequence[Excluded], folder: Path
) -> None:
    console.print(_table(rows))
    console.print("* decides the verdict; these intervals hold together at 95 %", style="dim")
    for one in excluded:
        console.print(f"left out: {one.trace}: {one.reason}", markup=False)
    if excluded:
        console.print(f"{len(excluded)} secrets left out")
    for sentence in found.left_out:
        console.print(sentence, markup=False)
    for failure in found.failures:
        console.print(f"control failed: {failure}", style="red", markup=False)
    verdict = found.verdict
    console.print(f"[bold {COLOUR[verdict.verdict]}]{verdict.verdict}[/]: {verdict.sentence}")
    console.print(f"Written to {folder}: report.html, card.md, audit.sarif, summary.json", soft_wrap=True)
