"""Sampling one arm on one benchmark, sample by sample, into `Records`.

A batch is always made of the same samples, in the same order, and is decoded whole even if some of
them are on record already: the numbers that a model computes depend, in their last bits, on what else
is in the batch, and a run that was interrupted shall end exactly as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ghosttrace.ablation.arms import Arm
from ghosttrace.bench import Bench, final_text
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request
from ghosttrace.model.prompts import template_hash
from ghosttrace.model.sampling import Sampling, random_stream
from ghosttrace.runs.records import RecordKey, Records

SWAP_STREAM = 1_000_003  # keeps the swap's own draws apart from the sampling noise


@dataclass
class DonorBlocks:
    """Counterfactual blocks for `swap`, one block a problem, and what would follow from them."""

    bench: Bench
    tokenizer: Any
    seed: int
    answers: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __call__(self, key: tuple[int, ...], number: int, length: int) -> list[int] | None:
        draw = random_stream(self.seed, SWAP_STREAM, key[1])
        problem, chosen = self.bench.problems[key[1]], int(draw.integers(self.bench.blocks))
        if number != chosen or self.bench.counterfactual is None:
            return None
        text, answer = self.bench.counterfactual(problem, number, draw)
        if len(text) != length:
            return None
        self.answers[key] = answer
        return list(self.tokenizer.convert_tokens_to_ids(text))


@dataclass(frozen=True)
class BenchArm:
    """One arm on one benchmark.

    Attributes:
        arm, donors: what acts on the cache, and whose blocks it swaps in.
        repetitions: samples of each problem.
        seed: of the draws; they belong to (seed, problem, repetition), whatever the arm.
    """

    checkpoint: Checkpoint
    bench: Bench
    arm: Arm
    donors: DonorBlocks
    sampling: Sampling
    repetitions: int
    seed: int

    @property
    def keys(self) -> list[RecordKey]:
        """Every sample of the cell, in order: (bench, arm, problem, repetition)."""
        problems = [problem.id for problem in self.bench.problems]
        return [(self.bench.name, self.arm.name, *job) for job in product(problems, range(self.repetitions))]

    def run(self, records: Records, batch_size: int, write: "SampleWriter", progress: Callable[[int], None]) -> None:
        """Take every sample that is not on record.

        Args:
            records: where samples are kept.
            batch_size: rows decoded together.
            write: what decodes a batch.
            progress: called with the number of samples done, after each batch.
        """
        keys, jobs = self.keys, list(product(range(len(self.bench.problems)), range(self.repetitions)))
        for begin in range(0, len(keys), batch_size):
            part = slice(begin, begin + batch_size)
            if not all(key in records for key in keys[part]):
                self._batch(jobs[part], records, write)
            progress(min(begin + batch_size, len(keys)))

    def _batch(self, jobs: Sequence[tuple[int, int]], records: Records, write: "SampleWriter") -> None:
        checkpoint, requests = self.checkpoint, [self._request(*job) for job in jobs]
        template_sha256 = template_hash(checkpoint.tokenizer, checkpoint.model.config.model_type, self.bench.template)

        def keep(number: int, done: Generation) -> None:
            records.add(self._row(jobs[number], done, self.donors.answers.get(requests[number].key), template_sha256))

        write(self, requests, keep)

    def _request(self, number: int, repetition: int) -> Request:
        problem, tokenizer = self.bench.problems[number], self.checkpoint.tokenizer
        harness = self.bench.harness(problem, tokenizer) if self.bench.harness else None
        return Request(self.checkpoint.prompt_ids(problem.prompt), (self.seed, number, repetition), harness)

    def _row(self, job: tuple[int, int], done: Generation, donor: str | None, template_sha256: str) -> dict[str, Any]:
        """A finished sample under the names of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`."""
        problem, decode = self.bench.problems[job[0]], self.checkpoint.tokenizer.decode
        graded = final_text(
            decode(done.tokens[:-1] if done.finish_reason == "eos" else done.tokens), done.finish_reason
        )
        grade = self.bench.grade(problem, graded)
        return {
            "bench": self.bench.name,
            "arm": self.arm.name,
            "problem": problem.id,
            "repetition": job[1],
            "correct": grade.correct,
            "extracted": grade.extracted,
            "rule": grade.rule,
            "answer": problem.answer,
            "donor_answer": donor,
            "finish": done.finish_reason,
            "blocks": done.blocks,
            "response_tokens": len(done.tokens),
            "peak_kv_tokens": done.peak_kv_tokens,
            "auc_kv_tokens": done.auc_kv_tokens,
            "prompt_sha256": template_sha256,
            "prompt": problem.prompt,
            "response": decode(done.tokens),
            "prompt_ids": done.prompt,
            "response_ids": done.tokens,
        }


SampleWriter = Callable[[BenchArm, Sequence[Request], Callable[[int, Generation], None]], None]
"""Decodes a batch of a cell; the callback gets the number of each request and its response."""
