"""Generation of the samples of one arm on one benchmark, stored in `Records`.

Samples are decoded in groups. A group always holds the same samples in the same order, and is decoded completely even
if some of them are recorded already. Within a group, the next samples take the places of finished ones, at steps that
depend on the group's responses alone. Floating-point results depend on the composition of the batch in their last bits.
With fixed groups, every batch has the same composition again, so that a resumed run equals an uninterrupted one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any

from ghosttrace.ablation.arms import Arm
from ghosttrace.bench import Bench, Counterfactual, final_text
from ghosttrace.data.spans import token_ends
from ghosttrace.law.chat import Chat
from ghosttrace.law.tools import find_tool_results
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request
from ghosttrace.model.prompts import render_chat, template_hash
from ghosttrace.model.sampling import Sampling, random_stream
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import RecordKey, Records

SWAP_STREAM = 1_000_003  # separates the random draws of `swap` from those of sampling


@dataclass
class DonorBlocks:
    """Lookup of counterfactual blocks for `swap`: one block per problem, which the benchmark or a draw chooses.

    A benchmark without a number of blocks chooses the block, or the tool result, itself.

    Attributes:
        bench: The benchmark that writes the counterfactual blocks.
        tokenizer: Tokenizer of the checkpoint.
        seed: Random seed of the chosen blocks and their texts.
        answers: By row key (seed, problem index, repetition), the answer that follows from the swapped-in block.
    """

    bench: Bench
    tokenizer: Any
    seed: int
    answers: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __call__(self, key: tuple[int, ...], block_number: int, length: int) -> list[int] | None:
        rng = random_stream(self.seed, SWAP_STREAM, key[1])
        problem, swapped = self.bench.problems[key[1]], self.bench.swapped_block
        if swapped is not None:
            chosen = swapped(problem)
        else:
            chosen = int(rng.integers(self.bench.blocks)) if self.bench.blocks else block_number
        if block_number != chosen or self.bench.counterfactual is None:
            return None
        counterfactual = self.bench.counterfactual(problem, block_number, rng)
        donor = [] if counterfactual is None else self._tokens(counterfactual, block_number)
        if counterfactual is None or len(donor) != length:
            return None
        self.answers[key] = counterfactual.answer
        return donor

    def _tokens(self, counterfactual: Counterfactual, number: int) -> list[int]:
        """Return the token ids of a block, or of the tool result with this number."""
        if counterfactual.messages is None:
            return counterfactual.token_ids(self.tokenizer)
        text = render_chat(self.tokenizer, counterfactual.messages, add_generation_prompt=True)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        result = find_tool_results(ids, Chat.from_tokenizer(self.tokenizer))[number]
        return ids[result.start : result.stop]


@dataclass(frozen=True)
class BenchArm:
    """One arm on one benchmark, with everything that determines its samples.

    Attributes:
        checkpoint: The model, its tokenizer and its policy.
        bench: The benchmark.
        arm: The arm, which modifies the retained cache.
        donors: The counterfactual blocks that the arm `swap` uses.
        sampling: Sampling parameters.
        repetitions: Number of samples per problem.
        seed: Random seed. Draws depend on (seed, problem, repetition) and not on the arm, so that arms are paired.
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
        """Record keys of all samples in order: (bench, arm, problem, repetition)."""
        problems = self.bench.problems
        return [(self.bench.name, self.arm.name, problems[number].id, repetition) for number, repetition in self._jobs]

    @property
    def _jobs(self) -> list[tuple[int, int]]:
        """Problem number and repetition of all samples, in order."""
        return list(product(range(len(self.bench.problems)), range(self.repetitions)))

    def run(self, records: Records, group_size: int, write: "SampleWriter", progress: Callable[[int], None]) -> None:
        """Generate every sample that is not recorded yet.

        Args:
            records: Storage of the samples.
            group_size: Number of samples in a group.
            write: Function that decodes a group.
            progress: Called with the number of samples done, after each sample and after each group.
        """
        total = len(self.keys)
        for number, begin in enumerate(range(0, total, group_size)):

            def report(done: int, begin: int = begin) -> None:
                progress(begin + done)

            self.run_group(number, records, group_size, write, report)
            report(min(group_size, total - begin))

    def run_group(
        self,
        number: int,
        records: Records,
        group_size: int,
        write: "SampleWriter",
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Generate the samples of one group, unless all of them are recorded.

        Args:
            number: Number of the group; sample i of `keys` is in group i // group_size.
            records: Storage of the samples.
            group_size: Number of samples in a group.
            write: Function that decodes a group.
            progress: Called after each sample with the number of samples of this group that are done.
        """
        part = slice(number * group_size, (number + 1) * group_size)
        if all(key in records for key in self.keys[part]):
            return
        checkpoint, jobs, done = self.checkpoint, self._jobs[part], count(1)
        requests = [self._request(*job) for job in jobs]
        template_sha256 = template_hash(checkpoint.tokenizer, checkpoint.model.config.model_type, self.bench.template)

        def record(index: int, generation: Generation) -> None:
            donor_answer = self.donors.answers.get(requests[index].key)
            records.add(self._row(jobs[index], generation, donor_answer, template_sha256))
            progress(next(done))

        write(self, requests, record)

    def _request(self, problem_index: int, repetition: int) -> Request:
        """Return the request for one sample: prompt ids, the key of its random draws, and the bench's harness."""
        problem, tokenizer = self.bench.problems[problem_index], self.checkpoint.tokenizer
        harness = self.bench.harness(problem, tokenizer) if self.bench.harness else None
        return Request(
            self.checkpoint.prompt_ids(problem.messages or problem.prompt),
            (self.seed, problem_index, repetition),
            harness,
        )

    def _row(
        self, job: tuple[int, int], generation: Generation, donor_answer: str | None, template_sha256: str
    ) -> dict[str, Any]:
        """Grade a finished sample and return it as a row of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`."""
        problem, decode = self.bench.problems[job[0]], self.checkpoint.tokenizer.decode
        tokens, finish_reason = generation.tokens, generation.finish_reason
        text = decode(tokens[:-1] if finish_reason == "eos" else tokens)
        grade = self.bench.grade(problem, final_text(text, finish_reason))
        return {
            "bench": self.bench.name,
            "arm": self.arm.name,
            "problem": problem.id,
            "cluster": problem.id if problem.cluster is None else f"cluster {problem.cluster}",
            "repetition": job[1],
            "correct": grade.correct,
            "extracted": grade.extracted,
            "rule": grade.rule,
            "answer": problem.answer,
            "donor_answer": donor_answer,
            "finish": finish_reason,
            "blocks": generation.blocks,
            "response_tokens": len(tokens),
            "peak_kv_tokens": generation.peak_kv_tokens,
            "auc_kv_tokens": generation.auc_kv_tokens,
            "prompt_sha256": template_sha256,
            "prompt": problem.prompt,
            "response": decode(tokens),
            "prompt_ids": generation.prompt,
            "response_ids": tokens,
            **self._token_texts(generation),
        }

    def _token_texts(self, generation: Generation) -> dict[str, Any]:
        """Return the text of the prompt, and where each token ends in the texts of prompt and response.

        Both are None under Memento's law, whose blocks the text itself shows.
        """
        if self.checkpoint.other_law is None:
            return {"prompt_text": None, "token_ends": None}
        decode = self.checkpoint.tokenizer.decode
        prompt = decode(generation.prompt)
        ends = token_ends(generation.tokens, decode)
        text_ends = [*token_ends(generation.prompt, decode), *(len(prompt) + end for end in ends)]
        return {"prompt_text": prompt, "token_ends": text_ends}


SampleWriter = Callable[[BenchArm, Sequence[Request], Callable[[int, Generation], None]], None]
"""(bench arm, requests, callback): decode the group; call the callback with each request's index and response."""


def collect(
    bench_arms: Sequence[BenchArm],
    records: Records,
    group_size: int,
    write: SampleWriter,
    progress: Progress = no_progress,
) -> None:
    """Generate all samples that are not recorded yet.

    Args:
        bench_arms: The bench arms to run, in order.
        records: Storage of the samples.
        group_size: Number of samples in a group.
        write: Function that decodes a group.
        progress: Called with (benchmark and arm, samples done, samples in total).
    """
    total, before = sum(len(bench_arm.keys) for bench_arm in bench_arms), 0
    for bench_arm in bench_arms:

        def report(done: int, bench_arm: BenchArm = bench_arm, before: int = before) -> None:
            progress(f"{bench_arm.bench.name} · {bench_arm.arm.name}", before + done, total)

        bench_arm.run(records, group_size, write, report)
        before += len(bench_arm.keys)
