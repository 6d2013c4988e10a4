"""Block erasure in vLLM's scheduler: `scheduler_cls="ghosttrace.serving.vllm.scheduler.make_scheduler"`.

All that vLLM keeps of a request stays logical: token ids, computed tokens, positions. Only what pages hold is
counted in slots. Before each step, requests that have reached an erasure are compacted: their tail is copied up
by the workers, ordered by the step's `SchedulerOutput`, and the pages behind it go back to the pool. Runs of
tokens are cut where something is erased. The prefix cache is shared up to a request's first block, whose pages
are the request's own from there on.

Source of the method: arXiv 2604.09852, section 5; the law itself is `ghosttrace.law.expiry`.
"""

import logging
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from ghosttrace.serving import metrics
from ghosttrace.serving.paging import Compaction, Paging
from ghosttrace.serving.settings import Settings
from ghosttrace.serving.vllm.refusals import check_engine, check_pages
from ghosttrace.serving.vllm.steps import Step

logger = logging.getLogger("vllm.ghosttrace")


class InSlots:
    """A request as the page manager must see it: counted in slots."""

    def __init__(self, request: Request, erased: int, num_tokens: int) -> None:
        self._request = request
        self.num_computed_tokens = request.num_computed_tokens - erased
        self.num_tokens = num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class ErasingKVCacheManager(KVCacheManager):
    """vLLM's page manager, told slots where it counts tokens."""

    pagings: dict[str, Paging]

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """Pages of other requests that hold this one's first tokens: none from its first block on."""
        blocks, tokens, boundary = super().get_computed_blocks(request)
        frontier = self._read(request).shared
        if frontier is not None and tokens > frontier:
            tokens = frontier - frontier % self.coordinator.single_type_managers[0].block_size
            blocks, boundary = self.truncate_computed_blocks(blocks, tokens), min(boundary, tokens)
        return blocks, tokens, boundary

    def allocate_slots(
        self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Pages for tokens about to be read; none if there are too few."""
        paging = self._read(request)
        told = InSlots(request, paging.erased, paging.most(request.num_tokens)) if paging.erases else request
        kwargs["delay_cache_blocks"] = True
        found = super().allocate_slots(told, num_new_tokens, num_new_computed_tokens, *args, **kwargs)
        if found is not None:
            read = request.num_computed_tokens + num_new_computed_tokens + num_new_tokens
            self.cache_blocks(request, min(read, request.num_tokens))
        return found

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Offer a request's pages to others, as far as they hold places for good."""
        frontier = self._read(request).shared
        super().cache_blocks(request, num_computed_tokens if frontier is None else min(num_computed_tokens, frontier))

    def cut(self, request_id: str, length: int) -> int:
        """Give back the pages behind the first `length` slots; return how many."""
        for manager in self.coordinator.single_type_managers:
            pages = manager.req_to_blocks[request_id]
            behind = pages[-(-length // manager.block_size) :]
            del pages[len(pages) - len(behind) :]
            self.block_pool.free_blocks(reversed(behind))
        return len(behind)

    def _read(self, request: Request) -> Paging:
        paging = self.pagings[request.request_id]
        paging.read(request._all_token_ids)
        return paging


class Erasing(Scheduler):
    """What both schedulers add to vLLM's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)
        check_engine(self.vllm_config, isinstance(self, AsyncScheduler), self.settings)
        check_pages(self.kv_cache_config)
        self.pagings: dict[str, Paging] = {}
        self._compactions: dict[str, list[Compaction]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        manager: Any = self.kv_cache_manager
        manager.__class__ = ErasingKVCacheManager  # this one object: vLLM has no option for its class
        manager.pagings = self.pagings

    def add_request(self, request: Request) -> None:
        """Take a request in, with the law that it asks for.

        One whose prompt comes in pieces, which Python alone can ask for, ends in an error: vLLM takes the last token
        back when more comes, and it may have erased.
        """
        if request.resumable:
            logger.error("%s: a prompt in pieces takes tokens back: send it whole", request.request_id)
            self.grammar_compile_error_reqs.add(request.request_id)
        if request.request_id not in self.pagings:
            params = request.sampling_params
            self.pagings[request.request_id] = self.settings.wished(params.extra_args if params else None).paging()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Compact what is due, then schedule; the output tells the workers what moves."""
        for request in self.running:
            self._settle(request)
        metrics.ALIVE.set(sum(one.num_computed_tokens - self.pagings[one.request_id].erased for one in self.running))
        output = super().schedule(*args, **kwargs)
        scheduled = {name: self.pagings[name] for name in output.num_scheduled_tokens}
        output.ghosttrace = Step(
            compactions=self._compactions,
            erased={name: paging.erased for name, paging in scheduled.items() if paging.erased},
            renumbered=frozenset(name for name, paging in scheduled.items() if paging.arm == "restart-renumbered"),
            places=self._places,
        )
        self._compactions, self._places = {}, {}
        return output

    def _settle(self, request: Request) -> None:
        name, paging = request.request_id, self.pagings[request.request_id]
        paging.read(request._all_token_ids)
        if not paging.erases:
            return
        before = paging.erased
        place, compactions = paging.settle(request.num_computed_tokens)
        if place != request.num_computed_tokens:
            request.num_computed_tokens, self._places[name] = place, (place, request.num_tokens)
        if compactions:
            metrics.ERASED.inc(paging.erased - before)
            self._compactions.setdefault(name, []).extend(compactions)
            metrics.FREED.inc(self.kv_cache_manager.cut(name, compactions[-1].length))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Cut a run of tokens as vLLM does, and then where something is erased."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        paging = self.pagings[request.request_id]
        paging.read(request._all_token_ids)
        limit = paging.limit(num_computed_tokens)
        return tokens if limit is None else min(tokens, limit - num_computed_tokens)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.pagings[request.request_id].clear()
        self._forget(request)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        paging = self.pagings.pop(request.request_id)
        metrics.finished(len(paging.tracker.blocks), request.num_computed_tokens, paging.erased)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        """Orders for a cache that is gone."""
        self._compactions.pop(request.request_id, None)
        self._places.pop(request.request_id, None)


class ErasingScheduler(Erasing):
    """Schedules when all tokens are known: exact under every policy."""


class ErasingAsyncScheduler(Erasing, AsyncScheduler):
    """Schedules a step ahead: exact where keys leave once `<|summary_end|>` is read."""


def make_scheduler(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Erasing:
    """The one that fits what vLLM has decided: it gives up asynchronous scheduling where a model cannot have it."""
    ahead = vllm_config.scheduler_config.async_scheduling
    return (ErasingAsyncScheduler if ahead else ErasingScheduler)(vllm_config, *args, **kwargs)
