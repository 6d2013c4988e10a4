"""Block erasure in vLLM's V1 model runner: compaction before each step, and a slot mapping that counts slots."""

from typing import Any

import numpy as np
import torch

from ghosttrace.serving.paging import Compaction
from ghosttrace.serving.vllm.erasure_metadata import ErasureMetadata
from ghosttrace.serving.vllm.runner_pages import PageMoverMixin


class ErasingRunnerMixinV1(PageMoverMixin):
    """Mixin for vLLM's V1 `GPUModelRunner` or `CPUModelRunner`."""

    _erasure_metadata = ErasureMetadata()

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        """Apply the compactions of the step, then update the requests as vLLM does."""
        self._erasure_metadata = ErasureMetadata.from_scheduler_output(scheduler_output)
        if self._erasure_metadata.compactions:
            self._compact(self._erasure_metadata.compactions)
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _compact(self: Any, compactions: dict[str, list[Compaction]]) -> None:
        """Move the slots, and remove the freed pages from the requests and the block table."""
        size = self.page_size()
        pages = {name: self.requests[name].block_ids[0] for name in compactions}
        self._mover.compact(pages, compactions, size)
        for name, moves in compactions.items():
            del pages[name][-(-moves[-1].slots_after // size) :]
            row = self.input_batch.req_id_to_index.get(name)
            if row is not None:
                self.input_batch.block_table.add_row(self.requests[name].block_ids, row)

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        """Prepare a step, then convert sequence lengths and the slot mapping from tokens to slots."""
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        if not self._erasure_metadata.erased:
            return prepared
        count, total = self.input_batch.num_reqs, scheduler_output.total_num_scheduled_tokens
        names = self.input_batch.req_ids[:count]
        erased = torch.tensor([self._erasure_metadata.erased.get(name, 0) for name in names], dtype=torch.int32)
        self.optimistic_seq_lens_cpu[:count] -= erased
        on_device = erased.to(self.device, non_blocking=True)
        if self.seq_lens.data_ptr() != self.optimistic_seq_lens_cpu.data_ptr():
            self.seq_lens[:count] -= on_device
        rows = self.req_indices.gpu[:total].long()
        slots = self.positions[:total] - on_device[rows]
        self.input_batch.block_table.compute_slot_mapping(count, self.query_start_loc.gpu[: count + 1], slots)
        if self._erasure_metadata.renumbered:
            renumbered = torch.tensor([name in self._erasure_metadata.renumbered for name in names])
            renumbered = renumbered.to(self.device, non_blocking=True)
            self.positions[:total] = torch.where(renumbered[rows], slots, self.positions[:total])
        return prepared

    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample; on a CPU, without the generators of requests whose prompt is not yet complete.

        vLLM samples for such requests as well and then resets their generators, which CPU generators do not support.
        Without this method, the engine would fail at the first request with a seed whose prompt is split into chunks.
        """
        self._removed_generators = {}
        if self.device.type == "cpu":
            incomplete = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
            generators = self.input_batch.generators
            self._removed_generators = {row: generators.pop(row) for row in incomplete if row in generators}
        return super()._sample(*args, **kwargs)  # type: ignore[misc]

    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Update the state after a step, then restore the generators that `_sample` removed."""
        result = super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        self.input_batch.generators.update(self._removed_generators)
        return result
