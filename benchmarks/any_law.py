"""Cost of other laws on SmolLM2: `python benchmarks/any_law.py` (needs `make lm`).

Two measurements, in alternation (A B A B …), so that only ratios matter:

- a masked pass under `window:256,64` relative to plain causal attention of transformers, on one text, beside the share
  of the pairs of queries and keys that stay visible; the linear layers cost the same in both;
- decoding with eviction under `window:256,64` relative to decoding without, in tokens per second.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import ghosttrace as gt
from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.law.law import Law
from ghosttrace.law.layout import open_layout
from ghosttrace.model.checkpoint import Checkpoint, resolve_pretrained_path
from ghosttrace.model.states import model_inputs

MODEL, LAW = "smollm2-135m", "window:256,64"
RESULT = Path(__file__).parent / "results" / "any_law.json"


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of some work."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ratios(work: Callable[[], object], reference: Callable[[], object], runs: int) -> list[float]:
    """Return the time of some work relative to a reference, run by run."""
    return [seconds(work) / seconds(reference) for _ in range(runs)]


def masked_pass(checkpoint: Checkpoint, tokens: int, runs: int) -> dict[str, Any]:
    """Compare one forward pass over a text under the law with the plain pass of transformers."""
    torch.manual_seed(0)
    header = checkpoint.prompt_ids("Tell me something.")
    text = torch.randint(20, 40_000, (tokens - len(header),)).tolist()
    layout = open_layout([*header, *text], checkpoint.law)
    path = resolve_pretrained_path(MODEL)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=checkpoint.model.dtype, attn_implementation="sdpa").eval()
    ids = torch.from_numpy(layout.tokens)[None]

    def under_law() -> None:
        with torch.no_grad(), gt.attending(checkpoint.model) as model:
            model(**model_inputs([layout], checkpoint.model), logits_to_keep=1)

    def reference() -> None:
        with torch.no_grad():
            plain(input_ids=ids, logits_to_keep=1, use_cache=False)

    for first in (under_law, reference):
        first()  # does not count
    visible = gt.alive(layout.expiry).sum() / (tokens * (tokens + 1) / 2)
    return {"tokens": tokens, "visible_pairs": float(visible), "ratios": ratios(under_law, reference, runs)}


def decoding(checkpoint: Checkpoint, tokens: int, rows: int, runs: int) -> dict[str, Any]:
    """Compare decoding under the law with decoding without eviction, in tokens per second."""
    prompt = checkpoint.prompt_ids("Tell me a long story.")
    torch.manual_seed(0)
    texts = torch.randint(20, 40_000, (rows, tokens + 1)).tolist()  # forced, so that all runs write the same

    def force(row: int) -> Callable[[ExpiryTracker], int]:
        return lambda tracker: texts[row][tracker.block_tracker.num_read - len(prompt)]

    requests = [gt.Request(prompt, (row,), force(row)) for row in range(rows)]
    keep = checkpoint.with_law("none")

    def under(law: Law, length: int = tokens) -> None:
        sampling = gt.Sampling(max_new_tokens=length)
        gt.generate(checkpoint.model, requests, checkpoint.markup, checkpoint.policy, sampling, law=law)

    for law in (checkpoint.law, keep.law):
        under(law, 64)  # does not count
    slower = ratios(lambda: under(checkpoint.law), lambda: under(keep.law), runs)
    return {"tokens": tokens, "rows": rows, "ratios": [1 / ratio for ratio in slower]}


def main() -> None:
    """Measure both, or one of them, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--only", choices=["pass", "decoding"], help="measure one part, and keep the other's result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = gt.load(MODEL, law=LAW, device="cpu")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"law": LAW, "threads": 1, "dtype": str(checkpoint.model.dtype)}
    if given.only != "decoding":
        result["pass"] = masked_pass(checkpoint, 2 * given.tokens, 3 * given.runs)  # short, so noisy
    if given.only != "pass":
        result["decoding"] = [decoding(checkpoint, given.tokens, rows, given.runs) for rows in (1, 8)]
    for part in (result.get("pass"), *result.get("decoding", [])):
        if part is not None:
            print(part, statistics.median(part["ratios"]))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
