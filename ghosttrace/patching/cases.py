"""What is patched: a trace's block and memento, a donor's block, and the sites of the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.bench import Bench
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import expiry
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.sampling import random_stream

ALL = -1  # of the places of a carrier, or of the layers
DONOR_STREAM = 1_000_033  # keeps the donors' draws apart from others


@dataclass(frozen=True)
class PatchCase:
    """One trace with the block whose memento is patched.

    Attributes:
        trace: the trace.
        blocks: its finished pairs.
        block_index: which of them.
        end_index: the first place that is not read any more: behind the next memento, or the trace's end.
        donor: a counterfactual block in token ids, as long as the block; None where there is none.
        donor_continuation: what follows the memento if the donor's answer stands in place of the trace's own; None
            where it is not known, or where later blocks come in between.
    """

    trace: TokenTrace
    blocks: tuple[Block, ...]
    block_index: int
    end_index: int
    donor: tuple[int, ...] | None = None
    donor_continuation: tuple[int, ...] | None = None

    @property
    def block(self) -> Block:
        """The block and its memento."""
        return self.blocks[self.block_index]

    @property
    def own_continuation(self) -> tuple[int, ...]:
        """What follows the memento."""
        return tuple(self.trace.ids[self.block.memento_end + 1 : self.end_index])

    def ids(self, swapped: bool) -> list[int]:
        """The trace as far as it is read, with its own block or the donor's."""
        ids = self.trace.ids[: self.end_index]
        if swapped and self.donor is not None:
            ids[self.block.start + 1 : self.block.end] = self.donor
        return ids


def make_cases(
    checkpoint: Checkpoint, traces: Sequence[TokenTrace], benches: Sequence[Bench] = (), number: int = -1, seed: int = 0
) -> list[PatchCase]:
    """The cases of traces; those without such a block, or with less than two tokens behind it, are left out.

    Args:
        checkpoint: whose law and tokenizer to use.
        traces: any; for those of a benchmark that writes counterfactual blocks a donor is drawn.
        benches: the benchmarks.
        number: which block, negative ones counted from the last.
        seed: of the donors.

    Raises:
        UserError: the policy keeps finished blocks; no case is left.
    """
    policy = checkpoint.policy
    if policy.keep_last_n_blocks != 0 or policy.keep_last_block_for_answer:
        raise UserError("patch needs keep_last_n_blocks 0 and no keep_last_block_for_answer: nothing is gone otherwise")
    known = {bench.name: bench for bench in benches}
    found = []
    for draw, trace in enumerate(traces):
        blocks = tuple(find_blocks(trace.ids, checkpoint.markup, policy.require_assistant_section))
        if not -len(blocks) <= number < len(blocks):
            continue
        which = number % len(blocks)
        last = which == len(blocks) - 1
        case = PatchCase(trace, blocks, which, len(trace.ids) if last else blocks[which + 1].memento_end + 1)
        if len(case.own_continuation) >= 2:
            found.append(
                _with_donor(checkpoint, known.get(trace.source), case, random_stream(seed, DONOR_STREAM, draw))
            )
    if not found:
        raise UserError(f"no trace has a memento of block {number} with text after it: give other traces or --block")
    return found


def _with_donor(checkpoint: Checkpoint, bench: Bench | None, case: PatchCase, rng: np.random.Generator) -> PatchCase:
    if bench is None or bench.counterfactual is None:
        return case
    problem = next(problem for problem in bench.problems if problem.id == case.trace.name)
    text, answer = bench.counterfactual(problem, case.block_index, rng)
    donor = tuple(checkpoint.tokenizer.convert_tokens_to_ids(text))
    if len(donor) != case.block.end - case.block.start - 1:
        raise UserError(f"a donor must be as long as its block: {len(donor)} tokens in {case.trace.name}")
    mine, theirs = (
        tuple(checkpoint.tokenizer(said, add_special_tokens=False)["input_ids"]) for said in (problem.answer, answer)
    )
    final = case.block_index == len(case.blocks) - 1 and case.own_continuation[-len(mine) :] == mine
    other = (*case.own_continuation[: -len(mine)], *theirs) if final else None
    return PatchCase(case.trace, case.blocks, case.block_index, case.end_index, donor, other)


