"""What a defence costs: prefill, time and memory on fixed traces, and accuracy or likelihood lost."""

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
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.cache import KVCache
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.runs.records import Records
from ghosttrace.stats import Estimate, estimate, paired_effect, ratio_estimate

N_TIMED_RUNS = 3
MAX_COST_TRACES = 2  # traces on which the cost of a defence is measured, token by token
MAX_UTILITY_TRACES = 50  # traces on which its utility is, where there are no graded problems
BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class Cost:
    """What an arm costs beyond `memento` on the same traces, one at a time, token by token as in decoding.

    Attributes:
        extra_prefill_tokens: read again, a trace.
        prefill_ratio: all tokens that go through the model, over those of the traces.
        latency_ratio: the median over turns.
        kv_ratio: peak keys held, the second cache that an arm works with included.
    """

    extra_prefill_tokens: float
    prefill_ratio: float
    latency_ratio: float
    kv_ratio: float


@dataclass(frozen=True)
class Utility:
    """What a model is worth under an arm, and beside it under `memento`.

    Attributes:
        unit: `accuracy`, or `bits a token`: log2 of the probability given to the trace's own tokens.
        defended, undefended: means, with 95 % intervals over problems or traces.
        effect: defended minus undefended, paired.
        n: problems or traces.
    """

    unit: Literal["accuracy", "bits a token"]
    defended: Estimate
    undefended: Estimate
    effect: Estimate
    n: int


class CountingSession(Session):
    """A session that counts what goes through the model and what is held meanwhile.

    Attributes:
        forwarded_tokens: tokens that went through the model.
        peak_keys: the most keys held at once in all caches: the live one, those that the eraser keeps, and
            the copy that is being extended.
    """

    forwarded_tokens = 0
    peak_keys = 0

    def forward(
        self,
        cache: KVCache,
        runs: Sequence[Sequence[int]],
        index: Sequence[np.ndarray],
        position: Sequence[np.ndarray],
        every: bool = False,
    ) -> Tensor:
        logits = super().forward(cache, runs, index, position, every)
        kept = [held for held in vars(self.eraser).values() if isinstance(held, KVCache)]
        caches = {id(one): one for one in (self.cache, *kept, cache)}
        self.peak_keys = max(self.peak_keys, sum(int(one.slots.length.sum()) for one in caches.values()))
        self.forwarded_tokens += sum(map(len, runs))
        return logits


def measure_cost_and_utility(
    checkpoint: Checkpoint, samples: Sequence[Sample], arm: Arm, benches: Sequence[Bench], seed: int = 0
) -> dict[str, Any]:
    """What a defence costs, as summary.json holds it, but for its name.

    Args:
        checkpoint: the model and its law.
        samples: of the audit; the cost is measured on the first of different base traces.
        arm: the defence.
        benches: graded problems on which accuracy is measured; without any, likelihood is, on the samples.
        seed: of the draws.
    """
    traces = [list(sample.ids) for sample in interleave_base_traces(samples)[:MAX_UTILITY_TRACES]]
    spent = cost(checkpoint, arm, traces[:MAX_COST_TRACES])
    worth = accuracy_utility(checkpoint, arm, benches, seed) if benches else likelihood_utility(checkpoint, arm, traces)
    return {
        "utility_unit": worth.unit,
        "accuracy": worth.defended.value,
        "accuracy_low": worth.defended.low,
        "accuracy_high": worth.defended.high,
        "undefended_accuracy": worth.undefended.value,
        "effect": worth.effect.value,
        "effect_low": worth.effect.low,
        "effect_high": worth.effect.high,
        **asdict(spent),
    }


def interleave_base_traces(samples: Sequence[Sample]) -> list[Sample]:
    """The samples in another order: the first of every base trace, then the second of each, and so on."""
    seen = Counter[str]()
    turns = []
    for sample in samples:
        turns.append(seen[sample.base])
        seen[sample.base] += 1
    return [samples[row] for row in sorted(range(len(samples)), key=turns.__getitem__)]


