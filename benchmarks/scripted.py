"""A logits processor that writes a given response: the same for stock vLLM and for vLLM with erasure."""

from collections.abc import Callable

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class Scripted(AdapterLogitsProcessor):
    """Forces the tokens in a request's `benchmark_script`, one after the other."""

    def is_argmax_invariant(self) -> bool:
        """It changes what greedy decoding takes."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., Tensor] | None:
        """For every request."""
        script = (params.extra_args or {})["benchmark_script"]

        def apply(output_ids: list[int], logits: Tensor) -> Tensor:
            alone = torch.full_like(logits, -torch.inf)
            alone[script[min(len(output_ids), len(script) - 1)]] = 0.0
            return alone

        return apply
