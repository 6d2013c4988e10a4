"""Cost of memento attention in training, forward and backward: `python benchmarks/training.py`.

A stack of decoder layers with random weights reads one random trace with the paper's mean block and memento lengths.
All variants run alternately (A B C …), so only ratios matter. The baseline is plain causal attention (transformers'
sdpa without a mask). `limit` is the ratio of floating point operations: those of the linear maps and of the visible
pairs of query and key. A sealed example contains each memento twice, so its limit is higher. FlexAttention has no
backward pass on a CPU; there only its forward pass is timed, against a forward pass of the baseline. On a GPU, use
`--geometry 8b --device cuda --dtype bfloat16 --lengths 8192 16384 32768`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding import SIZES, make_model
from torch import Tensor

from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.markup import Markup
from ghosttrace.law.masks import Kernel
from ghosttrace.model.attention import attending
from ghosttrace.training.examples import Example, Stage, make_example

LAW = MementoLaw(Markup(4, 5, 6, 7, assistant_header=(3,)), Policy(True))
BLOCK, MEMENTO = 1150, 194  # arXiv 2604.09852, section 4
VARIANTS: dict[str, tuple[Stage, Kernel | None]] = {
    "plain": ("full", None),
    "dense": ("memento", "sdpa"),
    "segments": ("memento", "segments"),
    "flex": ("memento", "flex"),
    "sealed": ("sealed", "segments"),
    "sealed-flex": ("sealed", "flex"),
}


def make_trace_example(length: int, stage: Stage) -> Example:
    """Make a training example from a random trace of `length` tokens; sealed examples have more columns."""
    rng, tokens = np.random.default_rng(0), [1, 3]
    while len(tokens) < length:
        tokens += [4, *rng.integers(8, 1000, BLOCK), 5, 6, *rng.integers(8, 1000, MEMENTO), 7]
    return make_example(tokens[:length], tokens[:length], LAW, stage)


def count_visible_pairs(example: Example) -> int:
    """Count the visible pairs of query and key."""
    length = len(example.expiry)
    return int((np.minimum(example.expiry, length) - np.arange(length)).sum())


def count_flops(example: Example, config: Any) -> float:
    """Count the floating point operations of a forward pass; a backward pass takes twice as many."""
    heads, wide = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linear = config.hidden_size * (2 * heads + 2 * wide + 3 * config.intermediate_size)
    return 2.0 * len(example.expiry) * linear + 4.0 * heads * count_visible_pairs(example)


def forward_backward(model: Any, example: Example, kernel: Kernel | None, backward: bool) -> Callable[[], None]:
    """Return a function that runs a forward and optionally a backward pass; without a kernel, with plain attention."""
    device = model.device
    names = ("input_ids", "position_ids", "expiry")
    batch = {name: torch.from_numpy(getattr(example, name))[None].to(device) for name in names}
    if kernel is None:  # given position ids, transformers would look for packed sequences
        batch = {"input_ids": batch["input_ids"]}

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out: Tensor = model(**batch, use_cache=False).last_hidden_state
            if backward:
                out.square().mean().backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run_attending() -> None:
        with attending(model, kernel or "sdpa"):
            run()

    return run_attending if kernel else run


def compare(model: Any, length: int, turns: int, backward: bool, names: list[str]) -> dict[str, Any]:
    """Measure time ratios to plain causal attention at one length."""
    torch.compiler.reset()  # on CPUs a kernel compiled for any length fails to build (torch 2.13)
    examples = {name: make_trace_example(length, VARIANTS[name][0]) for name in names}
    runs = {name: forward_backward(model, examples[name], VARIANTS[name][1], backward) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    memory = dict.fromkeys(names, 0)
    for turn in range(turns + 1):  # the first turn warms up and compiles
        for name, run in runs.items():
            if model.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(model.device)
            started = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - started)
            if model.device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(model.device)
    flops = {name: count_flops(example, model.config) for name, example in examples.items()}
    return {
        "length": length,
        "columns": {name: len(example.expiry) for name, example in examples.items()},
        "ratio": {
            n: statistics.median(a / b for a, b in zip(t, times["plain"], strict=True)) for n, t in times.items()
        },
        "limit": {name: flops[name] / flops["plain"] for name in names},
        "visible_pairs": {
            name: count_visible_pairs(example) / count_visible_pairs(examples["plain"])
            for name, example in examples.items()
        },
        "peak_bytes": memory,
        "plain_seconds": times["plain"],
    }


def main() -> None:
    """Run the comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="mid", choices=SIZES)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    chosen = parser.parse_args()
    size = SIZES[chosen.geometry]
    model: Any = make_model(size, chosen.device, getattr(torch, chosen.dtype), layers=chosen.layers).base_model
    model.config.max_position_embeddings = max(chosen.lengths)
    model.requires_grad_(True).train()
    rows = []
    for length in chosen.lengths:
        flex_has_backward = chosen.device != "cpu"
        both = [name for name in VARIANTS if flex_has_backward or "flex" not in name]
        rows.append({"pass": "forward and backward", **compare(model, length, chosen.turns, True, both)})
        if not flex_has_backward:
            forward = [name for name in VARIANTS if name != "sealed-flex"]  # sealed examples have another length
            rows.append({"pass": "forward", **compare(model, length, chosen.turns, False, forward)})
        print(json.dumps(rows[-2:]), flush=True)
    record = {"torch": torch.__version__, "device": chosen.device, "threads": torch.get_num_threads(), "rows": rows}
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
