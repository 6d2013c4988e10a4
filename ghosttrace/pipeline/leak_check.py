"""Check of what mementos leave out: the ghost bits of each block under the text of its memento.

For a trace with its mementos, a memento model predicts the text after each memento twice: over its normal cache, whose
memento entries have seen the block, and over a sealed cache, which holds the text of the mementos alone. The difference
is what the model goes on to use and the text does not say, or how unfamiliar a sealed cache is to the model: compare
blocks with each other, and models that were trained over sealed caches.
"""

from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Self

import numpy as np

from ghosttrace.data.read import TraceText
from ghosttrace.data.tokens import to_token_trace
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.run import bits
from ghosttrace.model.checkpoint import Checkpoint, as_memento_checkpoint
from ghosttrace.pipeline.assembly import response
from ghosttrace.pipeline.rows import Row, RowError


@dataclass(frozen=True)
class LeakCheck:
    """Measurement with a memento model.

    Attributes:
        checkpoint: the model.
        lock: held while it runs, because rows are measured in threads.
    """

    checkpoint: Checkpoint
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def load(cls, model: str) -> Self:
        """Load a model by name.

        Raises:
            UserError: see `ghosttrace.model.checkpoint.as_memento_checkpoint`.
        """
        return cls(as_memento_checkpoint(model, "--seal-check"))

    def measure(self, row: Row) -> Row:
        """Add the ghost bits of each block of a row: the mean per token from its memento to the end of the next one.

        Args:
            row: a row with a draft or a judged memento for each block; drafts count first.

        Raises:
            RowError: a block has no memento, or the model cannot run the trace.
        """
        drafts = row.drafts or (None,) * len(row.blocks)
        mementos = [draft or best for draft, best in zip(drafts, row.mementos, strict=True)]
        texts = [memento for memento in mementos if memento is not None]
        if not texts or len(texts) < len(mementos):
            raise RowError("no mementos: run ghosttrace data compress first")
        text = TraceText(row.problem, response(row, texts))
        with self.lock:
            try:
                trace = to_token_trace(self.checkpoint, "seal-check", row.task_id, text)
                samples = bits(self.checkpoint, [trace], arms=["restart"]).samples
            except UserError as error:
                raise RowError(f"no leak check: {error}") from error
        (sample,) = samples[samples["arm"] == "restart"].to_dict("records")
        gained = np.subtract(sample["log2p_memento"], sample["log2p_arm"])
        block = np.asarray(sample["block"])
        ghost_bits = (float(gained[block == number].mean()) for number in range(1, len(texts) + 1))
        return replace(row, ghost_bits=tuple(ghost_bits))
