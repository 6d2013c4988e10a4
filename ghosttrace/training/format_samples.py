"""What a model under training writes by itself: is the format valid, and how much does it hold?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet
from transformers import TrainerCallback

from ghosttrace.ablation.arms import Restart
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.generate import Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.model.session import Eraser
from ghosttrace.training.examples import IGNORE_INDEX, delimiter_error, stage_policy
from ghosttrace.training.prepare import ExampleBuilder
from ghosttrace.training.trainer import MementoTrainer


def read_prompts(path: Path, limit: int) -> list[list[int]]:
    """The first different prompts of an examples file: what stands before the first label.

    Raises:
        UserError: there is none, as every row carries loss from its first token on.
    """
    found: dict[tuple[int, ...], None] = {}
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(64, columns=["input_ids", "labels", "position_ids"]):
            prompts = (_prompt(row) for row in batch.to_pylist())
            found.update(dict.fromkeys(prompt for prompt in prompts if prompt))
            if len(found) >= limit:
                break
    if not found:
        raise UserError(
            "--samples needs rows with a prompt before the first label: give rows whose labels are -100 over the "
            "prompt, or leave --samples out"
        )
    return [list(prompt) for prompt in found][:limit]


def _prompt(row: Mapping[str, list[int]]) -> tuple[int, ...]:
    """The tokens before the first label, each place once: over a sealed cache mementos stand in two columns."""
    begin = next((column for column, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    _, columns = np.unique(row["position_ids"][:begin], return_index=True)
    return tuple(row["input_ids"][column] for column in columns)


@torch.no_grad()
def evaluate_format(model: Any, example_builder: ExampleBuilder, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Generate a response to each prompt, as the stage decodes, and read its format.

    Returns:
        `sampled_valid`, the share that ended with blocks and mementos in order, at least one of them;
        `sampled_compression`, tokens over peak KV tokens, the mean; `sampled_tokens`, their mean length.
    """
    room = max(1, min(example_builder.max_length - len(prompt) for prompt in prompts))
    sampling = Sampling(room, temperature=0.6, top_p=0.95, top_k=20)  # arXiv 2604.09852, evaluation
    requests = [Request(list(prompt), (example_builder.seed, number)) for number, prompt in enumerate(prompts)]
    eraser = Restart().eraser if example_builder.stage == "sealed" else Eraser
    law, training = stage_policy(example_builder.policy, example_builder.stage), model.training
    model.eval()
    done = generate(model, requests, example_builder.markup, law, sampling, eraser)
    model.train(training)
    valid, held = [], []
    for one in done:
        tokens = [*one.prompt, *one.tokens]
        blocks = find_blocks(tokens, example_builder.markup, law.require_assistant_section)
        valid.append(
            one.finish_reason == "eos" and bool(blocks) and delimiter_error(tokens, example_builder.markup, law) is None
        )
        held.append(len(tokens) / max(1, one.peak_kv_tokens))
    return {
        "sampled_valid": float(np.mean(valid)),
        "sampled_compression": float(np.mean(held)),
        "sampled_tokens": float(np.mean([len(one.tokens) for one in done])),
    }


class FormatCallback(TrainerCallback):
    """Samples at every evaluation and when training ends; the figures are logged with the others."""

    def __init__(
        self, trainer: MementoTrainer, example_builder: ExampleBuilder, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.trainer, self.example_builder, self.prompts = trainer, example_builder, prompts

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `evaluate_format`."""
        if state.is_world_process_zero:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self.trainer.log(evaluate_format(model, self.example_builder, self.prompts))

    on_train_end = on_evaluate
