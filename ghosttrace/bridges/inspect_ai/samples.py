"""Samples of a benchmark under an arm, generated batch by batch as `ablate` generates them, when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import Lock

from inspect_ai.model import GenerateConfig

from ghosttrace.ablation.arms import Part
from ghosttrace.ablation.backend import HuggingFaceBackend, largest_batch_size, write_samples
from ghosttrace.ablation.collect import BenchArm
from ghosttrace.ablation.run import plan_bench_arms
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.ablation.settings import AblationSettings, make_arm
from ghosttrace.bench import BENCH_GROUPS, Bench, load_bench
from ghosttrace.bridges.inspect_ai.provider import GhostTraceAPI, Response, make_response
from ghosttrace.errors import UserError
from ghosttrace.model.generate import Generation, Request
from ghosttrace.runs.records import RecordKey, Records


@lru_cache(maxsize=8)
def one_bench(name: str, limit: int | None, seed: int) -> Bench:
    """Load one benchmark.

    Raises:
        UserError: There is no such benchmark, or the name is that of a group.
    """
    if name in BENCH_GROUPS:
        raise UserError(f"{name} is a group of benchmarks, and a task is one of them: {', '.join(BENCH_GROUPS[name])}")
    (bench,) = load_bench(name, limit, seed)
    return bench


@dataclass(frozen=True)
class ArmSamples:
    """Samples of one arm on a benchmark.

    Attributes:
        bench_arm: The arm and the benchmark.
        batch_size: Number of responses decoded together. `ablate` decodes the same batches and groups.
        records: The rows of an ablation.
        generations: The responses.
        lock: Held while a group is decoded.
    """

    bench_arm: BenchArm
    batch_size: int
    records: Records = field(default_factory=lambda: Records(SAMPLE_TABLE))
    generations: dict[RecordKey, Generation] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def response(self, problem: str, repetition: int) -> Response:
        """Return the response to a problem; if it has not been decoded, its group is decoded.

        Args:
            problem: Id of the problem.
            repetition: Number of the repetition, from 0.

        Raises:
            UserError: The task has fewer repetitions.
        """
        bench_arm = self.bench_arm
        if repetition >= bench_arm.repetitions:
            raise UserError(f"the task has {bench_arm.repetitions} epochs: give -T repetitions=N, not --epochs N")
        key = (bench_arm.bench.name, bench_arm.arm.name, problem, repetition)
        with self.lock:
            if key not in self.records:
                group_size = self.batch_size * HuggingFaceBackend.batches_per_group
                number = (self._positions[problem] * bench_arm.repetitions + repetition) // group_size
                bench_arm.run_group(number, self.records, group_size, self._write)
        donor_answer = self.records.get(key)["donor_answer"]
        more = {} if donor_answer is None else {"donor_answer": donor_answer}
        return make_response(bench_arm.checkpoint, bench_arm.arm.name, self.generations[key], **more)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Number of each problem, by id."""
        return {problem.id: number for number, problem in enumerate(self.bench_arm.bench.problems)}

    def _write(
        self, bench_arm: BenchArm, requests: Sequence[Request], on_done: Callable[[int, Generation], None]
    ) -> None:
        """Decode a group, and keep its responses beside the rows, which do not say what was erased."""
        problems = bench_arm.bench.problems

        def done(index: int, generation: Generation) -> None:
            _, number, repetition = requests[index].key
            key = (bench_arm.bench.name, bench_arm.arm.name, problems[number].id, repetition)
            self.generations[key] = generation
            on_done(index, generation)

        write_samples(bench_arm, requests, done, self.batch_size)


@dataclass(frozen=True)
class TaskSamples:
    """Samples of one task, by model, sampling parameters and seed.

    Attributes:
        name: Name of the benchmark.
        arm: Name of the arm; None for that of the model.
        settings: Limit, repetitions, seed and batch size.
        samples: The samples so far.
        lock: Held while samples are looked up.
    """

    name: str
    arm: str | None
    settings: AblationSettings
    samples: dict[str, ArmSamples] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def under(self, api: GhostTraceAPI, config: GenerateConfig) -> ArmSamples:
        """Return the samples under a model and a configuration.

        Raises:
            UserError: The arm cannot run with the model, the law or the benchmark.
        """
        bench = one_bench(self.name, self.settings.limit, self.settings.seed)
        arm = api.arm if self.arm is None else make_arm(self.arm, Part(), api.noise)
        sampling = api.sampling(config, bench.protocol.max_new_tokens)
        seed = self.settings.seed if config.seed is None else config.seed
        with self.lock:
            key = repr((id(api), sorted(sampling.items()), seed))
            if key not in self.samples:
                settings = replace(self.settings, arms=(arm.name,), seed=seed, sampling=sampling, noise=api.noise)
                planned = plan_bench_arms(api.checkpoint, [bench], settings, HuggingFaceBackend())
                bench_arm = next(each for each in planned if each.arm.name == arm.name)
                size = settings.batch_size or largest_batch_size([bench_arm])
                self.samples[key] = ArmSamples(bench_arm, size)
            return self.samples[key]

    def response(self, api: GhostTraceAPI, problem: str, repetition: int, config: GenerateConfig) -> Response:
        """Return the response of a model to a problem; see `under` and `ArmSamples.response`."""
        return self.under(api, config).response(problem, repetition)
