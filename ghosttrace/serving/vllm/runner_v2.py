"""Block erasure in vLLM's V2 model runner, which keeps its request state on the device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.serving.vllm.runner import KnowsPages, move
from ghosttrace.serving.vllm.steps import Step


class ErasingRunnerV2(KnowsPages):
    """Mixed into the V2 `GPUModelRunner` or `CPUModelRunner`."""

    _step = Step()
    _erased: tuple[Tensor, Tensor] | None = None  # of the batch under way: on the device, and on the host
    _logical: Tensor | None = None  # its places, where positions have been closed up

    def update_requests(self: Any, scheduler_output: Any) -> None:
        """Also: compact, and go to where the scheduler has put a request."""
        self._step = getattr(scheduler_output, "ghosttrace", Step())
        if self._step.compactions:
            self._compact()
        states = self.req_states
        for name, (place, known) in self._step.places.items():
            row = states.req_id_to_index[name]
            states.num_computed_tokens.stage_write_elem(row, place)
            states.prefill_len.np[row] = known  # what is read again is read as a prompt is
        if self._step.places:
            states.num_computed_tokens.apply_write()
            states.prefill_len.copy_to_uva()
        super().update_requests(scheduler_output)  # type: ignore[misc]

    def _compact(self: Any) -> None:
        (group,) = self.kv_cache_config.kv_cache_groups
        size = group.kv_cache_spec.block_size
        rows = {name: self.req_states.req_id_to_index[name] for name in self._step.compactions}
        pages = {name: self.block_tables.block_tables[0].gpu[row] for name, row in rows.items()}
        move(self._mover, pages, self._step.compactions, size)
        for name, moves in self._step.compactions.items():
            self.block_tables.num_blocks.np[0, rows[name]] = -(-moves[-1].length // size)

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        """In slots: lengths, and the places that the slot mapping is made from."""
        self._erased = self._logical = None
        names = input_batch.req_ids
        if not any(name in self._step.erased for name in names):
            return super().prepare_attn(input_batch)  # type: ignore[misc]
        count, total = input_batch.num_reqs, input_batch.num_tokens
        host = torch.tensor([self._step.erased.get(name, 0) for name in names], dtype=torch.int32)
        here = host.to(self.device, non_blocking=True)
        self._erased = here, host
        input_batch.seq_lens[:count] -= here
        input_batch.seq_lens_cpu_upper_bound[:count] -= host
        lengths = torch.from_numpy(np.asarray(input_batch.num_scheduled_tokens)).to(self.device, non_blocking=True)
        places, held = input_batch.positions, input_batch.positions.clone()
        held[:total] -= torch.repeat_interleave(here, lengths, output_size=total)
        input_batch.positions = held
        prepared = super().prepare_attn(input_batch)  # type: ignore[misc]
        input_batch.positions = places
        if self._step.renumbered:
            self._logical = places[:total].clone()
            closed = torch.tensor([name in self._step.renumbered for name in names])
            closed = torch.repeat_interleave(closed.to(self.device, non_blocking=True), lengths, output_size=total)
            places[:total] = torch.where(closed, held[:total], places[:total])
        return prepared

    def sample(self: Any, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        """The sampler counts in places again."""
        if self._erased is not None:
            here, host = self._erased
            input_batch.seq_lens[: input_batch.num_reqs] += here
            input_batch.seq_lens_cpu_upper_bound[: input_batch.num_reqs] += host
            self._erased = None
        if self._logical is not None:
            input_batch.positions[: len(self._logical)] = self._logical
            self._logical = None
        return super().sample(hidden_states, input_batch, grammar_output)  # type: ignore[misc]
