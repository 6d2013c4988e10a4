"""vLLM's logits processor for tokens that vLLM does not sample: `max_block_tokens`, a harness, and our own draws."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.serving.settings import ServingSettings, check_overrides


class RequestForcing:
    """Follows one request's tokens and decides whether its next token is forced.

    Args:
        settings: the law, with the request's overrides applied.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._tracker = ExpiryTracker(settings.markup, settings.policy)

    @property
    def num_tokens_fed(self) -> int:
        """The number of tokens followed so far."""
        return self._tracker.block_tracker.num_read

    def feed(self, tokens: Sequence[int]) -> None:
        """Follow the next tokens."""
        for token in tokens:
            self._tracker.push(token)

    def apply(self, logits: Tensor, prompt: int) -> Tensor:
        """Return logits that leave only the forced token, or the logits unchanged if none is forced.

        Args:
            logits: float[V].
            prompt: number of tokens of the prompt.
        """
        token = self._token()
        if token is None and self._settings.draws is not None:
            token = self._settings.draws(self.num_tokens_fed - prompt, logits)
        if token is None:
            return logits
        alone = torch.full_like(logits, -torch.inf)
        alone[token] = 0.0
        return alone

    def _token(self) -> int | None:
        trace, most = self._tracker.block_tracker, self._settings.max_block_tokens
        if most is not None and trace.in_block and trace.block_tokens >= most:
            return self._settings.markup.block_end
        forced: int | None = self._settings.harness(self._tracker) if self._settings.harness else None
        return forced


class ForcedTokens(AdapterLogitsProcessor, LogitsProcessor):
    """The logits processor; it also refuses wrong overrides when a request arrives.

    One class serves both model runners, because vLLM chooses the runner after it has been given the class. The V1
    runner makes it with a device and asks it row by row; the V2 runner makes it with its request states.
    """

    async_scheduling = recomputes = False

    def __init__(self, vllm_config: Any, *where: Any) -> None:
        self._settings = ServingSettings.from_vllm_config(vllm_config)
        if len(where) == 2:
            AdapterLogitsProcessor.__init__(self, vllm_config, *where)
        else:
            (self._states,) = where
            self._rows: dict[int, RequestForcing] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request whose overrides are wrong or cannot be met; vLLM calls this before it queues the request."""
        asked = (sampling_params.prompt_logprobs, getattr(sampling_params, "prompt_logprob_token_ids", None))
        check_overrides(
            sampling_params.extra_args, cls.async_scheduling, cls.recomputes, any(one is not None for one in asked)
        )

    def is_argmax_invariant(self) -> bool:
        """Return False: it changes which token greedy decoding takes."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., Tensor] | None:
        """V1: return the processor of a request that has something to force, else None."""
        settings = self._settings.with_overrides(params.extra_args)
        if not settings.forces_tokens:
            return None
        forcing = RequestForcing(settings)

        def apply(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
            known_outputs = forcing.num_tokens_fed - len(prompt_ids)
            forcing.feed([*prompt_ids[forcing.num_tokens_fed :], *output_ids[max(known_outputs, 0) :]])
            return forcing.apply(logits, len(prompt_ids))

        return apply

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters a row, which another request may have left."""
        self._rows.pop(req_idx, None)
        settings = self._settings.with_overrides(sampling_params.extra_args)
        if settings.forces_tokens:
            self._rows[req_idx] = RequestForcing(settings)
        return settings.forces_tokens

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Force tokens in a batch.

        Args:
            logits: float[rows, V].
            context: V2's layout of the batch; None in V1.
        """
        if context is None:
            return super().apply(logits)
        lengths = context.seq_lens_upper_bound_np.tolist()
        for index, (row, length) in enumerate(zip(context.idx_mapping_np.tolist(), lengths, strict=False)):
            forcing = self._rows.get(row)
            if forcing is not None:
                forcing.feed(self._states.all_token_ids.gpu[row, forcing.num_tokens_fed : length].tolist())
                prompt = int(self._states.prompt_len.np[row])
                if (
                    forcing.num_tokens_fed == length >= prompt
                ):  # otherwise its num_tokens_fed tokens are being computed: none is sampled
                    logits[index] = forcing.apply(logits[index], prompt)
        return logits


class ForcedTokensAsync(ForcedTokens):
    """For an engine that schedules ahead of its tokens."""

    async_scheduling = True


class ForcedTokensRecomputing(ForcedTokens):
    """For an engine whose own arm computes some tokens twice, or never."""

    recomputes = True
