"""Rows, flags and models for the tests of training."""

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


def ledger_rows(path: Path, n: int = 48, seed: int = 0) -> Path:
    """Rows in OpenMementos' format."""
    rng = np.random.default_rng(seed)
    ledgers = [Ledger.sample(rng, int(level)) for level in rng.integers(0, 4, n)]
    rows = [{"problem": one.prompt, "response": "".join(one.response()[:-1])} for one in ledgers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: str) -> None:
    cli.app(["sft", *arguments], standalone_mode=False)


def blank_model(folder: Path) -> Path:
    """`toy-open`'s geometry and tokenizer with random weights, no policy recorded."""
    torch.manual_seed(0)
    checkpoint = load("toy-open")
    config = checkpoint.model.config.__class__(**checkpoint.model.config.to_dict())
    config.ghosttrace = {}
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return folder
