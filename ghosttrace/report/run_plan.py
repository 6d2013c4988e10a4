"""Findings and tables of the plan of a run (`ghosttrace.plan`)."""

from typing import TYPE_CHECKING

from rich.table import Table

from ghosttrace.report.plan import power_findings
from ghosttrace.report.tables import results_table

if TYPE_CHECKING:
    from ghosttrace.planning.measure import Measurement
    from ghosttrace.planning.run import RunPlan
    from ghosttrace.stats import Estimate

BUSY = 1.05
"""Ratio to an undisturbed run from which the machine counts as busy."""


def run_plan_findings(plan: "RunPlan") -> list[str]:
    """Return the time of the run, how it was found, and what the run needs to decide anything."""
    first, took = plan.costs[0], duration(plan.calibration_seconds)
    if plan.measured:
        findings = [
            f"The whole run takes {duration(first.busy_seconds.value)}: it is so small that it was measured "
            "and not estimated."
        ]
        if plan.workers > 1:
            findings.append("It is too small to divide among workers.")
    else:
        several = "".join(f"; {cost.workers} workers: {_range(cost.seconds)}" for cost in plan.costs[1:])
        findings = [f"Estimated time of the run: {_range(first.seconds)}{several}. The calibration took {took}."]
        busy = first.busy_seconds.value / first.seconds.value
        if busy > BUSY:
            findings.append(
                f"Other work had the cores for a part of the calibration: if this goes on, the run takes "
                f"{duration(first.busy_seconds.value)}."
            )
    for need in plan.power:
        accuracy = f"{100 * need.assumptions.accuracy:g} %"
        findings.append(f"Power on {need.bench}, at an assumed accuracy of {accuracy} under memento:")
        findings += power_findings(need.assumptions, need.spread, need.concentrated)[:2]
    if plan.audit is not None:
        needed = plan.audit.traces_needed
        more = "" if needed is None else f"; about {needed:,} traces are needed"
        findings.append(
            f"Verdict of the calibration audit of {plan.audit.traces:,} traces: {plan.audit.verdict}{more}."
        )
    return findings


def run_plan_tables(plan: "RunPlan") -> list[Table]:
    """Return two tables: the costs by number of workers, and the calibration runs."""
    return [_costs(plan), _runs(plan)]


def _costs(plan: "RunPlan") -> Table:
    assumption = (
        " Each worker has a core or a GPU of its own, the fixed part of the run, and an equal share of the rest; what "
        "workers send to each other is not counted."
    )
    table = results_table(
        title=f"{plan.command}: {plan.amount:,} {plan.unit}",
        title_justify="left",
        caption_justify="left",
        caption=("" if plan.measured else "Time: on an idle machine, with the range of the extrapolations.")
        + (assumption if len(plan.costs) > 1 else ""),
    )
    table.add_column("")
    for cost in plan.costs:
        table.add_column("one process" if cost.workers == 1 else f"{cost.workers:,} workers", justify="right")
    busy = "time" if plan.measured else "time, as busy as in the calibration"
    rows = {} if plan.measured else {"time": [_range(cost.seconds) for cost in plan.costs]}
    rows[busy] = [_range(cost.busy_seconds) for cost in plan.costs]
    rows["peak memory of a process"] = [size(cost.memory) for cost in plan.costs]
    if any(cost.gpu_memory for cost in plan.costs):
        rows["peak memory of a GPU"] = [size(cost.gpu_memory) for cost in plan.costs]
    rows["disk, at most"] = [size(cost.peak_disk) for cost in plan.costs]
    rows["disk, in the end"] = [size(cost.disk) for cost in plan.costs]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _runs(plan: "RunPlan") -> Table:
    table = results_table(
        title="Calibration runs",
        title_justify="left",
        caption_justify="left",
        caption="waiting: for a core that other processes had, part of the time.",
    )
    for name in (plan.option, "time", "waiting", "CPU time", "peak memory", "disk, at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in plan.runs:
        times = (duration(each) for each in (run.seconds, run.waiting, run.cpu))
        table.add_row(f"{run.size:,}", *times, size(run.memory), size(run.peak_disk))
    return table


def run_rows(runs: "tuple[Measurement, ...]") -> list[dict[str, object]]:
    """Return the calibration runs as JSON values."""
    names = ("size", "amount", "seconds", "waiting", "cpu", "memory", "gpu_memory", "peak_disk", "disk")
    return [
        {name: getattr(run, name) for name in names}
        | {"steps": {name: step.seconds for name, step in run.steps.items()}}
        for run in runs
    ]


def _range(estimate: "Estimate") -> str:
    if estimate.low == estimate.high:
        return duration(estimate.value)
    return f"{duration(estimate.value)} ({duration(estimate.low)} to {duration(estimate.high)})"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def size(number: float) -> str:
    """Return a number of bytes in the decimal unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
