"""Block erasure in vLLM's scheduler: `scheduler_cls="ghosttrace.serving.vllm.scheduler.make_scheduler"`.

Everything that vLLM keeps about a request stays logical: token ids, computed tokens, positions. Only the contents of
pages are counted in slots. Before each step, requests that have reached an erasure are compacted: the workers copy the
slots after the block over it, as the step's `SchedulerOutput` orders, and the pages that become free go back to the
pool. Chunks end where something is erased. The prefix cache is shared up to a request's first block; pages from there
on belong to the request alone.

Source of the method: arXiv 2604.09852, section 5; the law itself is `ghosttrace.law.expiry`.
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

logger = logging.getLogger("vllm.ghosttrace")


class ErasingSchedulerBase(Scheduler):
    """What both erasing schedulers add to vLLM's own.

    Attributes:
        settings: the engine's law.
        slot_trackers: by request id, the slots of every request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        private_api_check.check_component("scheduler")
        super().__init__(*args, **kwargs)
        self.settings = ServingSettings.from_vllm_config(self.vllm_config)
        check_engine(self.vllm_config, isinstance(self, AsyncScheduler), self.settings)
        check_pages(self.kv_cache_config)
        self.slot_trackers: dict[str, SlotTracker] = {}
        self._compactions: dict[str, list[Compaction]] = {}
        self._jumps: dict[str, tuple[int, int]] = {}
        manager: Any = self.kv_cache_manager
        manager.__class__ = ErasingKVCacheManager  # private_api.py says why
        manager.slot_trackers = self.slot_trackers

    def add_request(self, request: Request) -> None:
        """Add a request under the law that it asks for.

        A request whose prompt comes in pieces, which only Python can send, ends in an error: when the next piece
        comes, vLLM takes the last token back, and that token may have erased something.
        """
        if request.resumable:
            logger.error("%s: a prompt in pieces takes tokens back: send it whole", request.request_id)
            self.encoder_cache_mismatch_reqs.add(request.request_id)  # the set of requests that end in an error
        if request.request_id not in self.slot_trackers:
            params = request.sampling_params
            settings = self.settings.with_overrides(params.extra_args if params else None)
            self.slot_trackers[request.request_id] = settings.make_slot_tracker()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Carry out the erasures that are due, schedule, and attach the workers' orders to the output."""
        for request in self.running:
            self._apply_erasures(request)
        metrics.ALIVE_TOKENS.set(
            sum(one.num_computed_tokens - self.slot_trackers[one.request_id].erased for one in self.running)
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
        name, slot_tracker = request.request_id, self.slot_trackers[request.request_id]
        slot_tracker.update(request._all_token_ids)
        if not slot_tracker.has_erasures:
            return
        before = slot_tracker.erased
        position, compactions = slot_tracker.apply_erasures(request.num_computed_tokens)
        if position != request.num_computed_tokens:
            request.num_computed_tokens, self._jumps[name] = position, (position, request.num_tokens)
        if compactions:
            metrics.ERASED_TOKENS.inc(slot_tracker.erased - before)
            self._compactions.setdefault(name, []).extend(compactions)
            metrics.FREED_PAGES.inc(self.kv_cache_manager.truncate(name, compactions[-1].slots_after))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Shorten a chunk as vLLM does, and then to the next erasure."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        slot_tracker = self.slot_trackers[request.request_id]
        slot_tracker.update(request._all_token_ids)
        chunk_limit = slot_tracker.chunk_limit(num_computed_tokens)
        return tokens if chunk_limit is None else min(tokens, chunk_limit - num_computed_tokens)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.slot_trackers[request.request_id].clear()
        self._drop_pending_erasures(request)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        slot_tracker = self.slot_trackers.pop(request.request_id)
        metrics.count_finished(len(slot_tracker.tracker.blocks), request.num_computed_tokens, slot_tracker.erased)
        self._drop_pending_erasures(request)

    def _drop_pending_erasures(self, request: Request) -> None:
        """Drop orders for a cache that no longer exists."""
        self._compactions.pop(request.request_id, None)
        self._jumps.pop(request.request_id, None)


class ErasingScheduler(ErasingSchedulerBase):
    """Schedules a step when all its tokens are known: exact under every policy."""


class ErasingAsyncScheduler(ErasingSchedulerBase, AsyncScheduler):
    """Schedules a step ahead of its tokens: exact where keys leave once `<|summary_end|>` has been computed."""


def make_scheduler(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> ErasingSchedulerBase:
    """Return the scheduler that fits vLLM's final configuration, which may have dropped asynchronous scheduling."""
    ahead = vllm_config.scheduler_config.async_scheduling
    return (ErasingAsyncScheduler if ahead else ErasingScheduler)(vllm_config, *args, **kwargs)
