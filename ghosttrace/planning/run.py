"""`plan`: what a run of an instrument takes on this machine, from short runs of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttrace.ablation.published import ASSUMED_ACCURACY
from ghosttrace.errors import UserError
from ghosttrace.planning.calibrate import calibrate, calibration_folder, run_at
from ghosttrace.planning.command import Command
from ghosttrace.planning.estimate import Cost, estimate_cost, measured_cost
from ghosttrace.planning.measure import Measurement
from ghosttrace.planning.needs import DEFAULT_EFFECT, AuditNeed, PowerNeed, audit_need, power_needs
from ghosttrace.planning.training import STEPS, TrainingSize, training_size
from ghosttrace.planning.workload import Source, Workload, workload
from ghosttrace.runs.progress import Progress, no_progress

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunPlan:
    """What a run of an instrument takes.

    Attributes:
        command: The command line that was planned.
        option: Option that sets its size.
        size: Value of this option.
        unit: Unit in which the work is counted.
        amount: Units of work of the run.
        workers: Processes that were asked for.
        costs: Cost with one process and, if asked for, with several.
        runs: The calibration runs by increasing size; a single one if the whole run was measured.
        power: What an ablation of this size can detect, by benchmark; empty for other instruments.
        audit: What the largest calibration run of an audit decided; None for other instruments.
    """

    command: str
    option: str
    size: int
    unit: str
    amount: int
    workers: int
    costs: tuple[Cost, ...]
    runs: tuple[Measurement, ...]
    power: tuple[PowerNeed, ...] = ()
    audit: AuditNeed | None = None

    @property
    def measured(self) -> bool:
        """Whether the run is so small that it was itself measured."""
        return self.runs[-1].amount >= self.amount

    @property
    def calibration_seconds(self) -> float:
        """Wall time of the calibration in seconds."""
        return sum(run.seconds for run in self.runs)

    @property
    def results(self) -> "pd.DataFrame":
        """The costs as a table with one row per number of workers: seconds and bytes, ranges as `_low` and `_high`."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `results` as JSON values."""
        rows = []
        for cost in self.costs:
            row: dict[str, Any] = {}
            for name, value in asdict(cost).items():
                entries = {"": value} if not isinstance(value, dict) else value
                row |= {name + ("" if key in ("", "value") else f"_{key}"): entry for key, entry in entries.items()}
            rows.append(row)
        return rows


def plan(
    command: str | Sequence[str],
    workers: int = 1,
    *,
    effect: float = DEFAULT_EFFECT,
    accuracy: float = ASSUMED_ACCURACY,
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> RunPlan:
    """Estimate time, memory and disk of a run on this machine, from runs of the same command at small sizes.

    Args:
        command: Command line of `ablate`, `bits`, `probe`, `patch`, `audit`, `sft` or `rl`, as text or as words.
        workers: Processes among which the work is divided, each with a core or a GPU of its own. Each has the fixed
            part of the run and its share of the rest; what they send to each other is not counted.
        effect: Decrease of accuracy for which the power of an ablation is computed, as a fraction.
        accuracy: Accuracy under `memento` that is assumed for this.
        keep: Folder in which the calibration runs stay; by default they are deleted.
        progress: Called with (description, runs done, runs in total).

    Returns:
        The estimates, with ranges from the scatter of the runs.

    Raises:
        UserError: The command cannot be planned, or it refuses its input, with its own sentence.

    Example:
        >>> import ghosttrace as gt
        >>> planned = gt.plan("bits --model toy-mixed --bench ledger-h1 --limit 2000")  # doctest: +SKIP
        >>> planned.results[["workers", "seconds", "seconds_low", "seconds_high"]]  # doctest: +SKIP
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    parsed, show = Command.parse(command), progress or no_progress
    power: tuple[PowerNeed, ...] = ()
    with calibration_folder(None if keep is None else Path(keep)) as folder:
        if parsed.instrument in ("sft", "rl"):
            size, runs, training = _calibrate_training(parsed, folder, show)
        else:
            size = workload(parsed)
            power = power_needs(size, effect, accuracy) if parsed.instrument == "ablate" else ()
            runs, training = calibrate(parsed, size, folder, show), None
        amount, largest = size.amount(size.size), folder / f"size-{runs[-1].size}" / "run"
        if runs[-1].amount >= amount:
            costs = [measured_cost(runs[-1])]
        else:
            costs = [estimate_cost(runs, amount, each) for each in dict.fromkeys((1, workers))]
        if training is not None:
            costs = [_with_checkpoints(cost, training, largest) for cost in costs]
        audit = audit_need(largest, runs[-1].amount) if parsed.instrument == "audit" else None
    asked = str(parsed), size.option, size.size, size.unit, amount, workers
    return RunPlan(*asked, tuple(costs), tuple(runs), power, audit)


def _calibrate_training(
    command: Command, folder: Path, progress: Progress
) -> tuple[Workload, list[Measurement], TrainingSize]:
    """Run a training of one step, which tells the size of the planned one, and then longer ones."""
    progress(f"calibration at {STEPS} 1", 0, 1)
    one_step = run_at(command, Workload(STEPS, 1, "optimiser steps", (Source(1),)), folder, 1)
    training = training_size(command, folder / "size-1" / "run")
    size = training.workload
    if size.size == 1:
        return size, [one_step], training
    larger = replace(size, minimum=2)
    return size, [one_step, *calibrate(command, larger, folder, progress)], training


def _with_checkpoints(cost: Cost, training: TrainingSize, run: Path) -> Cost:
    at_most, in_the_end = training.more_disk(run)
    return replace(cost, peak_disk=cost.peak_disk + at_most, disk=cost.disk + in_the_end)
