"""Decoding throughput relative to `transformers.generate`: `python benchmarks/decoding.py`.

Three variants decode the same prompts greedily to the same length with the same random weights: transformers with its
dynamic cache; GhostTrace without erasure; GhostTrace with erasure, where a harness writes blocks and mementos of a
different length in each row. The variants run alternately (A B C A B C …), so only ratios matter. The script also
reports the attainable ratio, computed from the bytes that a step must read: all weights once, and the keys and values
of each row once.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.sampling import Sampling

MARKUP = Markup(4, 5, 6, 7)
POLICY = Policy(mask_delimiters=True, require_assistant_section=False)
PROMPT, BLOCK, MEMENTO = 64, 225, 31


@dataclass(frozen=True)
class Size:
    """Geometry of a random model, number of tokens to decode and batch sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    new_tokens: int
    rows: tuple[int, ...] = (1, 8)


SIZES = {
    "tiny": Size(128, 4, 4, 4, 32, 352, 512, 2048),
    "mid": Size(768, 8, 12, 12, 64, 2048, 32_000, 2048),
    "8b": Size(4096, 36, 32, 8, 128, 12_288, 151_936, 8192, (16,)),
}


def make_model(size: Size, device: str, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
    """Make a model with random weights and no end-of-text token, so that every row decodes to the full length."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=layers or size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=16_384,
        tie_word_embeddings=size.hidden < 4096,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def make_harness(row: int) -> Callable[[ExpiryTracker], int | None]:
    """Return a harness whose blocks are longer in later rows, so that rows erase at different steps."""
    block = BLOCK + 5 * row
    written = {0: 4, block + 1: 5, block + 2: 6, block + MEMENTO + 3: 7}

    def write(tracker: ExpiryTracker) -> int | None:
        return written.get((tracker.block_tracker.num_read - PROMPT) % (block + MEMENTO + 4), 9)

    return write


def time_ghosttrace(model: PreTrainedModel, prompts: torch.Tensor, size: Size, erase: bool) -> list[Generation]:
    """Decode with GhostTrace, with or without erasure."""
    requests = [
        Request(prompt, (0, row), make_harness(row) if erase else None) for row, prompt in enumerate(prompts.tolist())
    ]
    return generate(model, requests, MARKUP, POLICY, Sampling(size.new_tokens))


def time_transformers(model: PreTrainedModel, prompts: torch.Tensor, size: Size) -> None:
    """Decode with `transformers.generate` and its dynamic cache."""
    mask = torch.ones_like(prompts)
    model.generate(  # type: ignore[operator]
        prompts, attention_mask=mask, max_new_tokens=size.new_tokens, min_new_tokens=size.new_tokens, do_sample=False
    )


def seconds(run: Callable[[], object], device: str) -> float:
    """Return the wall time of one run in seconds, after synchronising the device."""
    started = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(model: PreTrainedModel, size: Size, rows: int, pairs: int, device: str) -> dict[str, object]:
    """Measure throughput ratios at one batch size, and compute the attainable ones."""
    prompts = torch.randint(8, size.vocabulary, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    kept: list[Generation] = []
    variants: dict[str, Callable[[], object]] = {
        "transformers": lambda: time_transformers(model, prompts.to(device), size),
        "plain": lambda: time_ghosttrace(model, prompts, size, erase=False),
        "erasing": lambda: kept.extend(time_ghosttrace(model, prompts, size, erase=True)),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(pairs):
        for name, run in variants.items():
            times[name].append(seconds(run, device))
    ratios = {
        name: [baseline / own for baseline, own in zip(times["transformers"], times[name], strict=True)]
        for name in ("plain", "erasing")
    }
    # A step must read the weights once, and the keys and values of every row once.
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    bytes_per_token = CacheGeometry.from_config(model.config).bytes_per_token(model.dtype)
    full = PROMPT + size.new_tokens / 2
    held = sum(float(generation.kv_tokens[PROMPT:].mean()) for generation in kept) / len(kept)
    peak = PROMPT + size.new_tokens
    limit = (weights + rows * full * bytes_per_token) / (weights + rows * held * bytes_per_token)
    return {
        "rows": rows,
        "new_tokens": size.new_tokens,
        "tokens_per_second": {n: rows * size.new_tokens / statistics.median(t) for n, t in times.items()},
        "ratio": {n: statistics.median(r) for n, r in ratios.items()},
        "ratios": ratios,
        "erasing_over_plain": statistics.median([a / b for a, b in zip(times["plain"], times["erasing"], strict=True)]),
        "erasing_over_plain_limit": limit,
        "kv_reduction_mean": full / held,
        "kv_reduction_peak": peak / max(generation.peak_kv_tokens for generation in kept),
        "weight_bytes": weights,
        "kv_bytes_a_token": bytes_per_token,
    }


def main() -> None:
    """Run the comparison and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mid"], choices=SIZES)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, help="tokens to decode; the default depends on the size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding.json")
    chosen = parser.parse_args()
    record: dict[str, object] = {"torch": torch.__version__, "device": chosen.device, "dtype": chosen.dtype}
    for name in chosen.sizes:
        size = SIZES[name]
        if chosen.new_tokens:
            size = Size(**asdict(size) | {"new_tokens": chosen.new_tokens})
        model = make_model(size, chosen.device, getattr(torch, chosen.dtype))
        # Warm up all variants, so that none pays for the first call.
        short = Size(**asdict(size) | {"new_tokens": 8})
        compare(model, short, 1, 1, chosen.device)
        parameters = sum(p.numel() for p in model.parameters())
        batches = [compare(model, size, rows, chosen.pairs, chosen.device) for rows in size.rows]
        record[name] = {"parameters": parameters, "geometry": asdict(size), "batches": batches}
        for row in batches:
            print(name, json.dumps({k: v for k, v in row.items() if k != "ratios"}), flush=True)
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
