"""Block erasure in vLLM's V1 model runner: compaction before a step, and slots where pages are meant."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.serving.paging import Compaction
from ghosttrace.serving.vllm.pages import Mover, slots
from ghosttrace.serving.vllm.steps import Step


class KnowsPages:
    """What both mixins add: a runner that knows what its pages look like inside, from the start."""

    _mover: Mover

    def initialize_kv_cache(self: Any, kv_cache_config: Any, is_profiling: bool = False, **options: Any) -> None:
        """Also: learn what its pages look like inside."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **options)  # type: ignore[misc]
        if not is_profiling:
            self._mover = make_mover(self)


class ErasingRunner(KnowsPages):
    """Mixed into `GPUModelRunner` or `CPUModelRunner`."""

    _step = Step()

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        self._step = getattr(scheduler_output, "ghosttrace", Step())
        if self._step.compactions:
            self._compact(self._step.compactions)
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _compact(self: Any, compactions: dict[str, list[Compaction]]) -> None:
        (group,) = self.kv_cache_config.kv_cache_groups
        size = group.kv_cache_spec.block_size
        pages = {name: self.requests[name].block_ids[0] for name in compactions}
        move(self._mover, pages, compactions, size)
        for name, moves in compactions.items():
            del pages[name][-(-moves[-1].length // size) :]
            row = self.input_batch.req_id_to_index.get(name)
            if row is not None:
                self.input_batch.block_table.add_row(self.requests[name].block_ids, row)

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        if not self._step.erased:
            return prepared
        count, total = self.input_batch.num_reqs, scheduler_output.total_num_scheduled_tokens
        names = self.input_batch.req_ids[:count]
        erased = torch.tensor([self._step.erased.get(name, 0) for name in names], dtype=torch.int32)
        self.optimistic_seq_lens_cpu[:count] -= erased
        here = erased.to(self.device, non_blocking=True)
        if self.seq_lens.data_ptr() != self.optimistic_seq_lens_cpu.data_ptr():
            self.seq_lens[:count] -= here
        rows = self.req_indices.gpu[:total].long()
        held = self.positions[:total] - here[rows]
        self.input_batch.block_table.compute_slot_mapping(count, self.query_start_loc.gpu[: count + 1], held)
        if self._step.renumbered:
            closed = torch.tensor([name in self._step.renumbered for name in names]).to(self.device, non_blocking=True)
            self.positions[:total] = torch.where(closed[rows], held, self.positions[:total])
        return prepared

    def _sample(self: Any, logits: Tensor | None, *args: Any) -> Any:
        """On a CPU, also: requests that are still reading draw nothing from their own generators.

        vLLM lets them draw, and then has the generators step back, which those of CPUs cannot: it would end the engine
        at the first request with a seed whose run of tokens is cut.
        """
        self._aside = {}
        if self.device.type == "cpu":
            reading = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
            own = self.input_batch.generators
            self._aside = {row: own.pop(row) for row in reading if row in own}
        return super()._sample(logits, *args)  # type: ignore[misc]

    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        self.input_batch.generators.update(self._aside)
        return kept


def make_mover(runner: Any) -> Mover:
    """Of the one group of layers that a runner's engine has; see `ghosttrace.serving.vllm.refusals.check_pages`.

    Raises:
        UserError: their attention cannot do without what is erased, or their pages cannot be compacted.
    """
    (group,) = runner.kv_cache_config.kv_cache_groups
    context = runner.compilation_config.static_forward_context
    layers = [context[name] for name in group.layer_names]
    if any(getattr(layer.impl, "alibi_slopes", None) is not None for layer in layers):
        raise UserError("this model weighs keys by how far back they lie (ALiBi), which erasure changes: use another")
    return Mover(layers)


def move(
    mover: Mover, pages: Mapping[str, list[int] | Tensor], compactions: dict[str, list[Compaction]], page_size: int
) -> None:
    """Carry out compactions of several requests, the first of each at once, then the second, and so on.

    Args:
        mover: of the layers.
        pages: by request, the pages that hold its slots.
        compactions: by request, in order.
        page_size: slots a page.
    """
    for turn in range(max(map(len, compactions.values()))):
        now = {name: moves[turn] for name, moves in compactions.items() if len(moves) > turn}
        now = {name: one for name, one in now.items() if one.first < one.stop and one.first != one.to}
        if now:
            source = [slots(pages[name], one.first, one.stop, page_size) for name, one in now.items()]
            target = [slots(pages[name], one.to, one.length, page_size) for name, one in now.items()]
            mover.move(torch.cat(source), torch.cat(target))
