"""Calibration of a command: the command itself, run in full processes at a few small sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ghosttrace.errors import UserError
from ghosttrace.planning.command import Command
from ghosttrace.planning.estimate import estimate_cost
from ghosttrace.planning.measure import Measurement, RefusedError, measure
from ghosttrace.planning.workload import Workload
from ghosttrace.runs.paths import check_new
from ghosttrace.runs.progress import Progress

SHARES = (0.02, 0.05, 0.13)
"""Sizes of the calibration runs, relative to the planned run: a fifth of its work together."""

FACTORS = (1, 2, 5)
"""The same, relative to the smallest size that is worth a calibration."""


@contextmanager
def calibration_folder(keep: Path | None) -> Iterator[Path]:
    """Yield the folder of the calibration runs: a new one that stays, or a temporary one.

    Raises:
        UserError: The folder to keep cannot be made, or holds files.
    """
    if keep is not None:
        check_new(keep)
        yield keep
        return
    with TemporaryDirectory(prefix="ghosttrace-plan-") as folder:
        yield Path(folder)


def calibration_sizes(workload: Workload) -> list[int]:
    """Return the sizes at which to run a command: three small ones, or the planned one if these are no less work."""
    least = max(workload.step, workload.minimum)
    sizes = []
    for share, factor in zip(SHARES, FACTORS, strict=True):
        wanted = max(share * workload.size, factor * least)
        sizes.append(workload.step * round(wanted / workload.step))
    work = sum(map(workload.amount, sizes))
    return sizes if work < workload.amount(workload.size) else [workload.size]


def calibrate(command: Command, workload: Workload, folder: Path, progress: Progress) -> list[Measurement]:
    """Run a command at small sizes, by increasing size, and measure it.

    A size at which the command refuses to run is left out, unless it refuses larger ones for the same reason. The last
    run is left out if the calibration would take longer than the planned run.

    Args:
        command: The command.
        workload: The size of the planned run.
        folder: Folder of the calibration runs, `size-N` each.
        progress: Called with (description, runs done, runs in total).

    Returns:
        At least two measurements, or one of the planned run itself.

    Raises:
        UserError: The command refuses every size, with its own sentence, or it fails.
    """
    sizes, runs = calibration_sizes(workload), list[Measurement]()
    refusal: RefusedError | None = None
    for number, size in enumerate(sizes):
        if len(runs) == 2 and _takes_longer(runs, workload, size):
            break
        progress(f"calibration at {workload.option} {size:,}", number, len(sizes))
        try:
            runs.append(run_at(command, workload, folder, size))
        except RefusedError as error:
            if refusal is not None and str(error) == str(refusal):
                raise
            refusal = error
    if not runs:
        raise UserError(f"a calibration run with {workload.option} {sizes[-1]} was refused: {refusal}")
    if len(runs) == 1 and runs[0].size < workload.size:  # smaller sizes were refused
        runs.append(run_at(command, workload, folder, min(2 * runs[0].size, workload.size)))
    progress("calibration", len(sizes), len(sizes))
    return runs


def run_at(command: Command, workload: Workload, folder: Path, size: int) -> Measurement:
    """Run a command at a size and measure it."""
    words = command.with_size(workload.option, size)
    return measure(words, folder / f"size-{size}", size, workload.amount(size))


def _takes_longer(runs: list[Measurement], workload: Workload, size: int) -> bool:
    """Return whether the calibration takes longer than the planned run if it goes on to a size."""
    whole, following = (estimate_cost(runs, workload.amount(each)).seconds.value for each in (workload.size, size))
    return sum(run.undisturbed for run in runs) + following > whole
