"""A logits processor that writes given responses: the same for stock vLLM and for vLLM with erasure."""

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

SCRIPT = "benchmark_script"


class ScriptedLogitsProcessor(LogitsProcessor):
    """Forces the tokens in each request's `benchmark_script`, one after the other, for the whole batch at once."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It changes what greedy decoding takes."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests come, move and go."""

        def added(params: Any, prompt: Any, written: list[int]) -> tuple[list[int], list[int]]:
            return params.extra_args[SCRIPT], written

        process_dict_updates(self._rows, batch_update, added)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave each row the next token of its script. logits: float[rows, V]."""
        scripts = (self._rows[row] for row in range(len(logits)))
        tokens = [script[min(len(written), len(script) - 1)] for script, written in scripts]
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen, 0.0)
