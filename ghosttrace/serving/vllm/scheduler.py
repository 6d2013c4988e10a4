"""Erasure in vLLM's scheduler: `scheduler_cls="ghosttrace.serving.vllm.scheduler.make_scheduler"`.

vLLM's state of a request (token ids, number of computed tokens, positions) still counts tokens. Only the contents of
pages are counted in slots. Before each step, the scheduler compacts the requests that have reached an erasure: the
workers copy the slots after what is erased over it, and the scheduler returns the freed pages to the pool. The
scheduler passes the compactions to the workers in the step's `SchedulerOutput`. A chunk of tokens ends at the next
erasure. The prefix cache shares pages only up to the first token of a request that may be erased.

The method is described in arXiv 2604.09852, section 5, for Memento's blocks; a law of `ghosttrace.law` says what is
erased.
"""

import logging
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from ghosttrace.serving import metrics
from ghosttrace.serving.paging import Compaction, SlotTracker
from ghosttrace.serving.settings import ServingSettings
from ghosttrace.serving.vllm import private_api_check
from ghosttrace.serving.vllm.engine_checks import check_engine, check_pages
from ghosttrace.serving.vllm.erasure_metadata import ErasureMetadata
from ghosttrace.serving.vllm.kv_cache_manager import ErasingKVCacheManager
from ghosttrace.serving.vllm.processes import end_with_parent

logger = logging.getLogger("vllm.ghosttrace")


class ErasingSchedulerBase(Scheduler):
    """Base class of the erasing schedulers.

    Attributes:
        settings: erasure settings of the engine.
        slot_trackers: slot tracker of each request, by request id.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private_api_check.check_component("scheduler")
        end_with_parent()
        super().__init__(*args, **kwargs)
        self.settings = ServingSettings.from_vllm_config(self.vllm_config)
        check_engine(self.vllm_config, isinstance(self, AsyncScheduler), self.settings)
        check_pages(self.kv_cache_config)
        self.slot_trackers: dict[str, SlotTracker] = {}
        self._compactions: dict[str, list[Compaction]] = {}
        self._jumps: dict[str, tuple[int, int]] = {}
        manager: Any = self.kv_cache_manager
        manager.__class__ = ErasingKVCacheManager  # private_api.py explains why
        manager.slot_trackers = self.slot_trackers

    def add_request(self, request: Request) -> None:
        """Add a request with its own erasure settings.

        A request with a streamed prompt, which only Python can send, ends with an error: when the next part of the
        prompt arrives, vLLM removes the last sampled token, which may already have caused an erasure.
        """
        if request.resumable:
            logger.error(
                "%s: erasure does not support streamed prompts: send the whole prompt in one request",
                request.request_id,
            )
            self.encoder_cache_mismatch_reqs.add(request.request_id)  # vLLM ends these requests with an error
        if request.request_id not in self.slot_trackers:
            params = request.sampling_params
            settings = self.settings.with_overrides(params.extra_args if params else None)
            self.slot_trackers[request.request_id] = settings.make_slot_tracker()
        self._read_tokens(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Apply the erasures that are due, schedule, and attach the `ErasureMetadata` for the workers to the output."""
        for request in self.running:
            self._apply_erasures(request)
        metrics.ALIVE_TOKENS.set(
            sum(request.num_computed_tokens - self.slot_trackers[request.request_id].erased for request in self.running)
        )
        output = super().schedule(*args, **kwargs)
        scheduled = {name: self.slot_trackers[name] for name in output.num_scheduled_tokens}
        output.ghosttrace = ErasureMetadata(
            compactions=self._compactions,
            erased={name: slot_tracker.erased for name, slot_tracker in scheduled.items() if slot_tracker.erased},
            renumbered=frozenset(
                name for name, slot_tracker in scheduled.items() if slot_tracker.arm == "restart-renumbered"
            ),
            jumps=self._jumps,
        )
        self._compactions, self._jumps = {}, {}
        return output

    def _apply_erasures(self, request: Request) -> None:
        """Apply the erasures of a request that are due, record them for the workers, and free pages."""
        name, slot_tracker = request.request_id, self._read_tokens(request)
        if not slot_tracker.has_erasures:
            return
        erased_before = slot_tracker.erased
        next_index, compactions = slot_tracker.apply_erasures(request.num_computed_tokens)
        if next_index != request.num_computed_tokens:
            request.num_computed_tokens, self._jumps[name] = next_index, (next_index, request.num_tokens)
        if compactions:
            metrics.ERASED_TOKENS.inc(slot_tracker.erased - erased_before)
            self._compactions.setdefault(name, []).extend(compactions)
            metrics.FREED_PAGES.inc(self.kv_cache_manager.truncate(name, compactions[-1].slots_after))

    def _read_tokens(self, request: Request) -> SlotTracker:
        """Return the slot tracker of a request after it has read all tokens of the request.

        A request for which the law cannot hold, as when its prompt does not fit into a window, ends with an error.
        """
        slot_tracker = self.slot_trackers[request.request_id]
        slot_tracker.update(request._all_token_ids)
        if slot_tracker.error is not None and request.request_id not in self.encoder_cache_mismatch_reqs:
            logger.error("%s: %s", request.request_id, slot_tracker.error)
            self.encoder_cache_mismatch_reqs.add(request.request_id)  # vLLM ends these requests with an error
        return slot_tracker

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Return the number of tokens of a chunk: as in vLLM, and then shortened to end at the next erasure."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        slot_tracker = self._read_tokens(request)
        chunk_limit = slot_tracker.chunk_limit(num_computed_tokens)
        return tokens if chunk_limit is None else min(tokens, chunk_limit - num_computed_tokens)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.slot_trackers[request.request_id].clear()
        self._drop_pending_erasures(request)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        slot_tracker = self.slot_trackers.pop(request.request_id)
        metrics.count_finished(slot_tracker.num_blocks, request.num_computed_tokens, slot_tracker.erased)
        self._drop_pending_erasures(request)

    def _drop_pending_erasures(self, request: Request) -> None:
        """Remove compactions and jumps of a request whose cache no longer exists."""
        self._compactions.pop(request.request_id, None)
        self._jumps.pop(request.request_id, None)


class ErasingScheduler(ErasingSchedulerBase):
    """Scheduler that schedules a step after all its tokens are known; correct for every law."""


class ErasingAsyncScheduler(ErasingSchedulerBase, AsyncScheduler):
    """Scheduler that schedules a step before its tokens are known.

    Correct for laws under which keys expire only after the token that triggers the erasure has been computed.
    """


def make_scheduler(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> ErasingSchedulerBase:
    """Return the scheduler for vLLM's final configuration, in which vLLM may have disabled asynchronous scheduling."""
    async_scheduling = vllm_config.scheduler_config.async_scheduling
    return (ErasingAsyncScheduler if async_scheduling else ErasingScheduler)(vllm_config, *args, **kwargs)
