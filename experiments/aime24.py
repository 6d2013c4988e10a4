"""Measure what closing the ghost channel costs a memento checkpoint on AIME24 (the paper's Table 3).

    python experiments/aime24.py --model CHECKPOINT --keep-delimiters     on a machine with GPUs
    python experiments/aime24.py --rehearse                               on any machine

The first command runs the paper's protocol (30 problems, 64 repetitions, 32,000 tokens) with the default arms and
prints the result beside the paper's. Run it again to resume an interrupted run.

The second command rehearses the same code on a random Qwen3 model with 5 million parameters and the real Qwen
tokenizer, to which the delimiters are added as in the paper. A random model never writes a delimiter, so
`force_structure` inserts them, with random tokens between. Its accuracy is zero and means nothing; the rehearsal checks
that every step works: prompts, blocks, erasure, all arms, grading and report. It needs the problems and the tokenizer
in the folder that GHOSTTRACE_DATA names.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ghosttrace.ablation.arms import ARMS
from ghosttrace.ablation.run import run_ablation
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import Bench, Harness, Problem, load_bench
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.model.checkpoint import load
from ghosttrace.report.ablation.table import percent
from ghosttrace.results import open_run
from ghosttrace.runs.folder import is_finished, read_configuration
from ghosttrace.training.delimiters import add_delimiters

PAPER = {"memento": 66.1, "restart": 50.8}  # pass@1 in %, section 6.2.1
BLOCKS, BLOCK, MEMENTO = 3, 24, 8  # of `force_structure`


def random_checkpoint(folder: Path, tokenizer_folder: Path) -> None:
    """Save a random Qwen3 with the real tokenizer, the delimiters and the policy of the paper's Qwen3."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config.ghosttrace = {"policy": Policy(mask_delimiters=False).to_dict()}
    model = Qwen3ForCausalLM(config)
    add_delimiters(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def force_structure(problem: Problem, tokenizer: Any) -> Harness:
    """Return a harness that forces the structure of a response and lets the model sample the other tokens."""
    free = [None]
    block = ["<|block_start|>", *free * BLOCK, "<|block_end|>", "<|summary_start|>", *free * MEMENTO, "<|summary_end|>"]
    text = ["<think>", *block * BLOCKS, "</think>", *free * 8, "\\", "boxed", "{", *free * 3, "}", "<|im_end|>"]
    ids = [None if token is None else tokenizer.convert_tokens_to_ids(token) for token in text]
    begin: list[int] = []

    def forced_token(tracker: ExpiryTracker) -> int | None:
        begin[:] = begin or [tracker.block_tracker.num_read]
        return ids[tracker.block_tracker.num_read - begin[0]]

    return forced_token


def comparison(results: pd.DataFrame, title: str) -> Table:
    """Return a table of the measured arms beside the paper's Table 3, in %, 80 columns wide."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        caption="pass@1 in %, with 95 % intervals over problems for this run; drop: against memento, paired by problem "
        "in this run. Paper: Qwen3-8B, 64 repetitions of memento against 8 of restart, unpaired.",
    )
    table.add_column("arm", no_wrap=True)
    for name in ("paper", "this run", "drop, paper", "drop, this run"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.to_dict("records"):
        paper, reference = PAPER.get(row["arm"]), row["arm"] == "memento"
        table.add_row(
            row["arm"],
            f"{paper:.1f}" if paper else "",
            percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
            f"{paper - PAPER['memento']:+.1f}" if paper and not reference else "",
            "" if reference else percent(row["effect"], row["effect_low"], row["effect_high"], signed=True),
        )
    return table


def rehearse(folder: Path, limit: int | None, data: Path) -> pd.DataFrame:
    """Run every step on a random model."""
    model = folder / "model"
    if not model.exists():
        partial = folder / "model.part"  # renamed when complete, because config.json is saved before the weights
        random_checkpoint(partial, data / "tokenizers" / "qwen3")
        partial.replace(model)
    (bench,) = load_bench("aime24", limit, file=data / "bench" / "aime24.jsonl")
    arms = tuple(name for name, kind in ARMS.items() if not kind.needs_counterfactuals)
    return measure(str(model), replace(bench, harness=force_structure), AblationSettings(arms, 1, limit), folder, None)


def measure(
    model: str, bench: Bench, settings: AblationSettings, folder: Path, mask_delimiters: bool | None
) -> pd.DataFrame:
    """Run or resume the ablation in `folder/run`, write its report, and return its results.

    Raises:
        SystemExit: If the folder holds a finished run of another model.
    """
    out = folder / "run"
    if is_finished(out) and (found := read_configuration(out, "ablate")["model"]) != model:
        raise SystemExit(f"{out} contains a run of {found}: set --out to another folder")
    if not is_finished(out):
        begun = (out / "run.json").exists()
        checkpoint = load(model, mask_delimiters=mask_delimiters)
        run_ablation(checkpoint, [bench], settings, out=None if begun else out, resume=out if begun else None)
    result = open_run(out)
    result.report()
    return result.results


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Run the command line and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id of a memento checkpoint")
    parser.add_argument("--rehearse", action="store_true", help="use a random model")
    parser.add_argument("--out", type=Path, default=Path("runs/aime24"))
    parser.add_argument("--limit", type=int, help="number of problems; all 30 by default")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--keep-delimiters", dest="mask_delimiters", action="store_false", default=None)
    parser.add_argument("--mask-delimiters", dest="mask_delimiters", action="store_true", default=None)
    options = parser.parse_args(arguments)
    if options.rehearse == (options.model is not None):
        parser.error("set exactly one of --model CHECKPOINT and --rehearse")
    if options.rehearse:
        data = os.environ.get("GHOSTTRACE_DATA")
        if data is None:
            parser.error("--rehearse needs GHOSTTRACE_DATA to name the folder with bench/ and tokenizers/")
        results = rehearse(options.out, options.limit, Path(data))
        title = "Rehearsal on random weights: these accuracies mean nothing"
    else:
        (bench,) = load_bench("aime24", options.limit)
        settings = AblationSettings(limit=options.limit, batch_size=options.batch_size)
        results = measure(options.model, bench, settings, options.out, options.mask_delimiters)
        title = f"{options.model} on AIME24, beside Qwen3-8B in the paper"
    Console().print(comparison(results, escape(title)))
    return results


if __name__ == "__main__":
    main()
