"""Block erasure in vLLM's V2 model runner, which stores the state of requests on the device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.serving.vllm.erasure_metadata import ErasureMetadata
from ghosttrace.serving.vllm.runner_pages import PageMoverMixin


class ErasingRunnerMixinV2(PageMoverMixin):
    """Mixin for vLLM's V2 `GPUModelRunner` or `CPUModelRunner`."""

    _erasure_metadata = ErasureMetadata()
    _erased: tuple[Tensor, Tensor] | None = None  # erased keys of each request in the batch: on the device, on the host
    _positions: Tensor | None = None  # positions of the batch before they were renumbered

    def update_requests(self: Any, scheduler_output: Any) -> None:
        """Apply the compactions and jumps of the step, then update the requests as vLLM does."""
        self._erasure_metadata = ErasureMetadata.from_scheduler_output(scheduler_output)
        if self._erasure_metadata.compactions:
            self._compact()
        states = self.req_states
        for name, (index, num_known) in self._erasure_metadata.jumps.items():
            row = states.req_id_to_index[name]
            states.num_computed_tokens.stage_write_elem(row, index)
            states.prefill_len.np[row] = num_known  # recomputed tokens count as prefill
        if self._erasure_metadata.jumps:
            states.num_computed_tokens.apply_write()
            states.prefill_len.copy_to_uva()
        super().update_requests(scheduler_output)  # type: ignore[misc]

    def _compact(self: Any) -> None:
        """Move the slots, and reduce the number of pages of the requests."""
        size, compactions = self.page_size(), self._erasure_metadata.compactions
        rows = {name: self.req_states.req_id_to_index[name] for name in compactions}
        pages = {name: self.block_tables.block_tables[0].gpu[row] for name, row in rows.items()}
        self._mover.compact(pages, compactions, size)
        for name, moves in compactions.items():
            self.block_tables.num_blocks.np[0, rows[name]] = -(-moves[-1].slots_after // size)

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        """Prepare attention with sequence lengths and a slot mapping that count slots instead of tokens."""
        self._erased = self._positions = None
        names = input_batch.req_ids
        if not any(name in self._erasure_metadata.erased for name in names):
            return super().prepare_attn(input_batch)  # type: ignore[misc]
        count, total = input_batch.num_reqs, input_batch.num_tokens
        on_host = torch.tensor([self._erasure_metadata.erased.get(name, 0) for name in names], dtype=torch.int32)
        on_device = on_host.to(self.device, non_blocking=True)
        self._erased = on_device, on_host
        input_batch.seq_lens[:count] -= on_device
        input_batch.seq_lens_cpu_upper_bound[:count] -= on_host
        lengths = torch.from_numpy(np.asarray(input_batch.num_scheduled_tokens)).to(self.device, non_blocking=True)
        positions, slots = input_batch.positions, input_batch.positions.clone()
        slots[:total] -= torch.repeat_interleave(on_device, lengths, output_size=total)
        input_batch.positions = slots
        prepared = super().prepare_attn(input_batch)  # type: ignore[misc]
        input_batch.positions = positions
        if self._erasure_metadata.renumbered:
            self._positions = positions[:total].clone()
            renumbered = torch.tensor([name in self._erasure_metadata.renumbered for name in names])
            renumbered = renumbered.to(self.device, non_blocking=True)
            renumbered = torch.repeat_interleave(renumbered, lengths, output_size=total)
            positions[:total] = torch.where(renumbered, slots[:total], positions[:total])
        return prepared

    def sample(self: Any, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        """Restore lengths and positions in tokens, which the sampler needs, then sample."""
        if self._erased is not None:
            on_device, on_host = self._erased
            input_batch.seq_lens[: input_batch.num_reqs] += on_device
            input_batch.seq_lens_cpu_upper_bound[: input_batch.num_reqs] += on_host
            self._erased = None
        if self._positions is not None:
            input_batch.positions[: len(self._positions)] = self._positions
            self._positions = None
        return super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]
