"""Rows, options and models for the training tests."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ghosttrace.bench.ledger import Ledger
from ghosttrace.cli import main as cli
from ghosttrace.model.checkpoint import load

QUICK = ["--max_length", "256", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
QUICK += ["--bf16", "false", "--gradient_checkpointing", "false", "--disable_tqdm", "true", "--report_to", "none"]
RL_FLAGS = (
    *("--max_completion_length", "100", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"),
    *("--gradient_checkpointing", "false", "--bf16", "false", "--report_to", "none", "--temperature", "2.0"),
    *("--learning_rate", "1e-3", "--warmup_steps", "0", "--max_steps", "2", "--disable_tqdm", "true"),
)


def ledger_rows(path: Path, n: int = 48, seed: int = 0) -> Path:
    """Write `n` ledger traces in the format of OpenMementos, and return the path."""
    rng = np.random.default_rng(seed)
    ledgers = [Ledger.sample(rng, int(level)) for level in rng.integers(0, 4, n)]
    rows = [{"problem": ledger.prompt, "response": "".join(ledger.response()[:-1])} for ledger in ledgers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: str) -> None:
    """Run `ghosttrace sft` in this process; raise on invalid input."""
    cli.app(["sft", *arguments], standalone_mode=False)


def blank_model(folder: Path) -> Path:
    """Save a model with the geometry and tokenizer of `toy-open`, random weights and no recorded policy."""
    torch.manual_seed(0)
    checkpoint = load("toy-open")
    config = checkpoint.model.config.__class__(**checkpoint.model.config.to_dict())
    config.ghosttrace = {}
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return folder
