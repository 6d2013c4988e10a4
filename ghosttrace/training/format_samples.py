"""Generation during training: share of responses with a valid format, and their cache size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet
from transformers import TrainerCallback

from ghosttrace.ablation.arms import Restart
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.generate import Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.model.session import Eraser
from ghosttrace.training.examples import IGNORE_INDEX, delimiter_error, stage_law
from ghosttrace.training.prepare import ExampleBuilder
from ghosttrace.training.trainer import MementoTrainer


def read_prompts(path: Path, limit: int) -> list[list[int]]:
    """Return the first `limit` distinct prompts of an examples file, as token ids.

    A prompt is the part of an example before its first label.

    Raises:
        UserError: if no example has a prompt, because loss begins at the first token.
    """
    distinct: dict[tuple[int, ...], None] = {}
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(64, columns=["input_ids", "labels", "token_index"]):
            prompts = (_prompt(row) for row in batch.to_pylist())
            distinct.update(dict.fromkeys(prompt for prompt in prompts if prompt))
            if len(distinct) >= limit:
                break
    if not distinct:
        raise UserError(
            "--samples needs rows with a prompt before the first label: set the labels of the prompt to -100, or leave "
            "out --samples"
        )
    return [list(prompt) for prompt in distinct][:limit]


def _prompt(row: Mapping[str, list[int]]) -> tuple[int, ...]:
    """Return the tokens before the first label, each once: in a sealed layout, mementos occur in two columns."""
    begin = next((column for column, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    _, columns = np.unique(row["token_index"][:begin], return_index=True)
    return tuple(row["input_ids"][column] for column in columns)


@torch.no_grad()
def evaluate_format(model: Any, example_builder: ExampleBuilder, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Generate a response to each prompt, with the cache of the training stage, and evaluate its format.

    Args:
        model: the model under training; it is in evaluation mode during generation.
        example_builder: defines the markup, the law, the stage and the maximum length.
        prompts: token ids of each prompt.

    Returns:
        `sampled_valid`: share of responses that ended by themselves and, under Memento's law, with at least one block,
        all delimiters in order.
        `sampled_compression`: mean ratio of the number of tokens to the peak number of KV tokens.
        `sampled_tokens`: mean number of tokens of a response.
    """
    max_new_tokens = max(1, min(example_builder.max_length - len(prompt) for prompt in prompts))
    sampling = Sampling(max_new_tokens, temperature=0.6, top_p=0.95, top_k=20)  # arXiv 2604.09852, evaluation
    requests = [Request(list(prompt), (example_builder.seed, index)) for index, prompt in enumerate(prompts)]
    eraser = Restart().eraser if example_builder.stage == "sealed" else Eraser
    law, markup, training = (
        stage_law(example_builder.law, example_builder.stage),
        example_builder.markup,
        model.training,
    )
    no_blocks = Policy(False, keep_last_n_blocks=-1, require_assistant_section=bool(markup.assistant_header))
    policy = law.policy if isinstance(law, MementoLaw) else no_blocks
    model.eval()
    generations = generate(model, requests, markup, policy, sampling, eraser, law=law)
    model.train(training)
    valid, compression = [], []
    for generation in generations:
        tokens = [*generation.prompt, *generation.tokens]
        in_order = not isinstance(law, MementoLaw) or has_pairs(tokens, markup, policy)
        valid.append(generation.finish_reason == "eos" and in_order)
        compression.append(len(tokens) / max(1, generation.peak_kv_tokens))
    return {
        "sampled_valid": float(np.mean(valid)),
        "sampled_compression": float(np.mean(compression)),
        "sampled_tokens": float(np.mean([len(generation.tokens) for generation in generations])),
    }


def has_pairs(tokens: Sequence[int], markup: Markup, policy: Policy) -> bool:
    """Return whether there is at least one pair of block and memento, and no delimiter outside a pair."""
    blocks = find_blocks(tokens, markup, policy.require_assistant_section)
    return bool(blocks) and delimiter_error(tokens, markup, policy) is None


class FormatCallback(TrainerCallback):
    """Trainer callback that logs `evaluate_format` at every evaluation and at the end of training."""

    def __init__(
        self, trainer: MementoTrainer, example_builder: ExampleBuilder, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.trainer, self.example_builder, self.prompts = trainer, example_builder, prompts

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the format in the main process and log it; also runs at the end of training."""
        if state.is_world_process_zero:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self.trainer.log(evaluate_format(model, self.example_builder, self.prompts))

    on_train_end = on_evaluate
