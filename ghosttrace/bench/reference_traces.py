"""The traces that a benchmark knows by itself: its problems as a perfect model answers them."""

from ghosttrace.bench.benchmark import Bench
from ghosttrace.data.read import TraceText
from ghosttrace.data.tokens import TokenTrace, to_token_trace
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint


def reference_traces(checkpoint: Checkpoint, *benches: Bench) -> list[TokenTrace]:
    """The problems of benchmarks with the responses that a perfect model gives.

    Raises:
        UserError: a benchmark does not know them.
    """
    found = []
    for bench in benches:
        if bench.response is None:
            raise UserError(f"{bench.name} has no traces of its own: give --traces a file, a run folder or a hub id")
        for problem in bench.problems:
            text = TraceText(problem.prompt, bench.response(problem))
            found.append(to_token_trace(checkpoint, bench.name, problem.id, text))
    return found
