"""A logits processor that forces given responses, for stock vLLM and for vLLM with erasure."""

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

SCRIPT = "benchmark_script"


class ScriptedLogitsProcessor(LogitsProcessor):
    """Logits processor that forces the tokens of each request's `benchmark_script` in order."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False, because the processor changes the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Track which request each row of the batch belongs to."""

        def added(params: Any, prompt: Any, written: list[int]) -> tuple[list[int], list[int]]:
            return params.extra_args[SCRIPT], written

        process_dict_updates(self._rows, batch_update, added)

    def apply(self, logits: Tensor) -> Tensor:
        """Set all logits to -inf except those of each row's next scripted token.

        Args:
            logits: float[rows, V].
        """
        scripts = (self._rows[row] for row in range(len(logits)))
        tokens = [script[min(len(written), len(script) - 1)] for script, written in scripts]
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen, 0.0)
