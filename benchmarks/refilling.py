"""Decoding with refilled rows relative to whole batches: `OMP_NUM_THREADS=1 python benchmarks/refilling.py`.

The lengths of the responses have the shape of the paper's: lognormal, cut at 32,000 tokens, with the mean and the mean
square that follow from the peak and the area of the KV curve of Qwen3-8B on AIME26 (table 3: 2.41 GB and 25.3 GB ktok
at 144 KiB a token). Lengths, blocks and mementos are scaled down together. A harness forces them; the model samples the
last tokens of each response, which must be the same in both variants. The variants run alternately, so only ratios
matter; CPU time is that of the process.

The script also counts, without a model, the steps and the bytes that an 8B model reads at the lengths of the paper: at
each step all weights, and for each row as many keys and values as the longest row of its part of the batch holds.
"""

import argparse
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from decoding import MARKUP, POLICY, SIZES, make_model
from transformers import PreTrainedModel

from ghosttrace.ablation.backend import HuggingFaceBackend
from ghosttrace.ablation.plan import MARKUP as TRACE_MARKUP
from ghosttrace.ablation.plan import average_trace
from ghosttrace.law.expiry import ExpiryTracker, alive, expiry
from ghosttrace.model.cache import row_parts
from ghosttrace.model.generate import REFILL_STEPS, Generation, Request, WaitingRequests, generate
from ghosttrace.model.sampling import Sampling

MEDIAN, SIGMA, CUT = 14_200, 0.65, 32_000
BLOCK, MEMENTO, PROMPT = 1150, 194, 200
SAMPLED = 8  # tokens at the end of a response that the model samples
WEIGHT_BYTES, TOKEN_BYTES = 16.4e9, 147_456  # Qwen3-8B in bfloat16
POLICIES = {"erasing": POLICY, "full": replace(POLICY, keep_last_n_blocks=-1)}


@dataclass(frozen=True)
class Case:
    """A measured case: size of the random model, rows decoded at once, and factor of the lengths."""

    size: str
    rows: int
    scale: int
    arms: tuple[str, ...] = ("erasing", "full")


CASES = (Case("tiny", 8, 64), Case("tiny", 32, 64, ("erasing",)))


def draw_lengths(count: int, scale: int, seed: int = 0) -> list[int]:
    """Return lengths of responses in tokens, at least twice the sampled tokens."""
    drawn = MEDIAN * np.exp(SIGMA * np.random.default_rng(seed).standard_normal(count))
    return np.maximum(np.minimum(drawn, CUT) / scale, 2 * SAMPLED).astype(int).tolist()


