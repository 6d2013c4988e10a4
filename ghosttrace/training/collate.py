"""Batches of examples: packed, padded, each trace blind to its neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.training.examples import IGNORE_INDEX, TokenKind

PADDING_VALUES = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0, "expiry": 0, "kind": int(TokenKind.TEXT)}


@dataclass(frozen=True)
class Collator:
    """Rows of packed examples to tensors, int64[B, W] each.

    In a pack every key expires with its trace, at the latest: the law itself keeps traces apart. Padding
    expires at once.

    Attributes:
        pad_id: any token id; nothing ever sees it.
        multiple: the width of a batch is a multiple of it.
    """

    pad_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, labels, position_ids, expiry, kind and attention_mask; a trace's first label is left out."""
        width = max(len(row["input_ids"]) for row in rows)
        width += -width % self.pad_to_multiple_of
        fill = PADDING_VALUES | {"input_ids": self.pad_id}
        batch = {name: np.full((len(rows), width), value, dtype=np.int64) for name, value in fill.items()}
        for number, row in enumerate(rows):
            lengths = np.asarray(row["seq_lengths"])
            starts = np.cumsum(lengths) - lengths
            for name in PADDING_VALUES:
                batch[name][number, : lengths.sum()] = row[name]
            batch["expiry"][number, : lengths.sum()] += np.repeat(starts, lengths)
            batch["labels"][number, starts] = IGNORE_INDEX  # no token before it to predict it from
        batch["attention_mask"] = (batch["expiry"] > 0).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}
