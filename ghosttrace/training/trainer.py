"""TRL's SFT trainer on the law: the model attends by `expiry`, and losses are kept apart by kind of token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_trainer import SFTTrainer

from ghosttrace.training.examples import IGNORE_INDEX, TokenKind

LOSS_NAMES = {kind: f"loss_{kind.name.lower()}" for kind in TokenKind}


class MementoTrainer(SFTTrainer):
    """Trains on the batches of `ghosttrace.training.collate.Collator`, inside `ghosttrace.attending(model)`.

    The loss is TRL's own: cross-entropy over all labels of a step. Logged beside it: the mean over the tokens
    of blocks, mementos, delimiters, the answer, and the text around them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loss_sums: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; the losses of each kind are noted on the way."""
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
        """Add a batch's sums and counts by kind to those since the last log."""
        if getattr(output, "log_probs", None) is None:
            return
        told = labels[:, 1:] != IGNORE_INDEX  # log_probs are of the second token on
        sums = torch.zeros(2, len(TokenKind), device=kind.device)
        sums[0].index_add_(0, kind[:, 1:][told], -output.log_probs.detach().float()[told])
        sums[1] = torch.bincount(kind[:, 1:][told], minlength=len(TokenKind)).float()
        mode = "train" if module.training else "eval"
        self._loss_sums[mode] = self._loss_sums.get(mode, 0) + sums

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's log with the mean of every kind over all tokens of all steps and processes since the last."""
        assert self.model is not None
        mode = "train" if self.model.training else "eval"
        if mode in self._loss_sums:  # in every process or in none; what one process logs alone must not wait for others
            total = self.accelerator.reduce(self._loss_sums.pop(mode), "sum").tolist()
            for each, name in LOSS_NAMES.items():
                if total[1][each]:
                    self._metrics[mode][name] = [total[0][each] / total[1][each]]
        super().log(logs, *args, **kwargs)
