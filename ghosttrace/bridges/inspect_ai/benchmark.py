"""A benchmark as an Inspect task: its problems, a solver that decodes as `ablate` does, and its grader."""

from functools import partial
from typing import Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, stderr
from inspect_ai.solver import Generate, Solver, TaskState

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.settings import AblationSettings, make_arm
from ghosttrace.bench import Problem, final_text
from ghosttrace.bridges.inspect_ai import registry
from ghosttrace.bridges.inspect_ai.provider import BENCH_SAMPLE, GhostTraceAPI
from ghosttrace.bridges.inspect_ai.samples import TaskSamples, one_bench
from ghosttrace.errors import UserError


def bench_task(
    name: str,
    *,
    arm: str | None,
    limit: int | None,
    repetitions: int | None,
    seed: int,
    batch_size: int | None,
    model: str | None,
) -> Task:
    """Return the task `ghosttrace/bench`; for arguments and errors see `ghosttrace.bridges.inspect_ai.registry`."""
    arguments: dict[str, Any] = {"limit": limit, "repetitions": repetitions, "seed": seed, "batch_size": batch_size}
    samples, bench = _task_samples(name, arm, **arguments), one_bench(name, limit, seed)
    chosen = _chosen_model(model)
    if chosen is not None:
        samples.under(api_of(chosen), GenerateConfig())  # raises before anything is decoded
    protocol, clustered = bench.protocol, any(problem.cluster for problem in bench.problems)
    sampling = {"temperature": protocol.temperature, "top_p": protocol.top_p, "top_k": protocol.top_k or None}
    return Task(
        dataset=MemoryDataset([_sample(problem) for problem in bench.problems], bench.name),
        solver=registry.ablation_arm(name, arm, **arguments),
        scorer=registry.bench_grader(name, limit, seed),
        metrics=[accuracy(), stderr(cluster="cluster" if clustered else None)],
        config=GenerateConfig(**sampling, max_tokens=protocol.max_new_tokens, seed=seed),
        epochs=Epochs(repetitions or protocol.repetitions, "mean"),
        model=chosen if model is not None else None,
        metadata={"bench": bench.name, "origin": bench.origin, "problems_sha256": bench.digest, "arm": arm},
    )


def _task_samples(name: str, arm: str | None, **arguments: Any) -> TaskSamples:
    """Return the samples of a task.

    Raises:
        UserError: There is no such arm, or a number is out of range.
    """
    if arm is not None:
        make_arm(arm, Part(), 0.5)
    return TaskSamples(name, arm, AblationSettings(**arguments))


def _chosen_model(name: str | None) -> Model | None:
    """Return the model of this name, or the model that Inspect is evaluating; None if there is none yet."""
    if name is not None:
        return get_model(f"ghosttrace/{name}")
    try:
        return get_model()
    except ValueError:  # a task that is made before a model is chosen
        return None


def api_of(model: Model) -> GhostTraceAPI:
    """Return the provider of a model.

    Raises:
        UserError: It is another provider, which has no arms.
    """
    if not isinstance(model.api, GhostTraceAPI):
        raise UserError(f"{model} cannot run under an arm: give --model ghosttrace/NAME")
    return model.api


def _sample(problem: Problem) -> Sample:
    """Return a problem as a sample; problems that are variants of each other share a cluster."""
    cluster = problem.id if problem.cluster is None else f"cluster {problem.cluster}"
    chat = {} if problem.messages is None else {"messages": list(problem.messages)}
    return Sample(input=problem.prompt, target=problem.answer, id=problem.id, metadata={"cluster": cluster, **chat})


def arm_solver(name: str, arm: str | None, **arguments: Any) -> Solver:
    """Return the solver `ghosttrace/ablation_arm`; for the arguments see `ghosttrace.bridges.inspect_ai.registry`."""
    samples = _task_samples(name, arm, **arguments)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        respond = partial(samples.response, api_of(get_model()), str(state.sample_id), state.epoch - 1)
        token = BENCH_SAMPLE.set(respond)
        try:
            return await generate(state)
        finally:
            BENCH_SAMPLE.reset(token)

    return solve


def grader(name: str, limit: int | None, seed: int) -> Scorer:
    """Return the scorer `ghosttrace/bench_grader`; for the arguments see `ghosttrace.bridges.inspect_ai.registry`."""
    bench = one_bench(name, limit, seed)
    problems = {problem.id: problem for problem in bench.problems}

    async def score(state: TaskState, target: Target) -> Score:
        finish = "eos" if state.output.stop_reason == "stop" else "length"
        grade = bench.grade(problems[str(state.sample_id)], final_text(state.output.completion, finish))
        metadata = {"rule": grade.rule, "finish": finish, **(state.output.metadata or {})}
        return Score(value=CORRECT if grade.correct else INCORRECT, answer=grade.extracted, metadata=metadata)

    return score
