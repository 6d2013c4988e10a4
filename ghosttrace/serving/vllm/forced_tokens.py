"""vLLM logits processor that forces tokens: for `max_block_tokens`, a harness, or GhostTrace's own sampling."""

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
    """Forced tokens of one request; reads the request's tokens to determine whether the next token is forced.

    Args:
        settings: erasure settings with the overrides of the request.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._tracker = ExpiryTracker(settings.markup, settings.policy)

    @property
    def num_tokens_fed(self) -> int:
        """Return the number of tokens of the request that have been read."""
        return self._tracker.block_tracker.num_read

    def feed(self, tokens: Sequence[int]) -> None:
        """Read the next tokens of the request."""
        for token in tokens:
            self._tracker.push(token)

    def apply(self, logits: Tensor, prompt_length: int) -> Tensor:
        """Return logits with only the forced token possible, or the same logits if no token is forced.

        Args:
            logits: float[V], logits of the next token.
            prompt_length: number of tokens of the prompt.
        """
        token = self._forced_token()
        if token is None and self._settings.draws is not None:
            token = self._settings.draws(self.num_tokens_fed - prompt_length, logits)
        if token is None:
            return logits
        forced = torch.full_like(logits, -torch.inf)
        forced[token] = 0.0
        return forced

    def _forced_token(self) -> int | None:
        """Return `<|block_end|>` if the block is at its maximum length, else the token that the harness forces."""
        blocks, max_block_tokens = self._tracker.block_tracker, self._settings.max_block_tokens
        if max_block_tokens is not None and blocks.in_block and blocks.block_tokens >= max_block_tokens:
            return self._settings.markup.block_end
        forced: int | None = self._settings.harness(self._tracker) if self._settings.harness else None
        return forced


class ForcedTokens(AdapterLogitsProcessor, LogitsProcessor):
    """Logits processor that forces tokens, and validates the overrides of new requests.

    One class supports both model runners, because vLLM selects the runner after it receives the class. The V1 runner
    creates it with a device and calls it for each request. The V2 runner creates it with its request states and calls
    it for each batch.
    """

    async_scheduling = recomputes = other_law = False

    def __init__(self, vllm_config: Any, *runner_args: Any) -> None:
        self._settings = ServingSettings.from_vllm_config(vllm_config)
        if len(runner_args) == 2:  # V1
            AdapterLogitsProcessor.__init__(self, vllm_config, *runner_args)
        else:
            (self._states,) = runner_args
            self._rows: dict[int, RequestForcing] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise an error if the overrides of a request are invalid; vLLM calls this before it queues the request."""
        options = (sampling_params.prompt_logprobs, getattr(sampling_params, "prompt_logprob_token_ids", None))
        prompt_logprobs = any(option is not None for option in options)
        extra_args = sampling_params.extra_args
        check_overrides(extra_args, cls.async_scheduling, cls.recomputes, prompt_logprobs, cls.other_law)

    def is_argmax_invariant(self) -> bool:
        """Return False, because forced tokens change the result of greedy decoding."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., Tensor] | None:
        """V1: return the logits processor of a request, or None if its settings force no tokens."""
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
        """V2: register a new request in a row, and return whether its settings force tokens."""
        self._rows.pop(req_idx, None)
        settings = self._settings.with_overrides(sampling_params.extra_args)
        if settings.forces_tokens:
            self._rows[req_idx] = RequestForcing(settings)
        return settings.forces_tokens

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Return the logits of a batch with forced tokens; V2 changes them in place.

        Args:
            logits: float[B, V].
            context: V2's `LogitsContext` of the batch; None in V1.
        """
        if context is None:
            return super().apply(logits)
        lengths = context.seq_lens_upper_bound_np.tolist()
        for index, (row, length) in enumerate(zip(context.idx_mapping_np.tolist(), lengths, strict=False)):
            forcing = self._rows.get(row)
            if forcing is not None:
                forcing.feed(self._states.all_token_ids.gpu[row, forcing.num_tokens_fed : length].tolist())
                prompt_length = int(self._states.prompt_len.np[row])
                # Otherwise the step computes tokens that are already known, and its sampled token is discarded.
                if forcing.num_tokens_fed == length >= prompt_length:
                    logits[index] = forcing.apply(logits[index], prompt_length)
        return logits


class ForcedTokensAsync(ForcedTokens):
    """Logits processor for an engine with asynchronous scheduling."""

    async_scheduling = True


class ForcedTokensRecomputing(ForcedTokens):
    """Logits processor for an engine whose arm computes some tokens twice or never."""

    recomputes = True


class ForcedTokensOtherLaw(ForcedTokens):
    """Logits processor for an engine with another law than Memento's."""

    other_law = True


class ForcedTokensAsyncOtherLaw(ForcedTokensAsync):
    """Logits processor for an engine with asynchronous scheduling and another law than Memento's."""

    other_law = True


class ForcedTokensRecomputingOtherLaw(ForcedTokensRecomputing):
    """Logits processor for an engine with a recomputing arm and another law than Memento's."""

    other_law = True
