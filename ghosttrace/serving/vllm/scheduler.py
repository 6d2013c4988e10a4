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
from ghosttrace.serving.paging import Compaction, Paging
from ghosttrace.serving.settings import Settings
from ghosttrace.serving.vllm import seam_check
from ghosttrace.serving.vllm.engine_checks import check_engine, check_pages
from ghosttrace.serving.vllm.kv_cache_manager import ErasingKVCacheManager
from ghosttrace.serving.vllm.step_orders import StepOrders

logger = logging.getLogger("vllm.ghosttrace")


class ErasingSchedulerBase(Scheduler):
    """What both erasing schedulers add to vLLM's own.

    Attributes:
        settings: the engine's law.
        pagings: by request id, the slots of every request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        seam_check.check("scheduler")
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)
        check_engine(self.vllm_config, isinstance(self, AsyncScheduler), self.settings)
        check_pages(self.kv_cache_config)
        self.pagings: dict[str, Paging] = {}
        self._compactions: dict[str, list[Compaction]] = {}
        self._jumps: dict[str, tuple[int, int]] = {}
        manager: Any = self.kv_cache_manager
        manager.__class__ = ErasingKVCacheManager  # seams.py says why
        manager.pagings = self.pagings

    def add_request(self, request: Request) -> None:
        """Add a request under the law that it asks for.

        A request whose prompt comes in pieces, which only Python can send, ends in an error: when the next piece
        comes, vLLM takes the last token back, and that token may have erased something.
        """
        if request.resumable:
            logger.error("%s: a prompt in pieces takes tokens back: send it whole", request.request_id)
            self.encoder_cache_mismatch_reqs.add(request.request_id)  # the set of requests that end in an error
        if request.request_id not in self.pagings:
            params = request.sampling_params
            settings = self.settings.with_overrides(params.extra_args if params else None)
            self.pagings[request.request_id] = settings.paging()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Carry out the erasures that are due, schedule, and attach the workers' orders to the output."""
        for request in self.running:
            self._settle(request)
        metrics.ALIVE.set(sum(one.num_computed_tokens - self.pagings[one.request_id].erased for one in self.running))
        output = super().schedule(*args, **kwargs)
        scheduled = {name: self.pagings[name] for name in output.num_scheduled_tokens}
        output.ghosttrace = StepOrders(
            compactions=self._compactions,
            erased={name: paging.erased for name, paging in scheduled.items() if paging.erased},
            renumbered=frozenset(name for name, paging in scheduled.items() if paging.arm == "restart-renumbered"),
            jumps=self._jumps,
        )
        self._compactions, self._jumps = {}, {}
        return output

    def _settle(self, request: Request) -> None:
        name, paging = request.request_id, self.pagings[request.request_id]
        paging.read(request._all_token_ids)
        if not paging.erases:
            return
        before = paging.erased
        position, compactions = paging.settle(request.num_computed_tokens)
        if position != request.num_computed_tokens:
            request.num_computed_tokens, self._jumps[name] = position, (position, request.num_tokens)
        if compactions:
            metrics.ERASED.inc(paging.erased - before)
            self._compactions.setdefault(name, []).extend(compactions)
            metrics.FREED.inc(self.kv_cache_manager.truncate(name, compactions[-1].length))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Shorten a chunk as vLLM does, and then to the next erasure."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        paging = self.pagings[request.request_id]
        paging.read(request._all_token_ids)
        limit = paging.limit(num_computed_tokens)
        return tokens if limit is None else min(tokens, limit - num_computed_tokens)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.pagings[request.request_id].clear()
        self._drop_orders(request)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        paging = self.pagings.pop(request.request_id)
        metrics.count_finished(len(paging.tracker.blocks), request.num_computed_tokens, paging.erased)
        self._drop_orders(request)

    def _drop_orders(self, request: Request) -> None:
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