@dataclass(frozen=True, order=True)
class PatchSite:
    """A part of the cache.

    Attributes:
        carrier: `memento` or `delimiters` of the block; `other`, text between them; `earlier`, what is
            retained of the blocks before; `prompt`, what precedes all blocks; `everything`; `placebo`,
            everything from a reading that differs in nothing.
        place: which token (or run of tokens) of the carrier, or `ALL`.
        layer: or `ALL`.
        kv: `k`, `v` or `kv`.
    """

    carrier: str
    place: int = ALL
    layer: int = ALL
    kv: str = "kv"


CarrierIndices = dict[tuple[str, int], np.ndarray]


def carrier_token_indices(case: PatchCase, checkpoint: Checkpoint, runs: int) -> CarrierIndices:
    """Where in the sequence each carrier stands, whole and token by token.

    Args:
        case: the trace.
        checkpoint: whose law says what is retained.
        runs: into how many runs the text of the memento is cut; as many as it has tokens, or fewer.

    Returns:
        For (carrier, place) int64[n]; carriers that the trace has not are left out.
    """
    block, before = case.block, case.ids(False)[: case.block.memento_end + 1]
    held = np.flatnonzero(expiry(before, checkpoint.markup, checkpoint.policy) > len(before))
    memento = np.arange(block.memento_start, block.memento_end + 1)
    delimiters = held[np.isin(held, (block.start, block.end))]
    inner = np.array_split(memento[1:-1], runs) if runs else []
    found: CarrierIndices = {("placebo", ALL): held, ("prompt", ALL): held[held < case.blocks[0].start]}
    found |= {("everything", ALL): held}
    found |= {("earlier", ALL): held[(held >= case.blocks[0].start) & (held < block.start)]}
    found |= {("other", ALL): held[(held > block.end) & (held < block.memento_start)]}
    found |= {("delimiters", ALL): delimiters} | {("delimiters", n): delimiters[[n]] for n in range(len(delimiters))}
    pieces = [memento[:1], *inner, memento[-1:]]
    found |= {("memento", ALL): memento} | {("memento", n): piece for n, piece in enumerate(pieces)}
    return {key: places for key, places in found.items() if len(places)}


def all_sites(places: CarrierIndices, layers: int) -> list[PatchSite]:
    """Every carrier and token, in every layer and all of them, by keys, values and both; controls as a whole."""
    found = []
    for carrier, place in places:
        whole = carrier in ("placebo", "prompt")
        for layer in (ALL,) if whole else (ALL, *range(layers)):
            found += [PatchSite(carrier, place, layer, kv) for kv in (("kv",) if whole else ("k", "v", "kv"))]
    return found


def batch_cases(cases: Sequence[PatchCase], tokens: int) -> list[list[PatchCase]]:
    """Cases of one source each, of similar lengths, as many together as stay under so many tokens."""
    found: list[list[PatchCase]] = []
    for case in sorted(cases, key=lambda case: (case.trace.source, case.end_index)):
        last = found[-1] if found else []
        if last and last[0].trace.source == case.trace.source and (len(last) + 1) * case.end_index <= tokens:
            last.append(case)
        else:
            found.append([case])
    return found


def count_memento_runs(cases: Sequence[PatchCase], maximum: int) -> Mapping[str, int]:
    """For each source, into how many runs the text of its mementos is cut: its shortest memento's tokens."""
    lengths: dict[str, int] = {}
    for case in cases:
        length = case.block.memento_end - case.block.memento_start - 1
        lengths[case.trace.source] = min(lengths.get(case.trace.source, maximum), length)
    return lengths
