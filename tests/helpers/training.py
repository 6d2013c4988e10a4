"""Rows, options and models for the training tests."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ghosttrace.bench.ledger import Ledger
from ghosttrace.cli import main as cli
from ghosttrace.model.checkpoint import load
from ghosttrace.training.rollouts import Rollouts

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


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Interrupt reinforcement learning as it writes the rollouts of a step, as from the keyboard."""
    call = Rollouts.__call__

    def interrupted(self: Rollouts, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return call(self, prompts, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


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
