"""Tokens that a request does not choose: the end of a block that has grown too long, and what a harness puts in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ghosttrace.expiry import ExpiryTracker
from ghosttrace.serve.settings import Settings, check_wishes


class ForcedTokens(AdapterLogitsProcessor):
    """vLLM's logits processor for `max_block_tokens` and `harness`; it refuses bad wishes where a request comes in."""

    ahead = False

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._settings = Settings.of(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that asks for what cannot be had; vLLM asks before it is queued."""
        check_wishes(sampling_params.extra_args, cls.ahead)

    def is_argmax_invariant(self) -> bool:
        """It changes what greedy decoding takes."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., Tensor] | None:
        """For requests that have something to force."""
        wished = self._settings.wished(params.extra_args)
        return Forced(wished) if wished.forces else None


class ForcedTokensAhead(ForcedTokens):
    """The same in an engine that schedules ahead of its tokens."""

    ahead = True


class Forced:
    """One request's: reads along, and says what comes next where that is not the model's choice.

    Args:
        settings: its law and its wishes.
        tokens: known so far.
    """

    def __init__(self, settings: Settings, tokens: Sequence[int] = ()) -> None:
        self._settings = settings
        self._tracker = ExpiryTracker(settings.markup, settings.policy)
        self.read(tokens)

    def read(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that follow."""
        for token in tokens:
            self._tracker.push(token)

    def token(self) -> int | None:
        """The next one, if it is forced."""
        trace, most = self._tracker.trace, self._settings.max_block_tokens
        if most is not None and trace.in_block and trace.block_tokens >= most:
            return self._settings.markup.block_end
        forced: int | None = self._settings.harness(self._tracker) if self._settings.harness else None
        return forced

    def __call__(self, prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
        """As vLLM asks a request's logits processor: with all tokens so far."""
        behind = self._tracker.trace.position - len(prompt_ids)
        self.read([*prompt_ids, *output_ids] if behind < 0 else output_ids[behind:])
        forced = self.token()
        if forced is None:
            return logits
        alone = torch.full_like(logits, -torch.inf)
        alone[forced] = 0.0
        return alone
