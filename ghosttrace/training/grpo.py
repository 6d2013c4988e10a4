"""TRL's GRPO trainer under a law of eviction: the trained log-probabilities see the cache that the rollouts saw.

TRL calls the policy and the reference model in one private method, which this module overrides. `check_trl` says at the
start if an installed TRL no longer has it.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from ghosttrace.errors import UserError
from ghosttrace.law.law import Law
from ghosttrace.law.layout import Layout, open_layout, sealed_layout
from ghosttrace.law.masks import Kernel
from ghosttrace.model.attention import attending
from ghosttrace.model.states import model_inputs
from ghosttrace.training.examples import IGNORE_INDEX
from ghosttrace.training.sft import base_model

SCORING = "_get_per_token_logps_and_entropies"
SCORING_ARGUMENTS = ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy")


def check_trl(trainer_class: type) -> None:
    """Check that TRL still scores tokens where this module takes part.

    Raises:
        UserError: The method is missing or takes other arguments.
    """
    method = getattr(trainer_class, SCORING, None)
    if method is None or tuple(inspect.signature(method).parameters)[: len(SCORING_ARGUMENTS)] != SCORING_ARGUMENTS:
        raise UserError(f"the installed trl scores tokens in another way than {SCORING}: install the tested version")


class ErasingGRPOTrainer(GRPOTrainer):
    """GRPO trainer in which policy and reference model attend by a law; train inside `under_law`.

    Besides TRL's metrics it logs `rollout_kl`, the mean of log p(rollout) - log p(training) in nats per token, and
    `rollout_gap`, their largest difference. Both are 0 but for rounding while the policy is the one that wrote the
    rollouts.

    Args:
        law: Which tokens leave the cache and when.
        sealed: Whether the rollouts recomputed the retained tokens after every erasure, as the arm `restart` does.
    """

    def __init__(self, *args: Any, law: Law, sealed: bool = False, **kwargs: Any) -> None:
        check_trl(GRPOTrainer)
        self.law, self.sealed = law, sealed
        self._scored: Tensor | None = None
        super().__init__(*args, **kwargs)

    @contextmanager
    def under_law(self, kernel: Kernel = "segments") -> Iterator[None]:
        """Let the policy and the reference model attend by the law.

        A reference model that is left out would see all tokens, and its divergence from an unchanged policy would not
        be 0.
        """
        with ExitStack() as stack:
            for model in (self.model, self.ref_model):
                if model is not None:
                    stack.enter_context(attending(base_model(self.accelerator.unwrap_model(model)), kernel))
            yield

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probabilities, entropies and the auxiliary loss of the completions, as TRL's method does.

        Args:
            model: Policy or reference model, maybe wrapped.
            input_ids: int64[B, P + C], prompts padded on the left and completions padded on the right.
            attention_mask: int64[B, P + C].
            logits_to_keep: C.
            batch_size: Number of rows in one forward pass; None for all.
            compute_entropy: Whether to return the entropies.
            compute_aux_loss: Whether to return the auxiliary loss of a mixture of experts.
            images: Must all be None.

        Returns:
            float[B, C], float[B, C] or None, and a scalar or None.
        """
        if any(value is not None for value in images.values()):
            raise UserError("reinforcement learning under a law takes text alone: leave out images")
        size, parts = batch_size or len(input_ids), []
        for begin in range(0, len(input_ids), size):
            rows = slice(begin, begin + size)
            options = {"output_router_logits": True} if compute_aux_loss else {}
            parts.append(self._score(model, input_ids[rows], attention_mask[rows], logits_to_keep, options))
        log_probs = torch.cat([part[0] for part in parts])
        entropies = torch.cat([part[1] for part in parts]) if compute_entropy else None
        aux_loss = torch.stack([part[2].aux_loss for part in parts]).mean() if compute_aux_loss else None
        if torch.is_grad_enabled():
            self._scored = log_probs.detach()
        return log_probs, entropies, aux_loss

    def _score(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, width: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Any]:
        """Run one forward pass over the layouts of some rows; return log-probabilities, entropies and the output."""
        kept = attention_mask.bool()
        prompts = kept[:, :-width].sum(1).tolist()
        make = sealed_layout if self.sealed else open_layout
        layouts = [make(ids[mask].tolist(), self.law) for ids, mask in zip(input_ids, kept, strict=True)]
        columns = [_first_columns(layout)[begin:] for layout, begin in zip(layouts, prompts, strict=True)]
        inputs = model_inputs(layouts, base_model(self.accelerator.unwrap_model(model)))
        labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
        for row, numbers in enumerate(columns):
            labels[row, numbers] = inputs["input_ids"][row, numbers]
        with self.accelerator.autocast():
            output = model(**inputs, labels=labels, fused_lm_head=True, **options)
        log_probs, entropies = (_select(table, columns, width) for table in (output.log_probs, _entropy(output)))
        return log_probs, entropies, output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return TRL's loss, and log how far the rollouts' log-probabilities are from those of training."""
        loss = super()._compute_loss(model, inputs)
        sampled = inputs.get("sampling_per_token_logps")
        if sampled is not None and self._scored is not None:
            mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            difference = ((sampled - self._scored) * mask).detach()
            mode = "train" if model.training else "eval"
            mean = self.accelerator.gather(difference.sum() / mask.sum().clamp(min=1)).mean()
            largest = self.accelerator.gather(difference.abs().max()).max()
            self._metrics[mode]["rollout_kl"].append(mean.item())
            self._metrics[mode]["rollout_gap"].append(largest.item())
        return loss


def _first_columns(layout: Layout) -> np.ndarray:
    """Return the column of each token of a sequence in which it is predicted: the first one that holds it, int64[T]."""
    return np.unique(layout.token_index, return_index=True)[1]


def _entropy(output: Any) -> Tensor:
    """Return the entropies; the reference model's head records none, and nobody reads them there."""
    entropy = getattr(output, "entropy", None)
    return output.log_probs if entropy is None else entropy


def _select(table: Tensor, columns: list[np.ndarray], width: int) -> Tensor:
    """Return the entries of a table of predictions, float[B, W - 1], for the given columns, padded to float[B, width].

    The entry before a column predicts it.
    """
    rows = [table[row, torch.from_numpy(numbers - 1).to(table.device)] for row, numbers in enumerate(columns)]
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
