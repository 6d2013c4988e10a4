"""The traces that a benchmark knows by itself: its problems as a perfect model answers them."""

from ghosttrace.bench.benchmark import Bench
from ghosttrace.data.read import TraceText
from ghosttrace.data.tokens import TokenTrace, encoded
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint


def reference_traces(checkpoint: Checkpoint, bench: Bench) -> list[TokenTrace]:
    """The problems of a benchmark with the responses that a perfect model gives.

    Raises:
        UserError: the benchmark does not know them.
    """
    if bench.response is None:
        raise UserError(f"{bench.name} has no traces of its own: give --traces a file, a run folder or a hub id")
    return [
        encoded(checkpoint, bench.name, problem.id, TraceText(problem.prompt, bench.response(problem)))
        for problem in bench.problems
    ]
