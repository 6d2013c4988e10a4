"""vLLM's KV-cache manager, with slots as the unit instead of tokens."""

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request

from ghosttrace.serving.paging import SlotTracker


class SlotView:
    """View of a request for the KV-cache manager: lengths count slots, all other attributes are the request's."""

    def __init__(self, request: Request, erased: int, num_tokens: int) -> None:
        self._request = request
        self.num_computed_tokens = request.num_computed_tokens - erased
        self.num_tokens = num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class ErasingKVCacheManager(KVCacheManager):
    """KV-cache manager that allocates, shares and frees the pages of requests with erasures.

    Attributes:
        slot_trackers: slot tracker of each request, by request id; set by the scheduler.
    """

    slot_trackers: dict[str, SlotTracker]

    def get_computed_blocks(self, request: Request, *args: Any, **kwargs: Any) -> tuple[KVCacheBlocks, int, int]:
        """Return the cached pages of the request's prefix, which ends before the first token that may be erased."""
        blocks, tokens, boundary = super().get_computed_blocks(request, *args, **kwargs)
        max_tokens = self._updated_slot_tracker(request).shareable_length
        if max_tokens is not None and tokens > max_tokens:
            tokens = max_tokens - max_tokens % self.coordinator.single_type_managers[0].block_size
            blocks, boundary = self.truncate_computed_blocks(blocks, tokens), min(boundary, tokens)
        return blocks, tokens, boundary

    def allocate_slots(
        self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Allocate pages for the tokens of the next chunk; return None if too few pages are free."""
        slot_tracker = self._updated_slot_tracker(request)
        view = (
            SlotView(request, slot_tracker.erased, slot_tracker.peak_slots(request.num_tokens))
            if slot_tracker.has_erasures
            else request
        )
        kwargs["delay_cache_blocks"] = True  # vLLM would count the slots of the view; `cache_blocks` counts tokens
        pages = super().allocate_slots(view, num_new_tokens, num_new_computed_tokens, *args, **kwargs)
        if pages is not None:
            computed = request.num_computed_tokens + num_new_computed_tokens + num_new_tokens
            self.cache_blocks(request, min(computed, request.num_tokens))
        return pages

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Share a request's pages with others, up to the first token that may be erased: later slots may move."""
        max_tokens = self._updated_slot_tracker(request).shareable_length
        shared = num_computed_tokens if max_tokens is None else min(num_computed_tokens, max_tokens)
        super().cache_blocks(request, shared)

    def truncate(self, request_id: str, length: int) -> int:
        """Free a request's pages after its first `length` slots, and return the number of freed pages."""
        for manager in self.coordinator.single_type_managers:
            pages = manager.req_to_blocks[request_id]
            unused = pages[-(-length // manager.block_size) :]
            del pages[len(pages) - len(unused) :]
            self.block_pool.free_blocks(reversed(unused))
        return len(unused)

    def _updated_slot_tracker(self, request: Request) -> SlotTracker:
        """Return the slot tracker of a request after it has read all tokens of the request."""
        slot_tracker = self.slot_trackers[request.request_id]
        slot_tracker.update(request._all_token_ids)
        return slot_tracker