def cost(checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]], turns: int = N_TIMED_RUNS) -> Cost:
    """Read the same traces under an arm and under `memento`, in turns.

    Args:
        checkpoint: the model and its law.
        arm: the defence.
        traces: token ids. The text up to the first block is read at once, the rest token by token.
        turns: how often each is timed; one more goes ahead untimed.

    Raises:
        UserError: there are no traces.
    """
    if not traces:
        raise UserError("a cost is measured on traces: give at least one")
    seconds: dict[str, list[float]] = {"arm": [], "memento": []}
    counts = {"arm": (0, 0), "memento": (0, 0)}
    for _ in range(1 + turns):
        for name, one in (("memento", Memento()), ("arm", arm)):
            begin = perf_counter()
            sessions = [_read(checkpoint, one, ids, number) for number, ids in enumerate(traces)]
            if checkpoint.model.device.type == "cuda":
                torch.cuda.synchronize(checkpoint.model.device)
            seconds[name].append(perf_counter() - begin)
            counts[name] = sum(s.forwarded_tokens for s in sessions), sum(s.peak_keys for s in sessions)
    (tokens, peak), (plain_tokens, plain_peak) = counts["arm"], counts["memento"]
    return Cost(
        extra_prefill_tokens=(tokens - plain_tokens) / len(traces),
        prefill_ratio=tokens / plain_tokens,
        latency_ratio=median(a / b for a, b in zip(seconds["arm"][1:], seconds["memento"][1:], strict=True)),
        kv_ratio=peak / plain_peak,
    )


def _read(checkpoint: Checkpoint, arm: Arm, ids: Sequence[int], number: int) -> CountingSession:
    blocks = find_blocks(ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    begin = blocks[0].start if blocks else len(ids)
    cuts = [0, *range(max(1, begin), len(ids) + 1)]
    with attending(checkpoint.model) as model:
        session = CountingSession(
            model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), [(number,)], arm.eraser
        )
        for start, end in pairwise(cuts):
            session.advance([[int(token) for token in ids[start:end]]])
    return session


def accuracy_utility(checkpoint: Checkpoint, arm: Arm, benches: Sequence[Bench], seed: int = 0) -> Utility:
    """Accuracy on the same problems with the same draws, under an arm and under `memento`.

    Args:
        checkpoint: the model and its law.
        arm: the defence.
        benches: whose problems are taken together.
        seed: of the draws.
    """
    settings, found = AblationSettings(seed=seed), dict[str, list[np.ndarray]](arm=[], memento=[])
    for one in benches:
        for name, act in (("arm", arm), ("memento", Memento())):
            donors = DonorBlocks(one, checkpoint.tokenizer, seed)
            repetitions = one.protocol.repetitions
            cell = BenchArm(checkpoint, one, act, donors, sampling_for(one, settings), repetitions, seed)
            records = Records(SAMPLE_TABLE)
            cell.run(records, largest_batch_size([cell]), write_samples, lambda done: None)
            correct = records.frame(cell.keys, ["correct"])["correct"].to_numpy(float)
            found[name].append(correct.reshape(-1, repetitions).mean(axis=1))
    mine, plain = (np.concatenate(found[name]) for name in ("arm", "memento"))
    return Utility("accuracy", estimate(mine), estimate(plain), paired_effect(mine, plain), len(mine))


def likelihood_utility(checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]]) -> Utility:
    """How likely traces without a grader are, from the first erasure on, under an arm and under `memento`.

    Args:
        checkpoint: the model and its law.
        arm: the defence.
        traces: token ids; those in which nothing is erased, or nothing follows, are passed over.

    Raises:
        UserError: that is so in all of them.
    """
    first = [first_measured_index(ids, checkpoint.markup, checkpoint.policy) for ids in traces]
    chosen = [(number, [int(t) for t in ids]) for number, ids in enumerate(traces) if first[number] < len(ids)]
    if not chosen:
        raise UserError("no token of these traces follows an erased block: give traces with finished mementos")
    sums: list[tuple[float, float, int]] = []  # of each trace: arm, memento, tokens
    step = max(1, BATCH_TOKENS // max(len(ids) for _, ids in chosen))
    for begin in range(0, len(chosen), step):
        numbers, batch = zip(*chosen[begin : begin + step], strict=True)
        keys = [(number,) for number in numbers]
        both = [log2_probabilities(checkpoint, one, batch, keys) for one in (arm, Memento())]
        for number, mine, plain in zip(numbers, *both, strict=True):
            at = first[number] - 1
            sums.append((mine[at:].sum(), plain[at:].sum(), len(mine) - at))
    defended, undefended, count = np.array(sums, dtype=float).T
    effect = ratio_estimate(defended - undefended, count)
    return Utility(
        "bits a token", ratio_estimate(defended, count), ratio_estimate(undefended, count), effect, len(sums)
    )
