"""TRL's SFT trainer with memento attention, and with a separate logged loss for each kind of token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_trainer import SFTTrainer

from ghosttrace.training.examples import IGNORE_INDEX, TokenKind

LOSS_NAMES = {kind: f"loss_{kind.name.lower()}" for kind in TokenKind}


class MementoTrainer(SFTTrainer):
    """SFT trainer for the batches of `ghosttrace.training.collate.Collator`, used inside `ghosttrace.attending(model)`.

    The loss is TRL's own: cross-entropy over all labels of a step. In addition, the trainer logs the mean loss of each
    `TokenKind`: blocks, mementos, delimiters, the answer, and the remaining text.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loss_sums: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, and record the losses of each kind of token in the same forward pass."""
        inputs = dict(inputs)
        kind = inputs.pop("kind")
        with self._recording_losses(model, kind, inputs["labels"]):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @contextmanager
    def _recording_losses(self, model: nn.Module, kind: Tensor, labels: Tensor) -> Iterator[None]:
        hook = model.register_forward_hook(lambda module, args, output: self._add_losses(module, output, kind, labels))
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def _add_losses(self, module: nn.Module, output: Any, kind: Tensor, labels: Tensor) -> None:
        """Add the loss sums and token counts of a batch, by kind, to those since the last log."""
        if getattr(output, "log_probs", None) is None:
            return
        with_loss = labels[:, 1:] != IGNORE_INDEX  # log_probs begin with the prediction of the second token
        sums = torch.zeros(2, len(TokenKind), device=kind.device)
        sums[0].index_add_(0, kind[:, 1:][with_loss], -output.log_probs.detach().float()[with_loss])
        sums[1] = torch.bincount(kind[:, 1:][with_loss], minlength=len(TokenKind)).float()
        mode = "train" if module.training else "eval"
        self._loss_sums[mode] = self._loss_sums.get(mode, 0) + sums

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as TRL does, with the mean loss per kind of token (block, memento, …) since the last log."""
        assert self.model is not None
        mode = "train" if self.model.training else "eval"
        # Sums exist in all processes or in none. A log call from a single process must not wait in `reduce`.
        if mode in self._loss_sums:
            sums, counts = self.accelerator.reduce(self._loss_sums.pop(mode), "sum").tolist()
            for kind, name in LOSS_NAMES.items():
                if counts[kind]:
                    self._metrics[mode][name] = [sums[kind] / counts[kind]]
        super().log(logs, *args, **kwargs)
