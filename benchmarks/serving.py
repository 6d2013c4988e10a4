"""Throughput of vLLM with erasure relative to stock vLLM: `python benchmarks/serving.py` (needs vLLM: `make vllm-cpu`).

Stock vLLM and vLLM with erasure write the same texts, forced by the same logits processor. They run alternately
(A B A B …), so only ratios matter. There are two settings:

- `scarce`: the number of pages is a quarter of what a full batch needs without erasure. The measure is requests per
  second.
- `ample`: all requests fit. The measure is tokens per second. The additional variant `keeping` is vLLM with erasure
  that keeps every block (`keep_last_n_blocks` -1). It reads as many keys as stock vLLM, so the difference is the
  overhead of GhostTrace's Python code.

Pages in use are recorded at every step.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np

from ghosttrace.law.expiry import alive, expiry
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.vllm.engine_args import engine_args, read_settings

ROOT = Path(__file__).parent.parent
MODEL, PAGE, PAGE_BYTES = "toy-open", 32, 32 * 4096  # 4 layers, keys and values, 128 numbers of 4 bytes
BLOCKS, BLOCK, MEMENTO, ROWS = 9, 144, 24, 64  # blocks and mementos have an eighth of the paper's mean lengths
MAX_MODEL_LEN = 4096


class RunMeasurement(NamedTuple):
    """Measurements of one run of one variant.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of this process.
        used: Pages in use at every step.
        preempted: Number of preemptions.
    """

    seconds: float
    cpu_seconds: float
    used: list[int]
    preempted: int


def texts(count: int, settings: ServingSettings) -> tuple[list[int], list[list[int]]]:
    """Make a prompt and `count` responses with blocks and mementos of random tokens and lengths."""
    rng, markup = np.random.default_rng(0), settings.markup
    responses = []
    for _ in range(count):
        tokens: list[int] = []
        for _ in range(BLOCKS):
            block, memento = rng.integers(BLOCK // 2, 3 * BLOCK // 2), rng.integers(MEMENTO // 2, 3 * MEMENTO // 2)
            tokens += [markup.block_start, *rng.integers(10, 35, block), markup.block_end]
            tokens += [markup.summary_start, *rng.integers(10, 35, memento), markup.summary_end]
        responses.append([int(token) for token in [*tokens, 10]])
    return [2, 10, *markup.assistant_header], responses


def arguments(name: str) -> dict[str, Any]:
    """Return the arguments of vLLM's `LLM` for one variant."""
    if name == "stock":
        return {"model": engine_args(MODEL)["model"]}
    return engine_args(MODEL, keep_last_n_blocks=-1) if name == "keeping" else engine_args(MODEL)


def serve(name: str, pages: int, prompt: list[int], responses: list[list[int]]) -> RunMeasurement:
    """Write all responses with one variant."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        **arguments(name) | {"logits_processors": ["scripted:ScriptedLogitsProcessor"]},
        dtype="float32",
        enforce_eager=True,
        block_size=PAGE,
        kv_cache_memory_bytes=(pages + 1) * PAGE_BYTES,
        max_model_len=MAX_MODEL_LEN,
        hf_overrides={"max_position_embeddings": MAX_MODEL_LEN},
        max_num_seqs=ROWS,
        enable_prefix_caching=False,
    )
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    original_schedule, original_preempt = scheduler.schedule, scheduler._preempt_request
    used, preempted = list[int](), [0]

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = original_schedule(*args, **kwargs)
        used.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        return output

    def preempt(*args: Any, **kwargs: Any) -> None:
        preempted[0] += 1
        original_preempt(*args, **kwargs)

    scheduler.schedule, scheduler._preempt_request = schedule, preempt
    params = [
        SamplingParams(
            max_tokens=len(response),
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"benchmark_script": response},
        )
        for response in responses
    ]
    begin, begin_cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate([{"prompt_token_ids": prompt}] * len(responses), params, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    assert all(list(o.outputs[0].token_ids) == response for o, response in zip(outputs, responses, strict=True))
    del llm
    cleanup_dist_env_and_memory()
    return RunMeasurement(seconds, cpu_seconds, used, preempted[0])


def compare(
    names: Sequence[str], pages: int, turns: int, prompt: list[int], responses: list[list[int]]
) -> dict[str, Any]:
    """Run variants alternately and return their speedups relative to the first."""
    runs: dict[str, list[RunMeasurement]] = {name: [] for name in names}
    for _ in range(turns):
        for name, kept in runs.items():
            kept.append(serve(name, pages, prompt, responses))
            last = kept[-1]
            print(
                f"{name} {pages} {last.seconds:.1f} s, {last.cpu_seconds:.1f} CPU s, {last.preempted} preempted",
                flush=True,
            )
    plain, others = runs[names[0]], names[1:]
    wall_speedups = {name: [a.seconds / b.seconds for a, b in zip(plain, runs[name], strict=True)] for name in others}
    cpu_speedups = {
        name: [a.cpu_seconds / b.cpu_seconds for a, b in zip(plain, runs[name], strict=True)] for name in others
    }
    return {
        "pages": pages,
        "speedup": {name: statistics.median(values) for name, values in wall_speedups.items()},
        "speedups": wall_speedups,
        "speedups_cpu": cpu_speedups,
        "seconds": {name: [run.seconds for run in kept] for name, kept in runs.items()},
        "preempted": {name: [run.preempted for run in kept] for name, kept in runs.items()},
        "used": {name: kept[-1].used for name, kept in runs.items()},
    }


def main() -> None:
    """Measure and write the results, from which `make figures` draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    settings = read_settings(MODEL)
    prompt, responses = texts(chosen.requests, settings)
    traces = [[*prompt, *response] for response in responses]
    pages = ROWS * int(np.mean([len(trace) for trace in traces])) // PAGE  # that a full batch needs without erasure
    held = [alive(expiry(trace, settings.markup, settings.policy)) for trace in traces]
    results: dict[str, Any] = {
        "requests": chosen.requests,
        "rows": ROWS,
        "tokens": sum(map(len, responses)),
        "limit": float(
            np.mean([len(trace) * (len(trace) + 1) / 2 / n.sum() for trace, n in zip(traces, held, strict=True)])
        ),
        "scarce": compare(("stock", "erasing"), pages // 4, chosen.turns, prompt, responses),
        "ample": compare(("stock", "erasing", "keeping"), 2 * pages, chosen.turns, prompt, responses[:ROWS]),
    }
    (ROOT / "benchmarks" / "results" / "serving.json").write_text(json.dumps(results) + "\n")
    print(
        json.dumps({name: [results[name]["speedups"], results[name]["speedups_cpu"]] for name in ("scarce", "ample")})
    )


if __name__ == "__main__":
    main()
