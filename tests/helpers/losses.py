"""Packed batches and their losses per token."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ghosttrace.law.masks import Kernel
from ghosttrace.model.attention import attending
from ghosttrace.training.collate import Collator
from ghosttrace.training.examples import IGNORE_INDEX, Example


def packed(*parts: Example) -> dict[str, Any]:
    """Return the examples packed in one row, in the format of `trl.pack_dataset`."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return columns | {"seq_lengths": [len(part.input_ids) for part in parts]}


def nll(model: PreTrainedModel, rows: list[dict[str, Any]], kernel: Kernel = "segments") -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each column of a batch, and the labels: [B, W - 1] each."""
    batch = Collator(0)(rows)
    labels = batch["labels"][:, 1:]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "expiry", "attention_mask")}
    with attending(model, kernel):
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=IGNORE_INDEX, reduction="none"), labels
