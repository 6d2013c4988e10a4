"""Block erasure in vLLM's V1 model runner: compaction before a step, and slots instead of positions for pages."""

from typing import Any

import numpy as np
import torch

from ghosttrace.serving.paging import Compaction
from ghosttrace.serving.vllm.erasure_metadata import ErasureMetadata
from ghosttrace.serving.vllm.runner_pages import PageMoverMixin


class ErasingRunnerMixinV1(PageMoverMixin):
    """Mixin for `GPUModelRunner` or `CPUModelRunner`."""

    _erasure_metadata = ErasureMetadata()

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        self._erasure_metadata = ErasureMetadata.from_scheduler_output(scheduler_output)
        if self._erasure_metadata.compactions:
            self._compact(self._erasure_metadata.compactions)
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _compact(self: Any, compactions: dict[str, list[Compaction]]) -> None:
        size = self.page_size()
        pages = {name: self.requests[name].block_ids[0] for name in compactions}
        self._mover.compact(pages, compactions, size)
        for name, moves in compactions.items():
            del pages[name][-(-moves[-1].slots_after // size) :]
            row = self.input_batch.req_id_to_index.get(name)
            if row is not None:
                self.input_batch.block_table.add_row(self.requests[name].block_ids, row)

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        """Prepare a step, then count sequence lengths and the slot mapping in slots."""
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
            closed = torch.tensor([name in self._erasure_metadata.renumbered for name in names])
            closed = closed.to(self.device, non_blocking=True)
            self.positions[:total] = torch.where(closed[rows], slots, self.positions[:total])
        return prepared

    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample; on a CPU, without the generators of requests whose prompt is not yet complete.

        vLLM lets such requests draw and then steps their generators back, which CPU generators cannot do: without this
        method, the first request with a seed whose chunk is cut would end the engine.
        """
        self._set_aside = {}
        if self.device.type == "cpu":
            incomplete = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
            generators = self.input_batch.generators
            self._set_aside = {row: generators.pop(row) for row in incomplete if row in generators}
        return super()._sample(*args, **kwargs)  # type: ignore[misc]

    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        self.input_batch.generators.update(self._set_aside)
        return kept
