"""The names that Inspect finds: the task `ghosttrace/bench`, its solver and scorer, and the provider `ghosttrace`.

Inspect loads this module through the entry point group `inspect_ai`, whatever is evaluated. So it imports torch and
transformers only when one of them is used, as Inspect's own providers do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from site import getsitepackages
from typing import Any

from click import ClickException
from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi
from inspect_ai.scorer import Scorer, accuracy, scorer, stderr
from inspect_ai.solver import Solver, solver

from ghosttrace.errors import UserError


class InspectUserError(UserError, ClickException):
    """Invalid input, which Inspect's command line prints as one sentence before it exits with code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        ClickException.__init__(self, message)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a `UserError` into one that Inspect's command line prints as one sentence."""
    try:
        yield
    except UserError as error:
        raise InspectUserError(str(error)) from None


def registered(name: str) -> str:
    """Return a name for Inspect's decorators, so that it is known as `ghosttrace/<name>` in every installation.

    Inspect itself puts the package before the name, but not in an editable installation, because it looks for a
    distribution that is called like the package.
    """
    return name if __file__.startswith(tuple(getsitepackages())) else f"ghosttrace/{name}"


@modelapi(name="ghosttrace")
def ghosttrace() -> type[ModelAPI]:
    """Return the provider of models: `--model ghosttrace/NAME`, with a bundled name, a folder or a hub id."""
    from ghosttrace.bridges.inspect_ai.provider import GhostTraceAPI

    return GhostTraceAPI


@task(name=registered("bench"))
def bench(
    bench: str = "ledger-h1",
    arm: str | None = None,
    limit: int | None = None,
    repetitions: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    model: str | None = None,
) -> Task:
    """Return a benchmark as a task, whose responses and marks are those of `ghosttrace.ablate`.

    Args:
        bench: Name of one benchmark, such as `ledger-h1`, or a .jsonl file.
        arm: Name of the arm. None: that of the model (`-M arm=NAME`), by default `memento`.
        limit: Number of problems. None: all, or the default of a generated benchmark.
        repetitions: Samples per problem, Inspect's epochs. None: the benchmark's protocol.
        seed: Random seed of generated problems and of sampling.
        batch_size: Number of responses decoded together. None: as `ablate` chooses it.
        model: Name for the provider `ghosttrace`, in place of `--model ghosttrace/NAME`.

    Raises:
        UserError: There is no such benchmark or arm, a number is out of range, or the model cannot run under the arm.
    """
    from ghosttrace.bridges.inspect_ai.benchmark import bench_task

    arguments: dict[str, Any] = {"arm": arm, "limit": limit, "repetitions": repetitions}
    with one_sentence():
        return bench_task(bench, **arguments, seed=seed, batch_size=batch_size, model=model)


@solver(name=registered("ablation_arm"))
def ablation_arm(
    bench: str,
    arm: str | None = None,
    limit: int | None = None,
    repetitions: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Solver:
    """Return a solver that decodes the problems of a benchmark under an arm; for the arguments see `bench`."""
    from ghosttrace.bridges.inspect_ai.benchmark import arm_solver

    arguments: dict[str, Any] = {"limit": limit, "repetitions": repetitions}
    with one_sentence():
        return arm_solver(bench, arm, **arguments, seed=seed, batch_size=batch_size)


@scorer(metrics=[accuracy(), stderr()], name=registered("bench_grader"))
def bench_grader(bench: str, limit: int | None = None, seed: int = 0) -> Scorer:
    """Return the grader of a benchmark as a scorer; for the arguments see `bench`."""
    from ghosttrace.bridges.inspect_ai.benchmark import grader

    with one_sentence():
        return grader(bench, limit, seed)
