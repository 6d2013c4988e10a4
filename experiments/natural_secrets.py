"""Claim: a natural secret is reported only where the retained text does not say it, with a real and a random model.

The traces are two real Memento traces (`reference_traces`): 120 excerpts of each, two blocks and mementos cut to 40
tokens. A code of four random digits is appended to the second block and, in half of the runs, to its memento as well,
so that the text says it. The attribute is the last digit of the block's last number. The model is the first eight
layers of SmolLM2-135M, which was not trained with mementos, or a random model of its shape with four layers.

Writes `experiments/results/natural_secrets.parquet`. `make lm`, then `python experiments/natural_secrets.py --traces
FILES`: about fifteen minutes on one core; resumes an interrupted run.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from ghosttrace.data.tokens import TokenTrace, load_traces
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint, load_config, load_tokenizer, resolve_pretrained_path
from ghosttrace.probing.natural import natural_task
from ghosttrace.probing.run import probe
from ghosttrace.training.delimiters import add_delimiters

ROOT = Path(__file__).parent.parent
BASE = "smollm2-135m"
EXCERPTS, CONTEXT_TOKENS, KEPT_TOKENS = 120, 20, 40
LAYERS = {"real": (1, 4, 7), "random": (1, 3)}
N_LAYERS = {"real": 8, "random": 4}


def excerpts(
    checkpoint: Checkpoint, traces: Sequence[TokenTrace], in_memento: bool, n: int, kept_tokens: int | None = None
) -> list[TokenTrace]:
    """Return excerpts of traces with a random code in their second block, and in its memento if asked.

    Args:
        checkpoint: Provides the tokenizer and the markup.
        traces: Traces with at least two blocks.
        in_memento: Whether the memento contains the code.
        n: Excerpts of each trace; they differ in the code alone.
        kept_tokens: Tokens that are kept of each memento. None: all.
    """
    rng, many, section = np.random.default_rng(0), [], checkpoint.policy.require_assistant_section
    for base in traces:
        blocks = find_blocks(base.ids, checkpoint.markup, section)[:2]
        for _ in range(n):
            code = f" The code is {rng.integers(1000, 9999)}."
            planted = checkpoint.tokenizer(code, add_special_tokens=False)["input_ids"]
            ids = list(base.ids[: blocks[0].start][-CONTEXT_TOKENS:])
            for number, block in enumerate(blocks):
                end = (
                    block.memento_end
                    if kept_tokens is None
                    else min(block.memento_end, block.memento_start + kept_tokens)
                )
                ids += base.ids[block.start : block.start + KEPT_TOKENS]
                ids += [*(planted if number else []), base.ids[block.end]]
                ids += [*base.ids[block.memento_start : end], *(planted if number and in_memento else [])]
                ids.append(base.ids[block.memento_end])
            many.append(TokenTrace("real", base.name, [], ids))
    return many


def base_checkpoint(kind: str) -> Checkpoint:
    """Return SmolLM2 with delimiters, or a random model of its shape; blocks expire anywhere in the text."""
    tokenizer, config = load_tokenizer(BASE), load_config(BASE)
    config.num_hidden_layers = N_LAYERS[kind]
    if kind == "random":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(BASE), config=config, dtype=torch.float32)
    add_delimiters(model, tokenizer)
    policy = Policy(mask_delimiters=False, require_assistant_section=False)
    return Checkpoint(kind, model.eval().requires_grad_(False), tokenizer, Markup.from_tokenizer(tokenizer), policy)


def measure(kind: str, in_memento: bool, files: Sequence[str], work: Path) -> pd.DataFrame:
    """Probe one model for the code, and return the table of the probe with what was planted."""
    checkpoint = base_checkpoint(kind)
    traces = excerpts(checkpoint, load_traces(checkpoint, list(files)), in_memento, EXCERPTS, KEPT_TOKENS)
    task = natural_task(traces, checkpoint, "last-number", hops=0)
    result = probe(
        replace(checkpoint, name=f"{BASE}, {kind}"),
        task=task,
        hops=(0,),
        layers=LAYERS[kind],
        kv=("v",),
        mlp=False,
        pool="mean",
        within_traces=True,
        out=None if work.exists() else work,
        resume=work if work.exists() else None,
        progress=lambda step, done, total: print(f"{step} {done}/{total}", flush=True),
    )
    return result.results.assign(model=kind, in_memento=in_memento, failures="; ".join(result.failures))


def main() -> None:
    """Measure both models with and without the code in the memento, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", nargs="+", required=True, help="two real Memento traces")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "natural_secrets")
    arguments = parser.parse_args()
    tables = []
    for kind in ("random", "real"):
        for in_memento in (True, False):
            folder = arguments.work / f"{kind}-{'in' if in_memento else 'not-in'}-memento"
            path = folder.with_suffix(".parquet")
            if not path.exists():
                measure(kind, in_memento, arguments.traces, folder).to_parquet(path, index=False)
            tables.append(pd.read_parquet(path))
            opened = tables[-1].query("condition in ('open', 'swapped', 'decoder') and hop >= 0")
            print(kind, in_memento, tables[-1]["failures"].iloc[0], "\n", opened.to_string(), flush=True)
    pd.concat(tables).to_parquet(ROOT / "experiments" / "results" / "natural_secrets.parquet", index=False)


if __name__ == "__main__":
    main()
