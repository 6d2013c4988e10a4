"""vLLM's page manager, counting slots where vLLM counts tokens."""

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request

from ghosttrace.serving.paging import SlotTracker


class SlotView:
    """A request as the page manager must see it: its lengths in slots, everything else unchanged."""

    def __init__(self, request: Request, erased: int, num_tokens: int) -> None:
        self._request = request
        self.num_computed_tokens = request.num_computed_tokens - erased
        self.num_tokens = num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class ErasingKVCacheManager(KVCacheManager):
    """Allocates, shares and frees pages of requests that erase.

    Attributes:
        slot_trackers: by request id, the slots of every request.
    """

    slot_trackers: dict[str, SlotTracker]

    def get_computed_blocks(self, request: Request, *args: Any, **kwargs: Any) -> tuple[KVCacheBlocks, int, int]:
        """Return cached pages that hold the request's first tokens, none from its first block on."""
        blocks, tokens, boundary = super().get_computed_blocks(request, *args, **kwargs)
        frontier = self._updated_slot_tracker(request).shareable_length
        if frontier is not None and tokens > frontier:
            tokens = frontier - frontier % self.coordinator.single_type_managers[0].block_size
            blocks, boundary = self.truncate_computed_blocks(blocks, tokens), min(boundary, tokens)
        return blocks, tokens, boundary

    def allocate_slots(
        self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Return pages for the tokens of the next chunk; None if too few pages are free."""
        slot_tracker = self._updated_slot_tracker(request)
        shown = (
            SlotView(request, slot_tracker.erased, slot_tracker.peak_slots(request.num_tokens))
            if slot_tracker.has_erasures
            else request
        )
        kwargs["delay_cache_blocks"] = True
        found = super().allocate_slots(shown, num_new_tokens, num_new_computed_tokens, *args, **kwargs)
        if found is not None:
            computed = request.num_computed_tokens + num_new_computed_tokens + num_new_tokens
            self.cache_blocks(request, min(computed, request.num_tokens))
        return found

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Offer a request's pages to other requests, as far as slots equal positions for good."""
        frontier = self._updated_slot_tracker(request).shareable_length
        super().cache_blocks(request, num_computed_tokens if frontier is None else min(num_computed_tokens, frontier))

    def truncate(self, request_id: str, length: int) -> int:
        """Free a request's pages after its first `length` slots; return how many."""
        for manager in self.coordinator.single_type_managers:
            pages = manager.req_to_blocks[request_id]
            unused = pages[-(-length // manager.block_size) :]
            del pages[len(pages) - len(unused) :]
            self.block_pool.free_blocks(reversed(unused))
        return len(unused)

    def _updated_slot_tracker(self, request: Request) -> SlotTracker:
        slot_tracker = self.slot_trackers[request.request_id]
        slot_tracker.update(request._all_token_ids)
        return slot_tracker
