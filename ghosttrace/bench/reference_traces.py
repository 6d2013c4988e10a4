"""Reference traces of a benchmark: its problems with the responses of a perfect model."""

from ghosttrace.bench.benchmark import Bench, Problem
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
        traces += [problem_trace(checkpoint, bench, problem, bench.response(problem)) for problem in bench.problems]
    return traces


def problem_trace(checkpoint: Checkpoint, bench: Bench, problem: Problem, response: str) -> TokenTrace:
    """Return a problem with a response as a tokenized trace.

    Args:
        checkpoint: Checkpoint whose tokenizer and prompt template are used.
        bench: The benchmark of the problem.
        problem: The problem.
        response: The response. That to a whole chat is its last turn.
    """
    if problem.messages is None:
        return to_token_trace(checkpoint, bench.name, problem.id, TraceText(problem.prompt, response))
    response_ids = list(checkpoint.tokenizer(response, add_special_tokens=False)["input_ids"])
    return TokenTrace(bench.name, problem.id, checkpoint.prompt_ids(problem.messages), response_ids)
