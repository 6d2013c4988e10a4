"""Reference traces of a benchmark: its problems with the responses of a perfect model."""

from ghosttrace.bench.benchmark import Bench
from ghosttrace.data.read import TraceText
from ghosttrace.data.tokens import TokenTrace, to_token_trace
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint


def reference_traces(checkpoint: Checkpoint, *benches: Bench) -> list[TokenTrace]:
    """Return the problems of the benchmarks with the responses of a perfect model, as tokenized traces.

    Args:
        checkpoint: Checkpoint whose tokenizer and prompt template are used.
        benches: Benchmarks with known responses.

    Raises:
        UserError: A benchmark has no known responses.
    """
    traces = []
    for bench in benches:
        if bench.response is None:
            raise UserError(f"{bench.name} has no reference traces: give --traces a file, a run folder or a hub id")
        for problem in bench.problems:
            text = TraceText(problem.prompt, bench.response(problem))
            traces.append(to_token_trace(checkpoint, bench.name, problem.id, text))
    return traces
