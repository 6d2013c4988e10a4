"""Collation of examples into padded batches in which no packed trace attends to another."""

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
    """Collator of packed rows into tensors of dtype int64 and shape [B, W].

    In a packed row, every key expires at the end of its trace or earlier, so the expiry mask alone keeps traces
    separate. Padding has expiry 0: no query sees it.

    Attributes:
        pad_id: token id of the padding; any id works, because no query sees padding.
        pad_to_multiple_of: W is a multiple of this number of tokens.
    """

    pad_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch from B rows of one or more traces each.

        The first label of each trace becomes -100, because no earlier token predicts it.

        Args:
            rows: columns of `Example`, and `seq_lengths`, the number of columns of each trace in the row.

        Returns:
            `input_ids`, `labels`, `position_ids`, `expiry`, `kind` and `attention_mask`, int64[B, W] each.
        """
        width = max(len(row["input_ids"]) for row in rows)
        width += -width % self.pad_to_multiple_of
        fill = PADDING_VALUES | {"input_ids": self.pad_id}
        batch = {name: np.full((len(rows), width), value, dtype=np.int64) for name, value in fill.items()}
        for index, row in enumerate(rows):
            lengths = np.asarray(row["seq_lengths"])
            starts = np.cumsum(lengths) - lengths
            for name in PADDING_VALUES:
                batch[name][index, : lengths.sum()] = row[name]
            batch["expiry"][index, : lengths.sum()] += np.repeat(starts, lengths)
            batch["labels"][index, starts] = IGNORE_INDEX
        batch["attention_mask"] = (batch["expiry"] > 0).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}
