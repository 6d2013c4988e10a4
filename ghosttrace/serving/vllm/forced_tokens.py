"""Tokens that a request does not choose: the end of a block that has grown too long, and what a harness puts in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.serving.settings import Settings, check_wishes


class Forced:
    """One request's: reads along, and says what comes next where that is not vLLM's choice.

    Args:
        settings: its law and its wishes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tracker = ExpiryTracker(settings.markup, settings.policy)

    @property
    def known(self) -> int:
        """Tokens read so far."""
        return self._tracker.trace.position

    def read(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that follow."""
        for token in tokens:
            self._tracker.push(token)

    def apply(self, logits: Tensor, prompt: int) -> Tensor:
        """Leave nothing but the next token, if it is known. logits: float[V]; prompt: tokens before the response."""
        token = self._token()
        if token is None and self._settings.draws is not None:
            token = self._settings.draws(self.known - prompt, logits)
        if token is None:
            return logits
        alone = torch.full_like(logits, -torch.inf)
        alone[token] = 0.0
        return alone

    def _token(self) -> int | None:
        trace, most = self._tracker.trace, self._settings.max_block_tokens
        if most is not None and trace.in_block and trace.block_tokens >= most:
            return self._settings.markup.block_end
        forced: int | None = self._settings.harness(self._tracker) if self._settings.harness else None
        return forced


class ForcedTokens(AdapterLogitsProcessor, LogitsProcessor):
    """vLLM's logits processor for `max_block_tokens` and `harness`; it refuses bad wishes where a request comes in.

    One class for both model runners, for which of them runs is decided later than what an engine is given: the
    V1 runner makes it with a device and asks row by row, the V2 runner makes it with its request states.
    """

    ahead = rereading = False

    def __init__(self, vllm_config: Any, *where: Any) -> None:
        self._settings = Settings.of(vllm_config)
        if len(where) == 2:
            AdapterLogitsProcessor.__init__(self, vllm_config, *where)
        else:
            (self._states,) = where
            self._slots: dict[int, Forced] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that asks for what cannot be had; vLLM asks before it is queued."""
        asked = (sampling_params.prompt_logprobs, getattr(sampling_params, "prompt_logprob_token_ids", None))
        check_wishes(sampling_params.extra_args, cls.ahead, cls.rereading, any(one is not None for one in asked))

    def is_argmax_invariant(self) -> bool:
        """It changes what greedy decoding takes."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., Tensor] | None:
        """V1: for a request that has something to force."""
        wished = self._settings.wished(params.extra_args)
        if not wished.forces:
            return None
        forced = Forced(wished)

        def apply(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
            behind = forced.known - len(prompt_ids)
            forced.read([*prompt_ids[forced.known :], *output_ids[max(behind, 0) :]])
            return forced.apply(logits, len(prompt_ids))

        return apply

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters a slot, perhaps after one that is gone."""
        self._slots.pop(req_idx, None)
        wished = self._settings.wished(sampling_params.extra_args)
        if wished.forces:
            self._slots[req_idx] = Forced(wished)
        return wished.forces

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Force tokens in a batch. logits: float[rows, V]."""
        if context is None:
            return super().apply(logits)
        lengths = context.seq_lens_upper_bound_np.tolist()
        for row, (slot, length) in enumerate(zip(context.idx_mapping_np.tolist(), lengths, strict=False)):
            forced = self._slots.get(slot)
            if forced is not None:
                forced.read(self._states.all_token_ids.gpu[slot, forced.known : length].tolist())
                prompt = int(self._states.prompt_len.np[slot])
                if forced.known == length >= prompt:  # else its tokens are still read, or again: nothing is chosen
                    logits[row] = forced.apply(logits[row], prompt)
        return logits


class ForcedTokensAhead(ForcedTokens):
    """The same in an engine that schedules ahead of its tokens."""

    ahead = True


class ForcedTokensRereading(ForcedTokens):
    """The same in an engine whose requests read some tokens twice, or never, unless they choose another arm."""

    rereading = True
