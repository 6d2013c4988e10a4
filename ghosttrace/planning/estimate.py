"""Extrapolation of what short runs took to a larger run.

A run is a sum of steps, and each step has its own law:

- A step whose number of parts grows with the run, such as reading traces, takes a fixed time plus a time per unit.
- A step that always has the same number of parts, such as fitting a probe at each site, may take the same time at
  every size or a time in proportion to it: which one is not known from small sizes, where fits take more iterations.
  Both are computed, and the estimate is their geometric mean: growth with the square root of the size.

Memory and disk take a fixed part plus a part per unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from ghosttrace.planning.measure import REST, Measurement
from ghosttrace.stats import Estimate


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a run.

    Attributes:
        workers: Number of processes that share the work, each with a core or a GPU of its own.
        seconds: Wall time in seconds if no other work disturbs the run, with the range of the extrapolations.
        busy_seconds: The same if the machine stays as busy as it was during the calibration.
        memory: Largest resident memory of a process, in bytes.
        gpu_memory: Largest memory reserved on a GPU, in bytes; 0 without a GPU.
        peak_disk: Bytes that the run folders take at most, of all workers together.
        disk: Bytes of the finished run folders, of all workers together.
    """

    workers: int
    seconds: Estimate
    busy_seconds: Estimate
    memory: float
    gpu_memory: float
    peak_disk: float
    disk: float


def estimate_cost(runs: Sequence[Measurement], amount: int, workers: int = 1) -> Cost:
    """Estimate the cost of a run of this amount from runs of at least two smaller amounts.

    Args:
        runs: Measured runs, by increasing amount.
        amount: Units of work of the run.
        workers: Processes that share the work: each has the fixed part and `ceil(amount / workers)` units.
    """
    share = ceil(amount / workers)
    steps = [_step(runs, name, amount, workers) for name in dict.fromkeys(name for run in runs for name in run.steps)]
    seconds = Estimate(*(sum(getattr(step, part) for step in steps) for part in ("value", "low", "high")))
    busy = sum(run.seconds for run in runs) / sum(run.undisturbed for run in runs)
    return Cost(
        workers,
        seconds,
        Estimate(busy * seconds.value, busy * seconds.low, busy * seconds.high),
        *(_largest(runs, name, share) for name in ("memory", "gpu_memory")),
        *(workers * _largest(runs, name, share) for name in ("peak_disk", "disk")),
    )


def measured_cost(run: Measurement) -> Cost:
    """Return the cost of a run that was measured in full."""
    undisturbed, seconds = (Estimate(value, value, value) for value in (run.undisturbed, run.seconds))
    return Cost(1, undisturbed, seconds, run.memory, run.gpu_memory, run.peak_disk, run.disk)


def linear(amounts: Sequence[float], values: Sequence[float], target: float) -> Estimate:
    """Extrapolate a fixed part plus a part per unit, neither of which decreases with the amount.

    Args:
        amounts, values: At least two points, by increasing amount.
        target: The amount to extrapolate to.

    Returns:
        The value of the least-squares line, with the range over that line and the lines from each point to the last.
    """
    x, y = np.asarray(amounts, float), np.asarray(values, float)
    slope = max(0.0, float(np.polyfit(x, y, 1)[0]))
    found = [float(y.mean() + slope * (target - x.mean()))]
    slopes = [max(0.0, (y[-1] - y[i]) / (x[-1] - x[i])) for i in range(len(x) - 1)]
    found += [float(y[-1] + each * (target - x[-1])) for each in slopes]
    return Estimate(*(max(0.0, each) for each in (found[0], min(found), max(found))))


def _step(runs: Sequence[Measurement], name: str, amount: int, workers: int) -> Estimate:
    """Estimate the seconds of a step, of which each worker has its share."""
    amounts = [run.amount for run in runs]
    steps = [run.steps.get(name) for run in runs]
    seconds = [0.0 if step is None else step.seconds for step in steps]
    totals = [0 if step is None else step.total for step in steps]
    if name == REST or totals[-1] > totals[0]:
        return linear(amounts, seconds, ceil(amount / workers))
    constant, proportional = linear(amounts[-2:], seconds[-2:], amount).value, seconds[-1] * amount / amounts[-1]
    low, high = sorted((constant, proportional))
    return Estimate(sqrt(low * high) / workers, low / workers, high / workers)


def _largest(runs: Sequence[Measurement], name: str, amount: int) -> float:
    """Estimate a maximum of memory or disk, which is at least what a run of no more than this amount took."""
    last = runs[-2:]
    reached = [getattr(run, name) for run in runs if run.amount <= amount]
    line = linear([run.amount for run in last], [getattr(run, name) for run in last], amount)
    return max(line.value, *reached, 0.0)
