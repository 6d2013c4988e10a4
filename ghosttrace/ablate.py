"""`ablate`: the same checkpoint, problems and draws with the ghost channel open, closed or altered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import inf
from typing import Any

import pandas as pd
import torch

from ghosttrace.bench import Bench, Problem, load_bench
from ghosttrace.channel import ARMS, Arm, Noise, Part, Restart, Swap
from ghosttrace.checkpoint import Checkpoint, Geometry, load
from ghosttrace.errors import UserError
from ghosttrace.generate import Generation, Request, generate
from ghosttrace.outcome import REFERENCE, Ablation, failed_controls, summarise
from ghosttrace.sampling import Sampling, noise

MAIN_ARMS = ("memento", "full", "placebo", "restart", "restart-renumbered", "rerotated", "swap")
SEALING = tuple(name for name, arm in ARMS.items() if issubclass(arm, Restart))
SWAP_STREAM = 1_000_003  # keeps the swap's own draws apart from the sampling noise


@dataclass(frozen=True)
class Settings:
    """What an ablation runs.

    Attributes:
        arms: names in `ghosttrace.channel.ARMS`; `memento`, the reference, always runs. None: those
            of `MAIN_ARMS` that mean something for the checkpoint and the benchmark.
        repetitions: samples of each problem; None: the benchmark's protocol.
        limit: problems of each benchmark.
        seed: of problems and draws.
        batch_size: rows decoded together.
        sampling: fields of `Sampling` that override the protocol's.
        part: what the sealing arms seal.
        noise: relative size of the arm `noise`.
    """

    arms: tuple[str, ...] | None = None
    repetitions: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int = 128
    sampling: dict[str, float | int | None] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    noise: float = 0.5

    def __post_init__(self) -> None:
        for name in self.arms or ():
            if name not in ARMS:
                raise UserError(f"no arm {name!r}: choose from {', '.join(ARMS)}")
        if not self.part.whole and not set(self.arms or MAIN_ARMS) & set(SEALING):
            raise UserError(f"--layers, --heads and --kv choose what a sealing arm seals: add {' or '.join(SEALING)}")
        if self.batch_size < 1 or (self.repetitions is not None and self.repetitions < 1):
            raise UserError("--batch-size and --repetitions are at least 1")
        if self.seed < 0 or not 0 <= self.noise < inf:
            raise UserError("--seed and --noise are not negative")


def ablate(
    model: str | Checkpoint = "toy-mixed",
    bench: str | Sequence[Bench] = "ledger",
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Ablation:
    """Run an ablation; every argument of `Settings` may be given by name.

    Args:
        model: a name for `ghosttrace.checkpoint.load`, or what it returned.
        bench: a name for `ghosttrace.bench.load_bench`, or benchmarks.
        progress: called with (what runs, samples done, samples in all).

    Raises:
        UserError: anything that cannot be run as asked; it is raised before anything runs.
    """
    chosen = Settings(**settings)
    checkpoint = load(model) if isinstance(model, str) else model
    benches = load_bench(bench, chosen.limit, chosen.seed) if isinstance(bench, str) else bench
    geometry = Geometry.of(checkpoint.model.config)
    chosen.part.check(geometry.layers, geometry.kv_heads)
    plan = [(one, name) for one in benches for name in runnable(checkpoint, one, chosen)]
    total = sum(len(one.problems) * repetitions(one, chosen) for one, _ in plan)
    rows: list[dict[str, Any]] = []
    for one, name in plan:
        for batch in run_arm(checkpoint, one, name, chosen):
            rows += batch
            if progress:
                progress(f"{one.name} · {name}", len(rows), total)
    samples = pd.DataFrame(rows)
    results = summarise(samples, geometry.bytes_per_token(checkpoint.model.dtype))
    return Ablation(samples, results, failed_controls(results, benches, chosen.part, checkpoint.policy))


def runnable(checkpoint: Checkpoint, bench: Bench, settings: Settings) -> list[str]:
    """The arms to run, the reference first.

    Raises:
        UserError: an arm that was asked for by name cannot be run.
    """
    names = []
    for name in dict.fromkeys((REFERENCE, *(settings.arms or MAIN_ARMS))):
        try:
            arm = make_arm(name, settings, Donors(bench, checkpoint.tokenizer, settings.seed))
            arm.law(checkpoint.policy)
            arm.check(checkpoint.model)
            if isinstance(arm, Swap) and bench.counterfactual is None:
                raise UserError("swap needs a benchmark that can write counterfactual blocks, such as ledger")
        except UserError:
            if settings.arms is not None or name == REFERENCE:
                raise
            continue
        names.append(name)
    return names


def repetitions(bench: Bench, settings: Settings) -> int:
    """Samples of each problem."""
    return settings.repetitions or bench.protocol.repetitions


def sampling_for(bench: Bench, settings: Settings) -> Sampling:
    """The benchmark's protocol with the user's settings on top."""
    protocol = bench.protocol
    fields = {name: getattr(protocol, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")}
    return Sampling(**fields | {name: value for name, value in settings.sampling.items() if value is not None})


@dataclass
class Donors:
    """Counterfactual blocks for `swap`, one block a problem, and what would follow from them."""

    bench: Bench
    tokenizer: Any
    seed: int
    answers: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __call__(self, key: tuple[int, ...], number: int, length: int) -> list[int] | None:
        draw = noise(self.seed, SWAP_STREAM, key[1])
        problem, chosen = self.bench.problems[key[1]], int(draw.integers(self.bench.blocks))
        if number != chosen or self.bench.counterfactual is None:
            return None
        text, answer = self.bench.counterfactual(problem, number, draw)
        if len(text) != length:
            return None
        self.answers[key] = answer
        return list(self.tokenizer.convert_tokens_to_ids(text))


def make_arm(name: str, settings: Settings, donors: Donors) -> Arm:
    """The arm of this name with the settings that concern it."""
    kind = ARMS[name]
    if issubclass(kind, Restart):
        return kind(part=settings.part)
    if issubclass(kind, Swap):
        return kind(donors=donors)
    return kind(size=settings.noise) if issubclass(kind, Noise) else kind()


def run_arm(checkpoint: Checkpoint, bench: Bench, name: str, settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """Sample one arm on one benchmark, batch by batch, as rows of samples."""
    donors = Donors(bench, checkpoint.tokenizer, settings.seed)
    arm = make_arm(name, settings, donors)
    policy, sampling = arm.law(checkpoint.policy), sampling_for(bench, settings)
    jobs = list(product(range(len(bench.problems)), range(repetitions(bench, settings))))
    for begin in range(0, len(jobs), settings.batch_size):
        part = jobs[begin : begin + settings.batch_size]
        requests = [_request(checkpoint, bench, settings.seed, *job) for job in part]
        with memory_advice(checkpoint, requests, sampling):
            done = generate(checkpoint.model, requests, checkpoint.markup, policy, sampling, arm.eraser)
        yield [
            _sample_row(checkpoint, bench, name, job, generation, donors.answers.get(request.key))
            for job, request, generation in zip(part, requests, done, strict=True)
        ]


def _request(checkpoint: Checkpoint, bench: Bench, seed: int, number: int, repetition: int) -> Request:
    problem = bench.problems[number]
    harness = bench.harness(problem, checkpoint.tokenizer) if bench.harness else None
    return Request(checkpoint.prompt_ids(problem.prompt), (seed, number, repetition), harness)


def _sample_row(
    checkpoint: Checkpoint,
    bench: Bench,
    arm: str,
    job: tuple[int, int],
    generation: Generation,
    donor: str | None,
) -> dict[str, Any]:
    problem: Problem = bench.problems[job[0]]
    grade = bench.grade(problem, checkpoint.tokenizer.convert_ids_to_tokens(generation.tokens))
    return {
        "bench": bench.name,
        "arm": arm,
        "problem": problem.id,
        "repetition": job[1],
        "correct": grade.correct,
        "extracted": grade.extracted,
        "answer": problem.answer,
        "donor_answer": donor,
        "finish": generation.finish,
        "blocks": generation.blocks,
        "response_tokens": len(generation.tokens),
        "peak_kv_tokens": generation.peak_kv_tokens,
        "auc_kv_tokens": generation.auc_kv_tokens,
        "prompt_ids": generation.prompt,
        "response_ids": generation.tokens,
        "response": checkpoint.tokenizer.decode(generation.tokens),
    }


@contextmanager
def memory_advice(checkpoint: Checkpoint, requests: Sequence[Request], sampling: Sampling) -> Iterator[None]:
    """Turn running out of memory into one sentence that says what to change.

    Raises:
        UserError: the batch did not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's CPU allocator raises a bare RuntimeError
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)):
            raise
        longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
        a_token = Geometry.of(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
        gib = len(requests) * longest * a_token / 2**30
        raise UserError(
            f"out of memory at batch size {len(requests)}, whose KV cache can grow to {gib:.1f} GiB: "
            f"try --batch-size {max(1, len(requests) // 2)} or a smaller --max-new-tokens"
        ) from error