def make_request(number: int, length: int, scale: int, vocabulary: int) -> Request:
    """Return a request whose response has this length; the id that ends it lies outside the vocabulary."""
    prompt = np.random.default_rng(number).integers(8, 500, max(4, PROMPT // scale)).tolist()
    block, memento = BLOCK // scale, max(1, MEMENTO // scale)
    written = {0: 4, block + 1: 5, block + 2: 6, block + memento + 3: 7}

    def write(tracker: ExpiryTracker) -> int | None:
        index = tracker.block_tracker.num_read - len(prompt)
        if index < length - SAMPLED:
            return written.get(index % (block + memento + 4), 9)
        return vocabulary if index == length - 1 else None

    return Request(prompt, (0, number), write)


def decode(
    model: PreTrainedModel, requests: Sequence[Request], arm: str, rows: int, batches: int
) -> tuple[float, float, list[Generation]]:
    """Decode groups of so many batches; return wall time and CPU time in seconds, and the responses."""
    wall, cpu, group = time.perf_counter(), time.process_time(), rows * batches
    done: list[Generation] = []
    for begin in range(0, len(requests), group):
        part = requests[begin : begin + group]
        done += generate(model, part, MARKUP, POLICIES[arm], Sampling(CUT, 1.0), rows=rows)
    return time.perf_counter() - wall, time.process_time() - cpu, done


def compare(model: PreTrainedModel, case: Case, arm: str, batches: int, pairs: int) -> dict[str, object]:
    """Decode one group with refilling and without, in turns."""
    vocabulary = SIZES[case.size].vocabulary
    lengths = draw_lengths(case.rows * batches, case.scale)
    requests = [make_request(number, length, case.scale, vocabulary) for number, length in enumerate(lengths)]
    speedups, cpu_speedups = [], []
    for _ in range(pairs):
        wall, cpu, expected = decode(model, requests, arm, case.rows, 1)
        refilled_wall, refilled_cpu, refilled = decode(model, requests, arm, case.rows, batches)
        if [each.tokens for each in refilled] != [each.tokens for each in expected]:
            raise SystemExit("responses differ with refilled rows: no time is recorded")
        speedups.append(wall / refilled_wall)
        cpu_speedups.append(cpu / refilled_cpu)
    held = counted(lengths, case.rows, 1, np.zeros(max(lengths)))
    refilled_steps = counted(lengths, case.rows, batches, np.zeros(max(lengths)))["steps"]
    return {
        "size": case.size,
        "rows": case.rows,
        "requests": len(requests),
        "arm": arm,
        "longest": max(lengths),
        "mean_length": statistics.mean(lengths),
        "speedups": speedups,
        "speedups_cpu": cpu_speedups,
        "fewer_steps": held["steps"] / refilled_steps,
        "limit": held["steps"] / (sum(lengths) / case.rows),
    }


def counted(lengths: Sequence[int], rows: int, batches: int, held: np.ndarray) -> dict[str, float]:
    """Count the steps of decoding groups of batches, and the key slots that they read.

    Args:
        lengths: lengths of the responses in tokens.
        rows: number of rows decoded at once.
        batches: number of batches in a group.
        held: number of keys that a row holds at each of its steps.

    Returns:
        Steps (a refill counts as one more, because it reads the weights), key slots that all rows read at all steps or
        that are copied when rows leave or join, padding included, and key slots at all steps without padding.
    """
    steps = slots = 0
    for begin in range(0, len(lengths), rows * batches):
        group = lengths[begin : begin + rows * batches]
        waiting = WaitingRequests(deque(range(len(group))), rows)
        left = np.array([group[number] for number in waiting.take(busy=0)])
        age = np.zeros_like(left)
        while len(left):
            jump = 1 if waiting.numbers and len(left) < rows else min(512, int(left.min()))
            length = held[age + jump // 2]
            slots += jump * sum(len(length[part.rows]) * part.width for part in row_parts(length))
            steps, age, left = steps + jump, age + jump, left - jump
            finished = int((left == 0).sum())
            age, left = age[left > 0], left[left > 0]
            joining = waiting.take(busy=len(left))
            copies = 2 * (bool(finished) + bool(joining)) * len(left)  # read and written
            slots += copies * int(held[age].max(initial=0))
            steps += bool(joining)
            left = np.concatenate([left, [group[number] for number in joining]]).astype(int)
            age = np.concatenate([age, np.zeros(len(joining), dtype=int)])
    return {"steps": steps, "slots": slots, "unpadded": sum(float(held[:length].sum()) for length in lengths)}


def at_paper_lengths(rows: int, arm: str, samples: int = 960) -> dict[str, object]:
    """Count steps and bytes at the paper's lengths: 32 samples of each of 30 problems, by batches per group."""
    held = alive(expiry(average_trace(PROMPT, CUT), TRACE_MARKUP, POLICIES[arm]))[PROMPT:]
    lengths = draw_lengths(samples, 1)
    results = {}
    for batches in (1, 2, 4, 8, math.ceil(samples / rows)):
        found = counted(lengths, rows, batches, held)
        results[batches] = found | {"bytes": found["steps"] * WEIGHT_BYTES + found["slots"] * TOKEN_BYTES}
    least = sum(lengths) / rows * WEIGHT_BYTES + results[1]["unpadded"] * TOKEN_BYTES
    return {
        "rows": rows,
        "arm": arm,
        "samples": samples,
        "fewer_steps": {batches: results[1]["steps"] / found["steps"] for batches, found in results.items()},
        "fewer_bytes": {batches: results[1]["bytes"] / found["bytes"] for batches, found in results.items()},
        "limit_steps": results[1]["steps"] / (sum(lengths) / rows),
        "limit_bytes": results[1]["bytes"] / least,
    }


def main() -> None:
    """Run the comparison and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="numbers of the cases")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=HuggingFaceBackend.batches_per_group, help="batches per group")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "refilling.json")
    chosen = parser.parse_args()
    paper = [at_paper_lengths(rows, arm) for rows in (8, 32) for arm in POLICIES]
    for counts in paper:
        print(json.dumps(counts), flush=True)
    measured = []
    for case in (CASES[number] for number in chosen.cases):
        model = make_model(SIZES[case.size], "cpu", torch.float32)
        model.generation_config.eos_token_id = SIZES[case.size].vocabulary
        for arm in case.arms:
            measured.append(compare(model, case, arm, chosen.batches, chosen.pairs))
            print(json.dumps(measured[-1]), flush=True)
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "refill_steps": REFILL_STEPS}
    record |= {"batches_per_group": chosen.batches, "measured": measured, "paper_lengths": paper}
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
