"""The cost of a defence: prefill, latency and memory on fixed traces, and the loss of accuracy or likelihood."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ghosttrace.ablation.arms import Arm, Memento
from ghosttrace.ablation.backend import largest_batch_size, write_samples
from ghosttrace.ablation.collect import BenchArm, DonorBlocks
from ghosttrace.ablation.run import sampling_for
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import Bench
from ghosttrace.data.task import Sample
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.likelihood import first_measured_index, log2_probabilities
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.cache import KVCache
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.paired import paired_effect
from ghosttrace.runs.records import Records
from ghosttrace.stats import Estimate, estimate, ratio_estimate

N_TIMED_RUNS = 3
MAX_COST_TRACES = 2  # traces for prefill, latency and memory, which are measured token by token
MAX_UTILITY_TRACES = 50  # traces for the likelihood, which is measured if there are no graded problems
BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class Cost:
    """Cost of an arm relative to `memento`, on the same traces, each read alone and token by token as in decoding.

    Attributes:
        extra_prefill_tokens: Tokens that the arm recomputes, per trace.
        prefill_ratio: Ratio of the tokens that go through the model.
        latency_ratio: Median ratio of the times.
        kv_ratio: Ratio of the peak numbers of keys held, in all caches that the arm uses.
    """

    extra_prefill_tokens: float
    prefill_ratio: float
    latency_ratio: float
    kv_ratio: float


@dataclass(frozen=True)
class Utility:
    """Utility of a model under an arm and under `memento`.

    Attributes:
        unit: `accuracy`, or `bits per token`: log2 of the probability of the trace's own tokens.
        defended, undefended: Means under the arm and under `memento`, with 95 % intervals over problems or traces.
        effect: Paired effect, defended minus undefended.
        n: Number of problems or traces.
    """

    unit: Literal["accuracy", "bits per token"]
    defended: Estimate
    undefended: Estimate
    effect: Estimate
    n: int


class CountingSession(Session):
    """Session that counts the tokens that go through the model and the keys that are held.

    Attributes:
        forwarded_tokens: Number of tokens that went through the model.
        peak_keys: Maximum number of keys held at the same time in all caches: the session's cache, those that the
            eraser holds, and the cache that is being extended.
    """

    forwarded_tokens = 0
    peak_keys = 0

    def forward(
        self,
        cache: KVCache,
        runs: Sequence[Sequence[int]],
        index: Sequence[np.ndarray],
        position: Sequence[np.ndarray],
        all_logits: bool = False,
    ) -> Tensor:
        logits = super().forward(cache, runs, index, position, all_logits)
        eraser_caches = [value for value in vars(self.eraser).values() if isinstance(value, KVCache)]
        caches = {id(held): held for held in (self.cache, *eraser_caches, cache)}
        self.peak_keys = max(self.peak_keys, sum(int(held.slots.length.sum()) for held in caches.values()))
        self.forwarded_tokens += sum(map(len, runs))
        return logits


def measure_cost_and_utility(
    checkpoint: Checkpoint, samples: Sequence[Sample], arm: Arm, benches: Sequence[Bench], seed: int = 0
) -> dict[str, Any]:
    """Measure the cost and the utility of a defence.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        samples: Samples of the audit. The cost is measured on a few of them, from different base traces.
        arm: Arm of the fitted defence.
        benches: Graded problems on which accuracy is measured. If there are none, likelihood on the samples is
            measured instead.
        seed: Random seed of the sampling.

    Returns:
        The entries of `defence` in summary.json, except its name, summary and caveat.
    """
    traces = [list(sample.ids) for sample in interleave_base_traces(samples)[:MAX_UTILITY_TRACES]]
    measured_cost = cost(checkpoint, arm, traces[:MAX_COST_TRACES])
    utility = (
        accuracy_utility(checkpoint, arm, benches, seed) if benches else likelihood_utility(checkpoint, arm, traces)
    )
    return {
        "utility_unit": utility.unit,
        "accuracy": utility.defended.value,
        "accuracy_low": utility.defended.low,
        "accuracy_high": utility.defended.high,
        "undefended_accuracy": utility.undefended.value,
        "effect": utility.effect.value,
        "effect_low": utility.effect.low,
        "effect_high": utility.effect.high,
        **asdict(measured_cost),
    }


def interleave_base_traces(samples: Sequence[Sample]) -> list[Sample]:
    """Reorder the samples: the first sample of every base trace, then the second of each, and so on."""
    counts = Counter[str]()
    ranks = []
    for sample in samples:
        ranks.append(counts[sample.base])
        counts[sample.base] += 1
    return [samples[row] for row in sorted(range(len(samples)), key=ranks.__getitem__)]


def cost(checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]], turns: int = N_TIMED_RUNS) -> Cost:
    """Measure the cost of an arm: read the same traces under the arm and under `memento`, in alternation.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        arm: The arm to measure.
        traces: Token ids of each trace. Tokens before the first block, or the first token that
            leaves, are read at once, all others one by one.
        turns: Number of timed runs, after one untimed run.

    Raises:
        UserError: There are no traces.
    """
    if not traces:
        raise UserError("there are no traces to measure the cost on: give at least one")
    seconds: dict[str, list[float]] = {"arm": [], "memento": []}
    counts = {"arm": (0, 0), "memento": (0, 0)}
    for _ in range(1 + turns):
        for name, tested_arm in (("memento", Memento()), ("arm", arm)):
            begin = perf_counter()
            sessions = [_replay_trace(checkpoint, tested_arm, ids, number) for number, ids in enumerate(traces)]
            if checkpoint.model.device.type == "cuda":
                torch.cuda.synchronize(checkpoint.model.device)
            seconds[name].append(perf_counter() - begin)
            counts[name] = sum(s.forwarded_tokens for s in sessions), sum(s.peak_keys for s in sessions)
    (tokens, peak), (reference_tokens, reference_peak) = counts["arm"], counts["memento"]
    return Cost(
        extra_prefill_tokens=(tokens - reference_tokens) / len(traces),
        prefill_ratio=tokens / reference_tokens,
        latency_ratio=median(a / b for a, b in zip(seconds["arm"][1:], seconds["memento"][1:], strict=True)),
        kv_ratio=peak / reference_peak,
    )


def _replay_trace(checkpoint: Checkpoint, arm: Arm, ids: Sequence[int], number: int) -> CountingSession:
    """Read a trace under an arm: the tokens before the first block at once, all others one by one."""
    law = checkpoint.law
    if isinstance(law, MementoLaw):
        blocks = find_blocks(ids, law.markup, law.policy.require_assistant_section)
        begin = blocks[0].start if blocks else len(ids)
    else:
        begin = min((erasure.carriers.start for erasure in law.erasures(ids)), default=len(ids))
    cuts = [0, *range(max(1, begin), len(ids) + 1)]
    with attending(checkpoint.model) as model:
        session = CountingSession(
            model, checkpoint.markup, checkpoint.policy, [(number,)], arm.eraser, arm.adapt_law(law)
        )
        for start, end in pairwise(cuts):
            session.advance([[int(token) for token in ids[start:end]]])
    return session


def accuracy_utility(checkpoint: Checkpoint, arm: Arm, benches: Sequence[Bench], seed: int = 0) -> Utility:
    """Measure accuracy under an arm and under `memento`, on the same problems with the same uniform draws.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        arm: The arm to measure.
        benches: Benchmarks whose problems are pooled.
        seed: Random seed of the sampling.
    """
    settings, accuracies = AblationSettings(seed=seed), dict[str, list[np.ndarray]](arm=[], memento=[])
    for bench in benches:
        for name, tested_arm in (("arm", arm), ("memento", Memento())):
            donors = DonorBlocks(bench, checkpoint.tokenizer, seed)
            repetitions = bench.protocol.repetitions
            sampling = sampling_for(bench, settings)
            bench_arm = BenchArm(checkpoint, bench, tested_arm, donors, sampling, repetitions, seed)
            records = Records(SAMPLE_TABLE)
            bench_arm.run(records, largest_batch_size([bench_arm]), write_samples, lambda done: None)
            correct = records.frame(bench_arm.keys, ["correct"])["correct"].to_numpy(float)
            accuracies[name].append(correct.reshape(-1, repetitions).mean(axis=1))
    defended, undefended = (np.concatenate(accuracies[name]) for name in ("arm", "memento"))
    effect = paired_effect(defended, undefended)
    return Utility("accuracy", estimate(defended), estimate(undefended), effect, len(defended))


def likelihood_utility(checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]]) -> Utility:
    """Measure the likelihood of traces after the first erasure, under an arm and under `memento`.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        arm: The arm to measure.
        traces: Token ids of each trace. Traces without a token after an erased block are skipped.

    Raises:
        UserError: No trace has a token after an erased block.
    """
    first = [first_measured_index(ids, checkpoint.law) for ids in traces]
    chosen = [(number, [int(t) for t in ids]) for number, ids in enumerate(traces) if first[number] < len(ids)]
    if not chosen:
        raise UserError("no token of these traces follows an erased block: give traces with finished mementos")
    sums: list[tuple[float, float, int]] = []  # per trace: bits under the arm, bits under memento, tokens
    batch_size = max(1, BATCH_TOKENS // max(len(ids) for _, ids in chosen))
    for begin in range(0, len(chosen), batch_size):
        numbers, batch = zip(*chosen[begin : begin + batch_size], strict=True)
        keys = [(number,) for number in numbers]
        log2p_by_arm = [log2_probabilities(checkpoint, tested_arm, batch, keys) for tested_arm in (arm, Memento())]
        for number, arm_log2p, memento_log2p in zip(numbers, *log2p_by_arm, strict=True):
            begin_measured = first[number] - 1
            sums.append(
                (
                    arm_log2p[begin_measured:].sum(),
                    memento_log2p[begin_measured:].sum(),
                    len(arm_log2p) - begin_measured,
                )
            )
    defended, undefended, count = np.array(sums, dtype=float).T
    effect = ratio_estimate(defended - undefended, count)
    return Utility(
        "bits per token", ratio_estimate(defended, count), ratio_estimate(undefended, count), effect, len(sums)
    )
