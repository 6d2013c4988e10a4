"""How much data a planned run needs to decide anything, where an instrument has a rule for it.

`ablate` has the power of `ghosttrace.ablation.power`, `audit` the traces that its verdict asks for. The other
instruments report intervals and have no such rule.
"""

from dataclasses import dataclass
from pathlib import Path

from ghosttrace.ablation.plan import Assumptions, Outlook, outlooks
from ghosttrace.ablation.published import ASSUMED_ACCURACY
from ghosttrace.planning.workload import Workload
from ghosttrace.runs.folder import read_json

DEFAULT_EFFECT = 0.05
"""Decrease of accuracy that an ablation is planned to detect, as a fraction."""


@dataclass(frozen=True)
class PowerNeed:
    """What a planned ablation can detect on one benchmark.

    Attributes:
        bench: Name of the benchmark.
        assumptions: Problems, repetitions, effect and assumed accuracy.
        spread: If the arm shifts the log odds of all problems alike.
        concentrated: If it makes a share of the problems fail entirely.
    """

    bench: str
    assumptions: Assumptions
    spread: Outlook
    concentrated: Outlook


@dataclass(frozen=True)
class AuditNeed:
    """What the largest calibration run of an audit decided.

    Attributes:
        traces: Its traces.
        verdict: Its verdict, as in `summary.json`.
        traces_needed: Traces that it estimates to need, if it could not decide and can estimate the number.
    """

    traces: int
    verdict: str
    traces_needed: int | None


def power_needs(workload: Workload, effect: float, accuracy: float = ASSUMED_ACCURACY) -> tuple[PowerNeed, ...]:
    """Return what an ablation of this size can detect on each of its benchmarks that has at least two problems.

    Args:
        workload: Size of the ablation.
        effect: Decrease of accuracy to detect, as a fraction.
        accuracy: Assumed accuracy under `memento`.

    Raises:
        UserError: The effect is not below the accuracy, or one of them is out of range.
    """
    needs = []
    for source in workload.sources:
        problems = min(workload.size, source.available)
        if problems < 2:
            continue
        assumptions = Assumptions(problems, source.repeats, effect, arms=(), accuracy=accuracy)
        needs.append(PowerNeed(source.name, assumptions, *outlooks(assumptions)))
    return tuple(needs)


def audit_need(run: Path, traces: int) -> AuditNeed:
    """Return what a finished audit of this many traces decided."""
    summary = read_json(run / "summary.json", "verdict")
    return AuditNeed(traces, summary["verdict"], summary.get("traces_needed"))
