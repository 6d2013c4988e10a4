"""Patching cases: a trace with the block to patch, its donor block, and the sites of the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ghosttrace.bench import Bench, Harness
from ghosttrace.data.read import TraceText
from ghosttrace.data.tokens import TokenTrace, to_token_trace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, expiry
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.sampling import random_stream

ALL = -1
"""Value of `PatchSite.offset` or `PatchSite.layer` that selects all tokens of the carrier, or all layers."""
DONOR_STREAM = 1_000_033
"""Part of the random stream key of donors, so that they share no random numbers with other draws."""


@dataclass(frozen=True)
class PatchCase:
    """A trace and the block to patch.

    The continuation is the text after the block's memento that is scored. For the last block it is the answer; for an
    earlier block it ends with the next memento.

    Attributes:
        trace: the trace.
        blocks: the finished block-memento pairs of the trace.
        block_index: index in `blocks` of the block to patch.
        end_index: token index at which the continuation stops.
        block_label: index of the block as the run counts it, from the end if negative. Cases of one source with the
            same label are summarised together.
        donor: token ids of a counterfactual block of the same length; None if there is none.
        donor_continuation: token ids of the continuation that follows from the donor; None if unknown.
        own_forced, donor_forced: for each token of the two continuations, whether the harness of the benchmark forces
            it, so that the model does not choose it. Empty: no token is forced.
    """

    trace: TokenTrace
    blocks: tuple[Block, ...]
    block_index: int
    end_index: int
    block_label: int = -1
    donor: tuple[int, ...] | None = None
    donor_continuation: tuple[int, ...] | None = None
    own_forced: tuple[bool, ...] = ()
    donor_forced: tuple[bool, ...] = ()

    @property
    def group(self) -> tuple[str, int]:
        """Source and block label: cases with the same group have the same sites and are summarised together."""
        return self.trace.source, self.block_label

    @property
    def block(self) -> Block:
        """The block to patch, with its memento."""
        return self.blocks[self.block_index]

    @property
    def own_continuation(self) -> tuple[int, ...]:
        """Token ids between the end of the memento and `end_index`."""
        return tuple(self.trace.ids[self.block.memento_end + 1 : self.end_index])

    def ids(self, swapped: bool) -> list[int]:
        """Return the token ids up to `end_index`.

        Args:
            swapped: replace the text of the block with the donor, if there is one.
        """
        ids = self.trace.ids[: self.end_index]
        if swapped and self.donor is not None:
            ids[self.block.start + 1 : self.block.end] = self.donor
        return ids


def make_cases(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    benches: Sequence[Bench] = (),
    block: int | None = None,
    seed: int = 0,
) -> list[PatchCase]:
    """Return one case per trace and block that has at least two tokens after its memento.

    Args:
        checkpoint: provides the tokenizer, the markup and the policy.
        traces: traces to patch. A trace whose benchmark writes counterfactual blocks gets a random donor.
        benches: the benchmarks that the traces come from.
        block: index of the block to patch; negative values count from the last block. None: every block, labelled -1
            (the last), -2, and so on.
        seed: random seed of the donors.

    Raises:
        UserError: the policy keeps finished blocks, or no trace qualifies.
    """
    policy = checkpoint.policy
    if policy.keep_last_n_blocks != 0 or policy.keep_last_block_for_answer:
        raise UserError(
            "patch needs keep_last_n_blocks 0 and no keep_last_block_for_answer: load the checkpoint with this policy"
        )
    bench_by_name = {bench.name: bench for bench in benches}
    cases = []
    for trace_index, trace in enumerate(traces):
        blocks = tuple(find_blocks(trace.ids, checkpoint.markup, policy.require_assistant_section))
        labels = range(-1, -len(blocks) - 1, -1) if block is None else (block,)
        for label in labels:
            if not -len(blocks) <= label < len(blocks):
                continue
            index = label % len(blocks)
            is_last = index == len(blocks) - 1
            end_index = len(trace.ids) if is_last else blocks[index + 1].memento_end + 1
            case = PatchCase(trace, blocks, index, end_index, label)
            if len(case.own_continuation) >= 2:
                rng = random_stream(seed, DONOR_STREAM, trace_index, index)
                cases.append(_with_donor(checkpoint, bench_by_name.get(trace.source), case, rng))
    if not cases:
        which, remedy = ("", "") if block is None else (f" of block {block}", " or another --block")
        raise UserError(f"no trace has a memento{which} with text after it: give other traces{remedy}")
    return cases


def _with_donor(checkpoint: Checkpoint, bench: Bench | None, case: PatchCase, rng: np.random.Generator) -> PatchCase:
    """Return the case with a random donor, or unchanged if its benchmark writes no counterfactual blocks."""
    if bench is None or bench.counterfactual is None:
        return case
    problem = next(problem for problem in bench.problems if problem.id == case.trace.name)
    counterfactual = bench.counterfactual(problem, case.block_index, rng)
    donor = tuple(counterfactual.token_ids(checkpoint.tokenizer))
    block_length = case.block.end - case.block.start - 1
    if len(donor) != block_length:
        raise UserError(
            f"a donor must be as long as its block: {len(donor)} tokens, not {block_length}, in {case.trace.name}: "
            f"correct the counterfactual blocks of {bench.name}"
        )
    case = replace(case, donor=donor)
    if counterfactual.response is None:
        return case
    text = TraceText(problem.prompt, counterfactual.response)
    donor_ids = to_token_trace(checkpoint, case.trace.source, case.trace.name, text).ids
    start = case.block.memento_end + 1
    if donor_ids[:start] != case.ids(True)[:start]:
        raise UserError(
            f"a counterfactual response must differ from the response only in its block until the memento ends, in "
            f"{case.trace.name}: correct the counterfactual blocks of {bench.name}"
        )
    blocks = find_blocks(donor_ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    is_last = case.block_index == len(blocks) - 1
    end_index = len(donor_ids) if is_last else blocks[case.block_index + 1].memento_end + 1
    harness = bench.harness(problem, checkpoint.tokenizer) if bench.harness else None
    own_ids = case.trace.ids[: case.end_index]
    return replace(
        case,
        donor_continuation=tuple(donor_ids[start:end_index]),
        own_forced=_forced_tokens(checkpoint, harness, own_ids)[start:],
        donor_forced=_forced_tokens(checkpoint, harness, donor_ids[:end_index])[start:],
    )


def _forced_tokens(checkpoint: Checkpoint, harness: Harness | None, ids: Sequence[int]) -> tuple[bool, ...]:
    """Return for each token whether the harness forces it."""
    tracker, forced = ExpiryTracker(checkpoint.markup, checkpoint.policy), []
    for token in ids:
        forced.append(harness is not None and harness(tracker) is not None)
        tracker.push(token)
    return tuple(forced)


@dataclass(frozen=True, order=True)
class PatchSite:
    """A part of the retained cache that is patched together.

    Attributes:
        carrier: `memento` or `delimiters` of the patched block; `other`, the text between the block and its memento;
            `earlier`, all tokens retained from earlier blocks and mementos; `prompt`, the tokens before the first
            block; `everything`, all retained tokens; `placebo`, all retained tokens, with states from a pass that
            differs in nothing.
        offset: index of a token, or of a run of tokens, within the carrier; `ALL` for the whole carrier.
        layer: layer index, or `ALL`.
        kv: `k` (keys), `v` (values) or `kv` (both).
    """

    carrier: str
    offset: int = ALL
    layer: int = ALL
    kv: str = "kv"


CarrierIndices = dict[tuple[str, int], np.ndarray]
"""Token indices in the trace, int64[n] ascending, by (carrier, offset) of a `PatchSite`."""


def carrier_token_indices(case: PatchCase, checkpoint: Checkpoint, n_runs: int) -> CarrierIndices:
    """Return the token indices of each carrier, as a whole and token by token.

    Args:
        case: the trace and its block.
        checkpoint: provides the policy, which determines the retained tokens.
        n_runs: number of runs into which the text of the memento is divided; at most its number of tokens.

    Returns:
        Token indices by (carrier, offset). Carriers without tokens in this trace are omitted.
    """
    block, prefix = case.block, case.ids(False)[: case.block.memento_end + 1]
    retained = np.flatnonzero(expiry(prefix, checkpoint.markup, checkpoint.policy) > len(prefix))
    memento = np.arange(block.memento_start, block.memento_end + 1)
    delimiters = retained[np.isin(retained, (block.start, block.end))]
    text_runs = np.array_split(memento[1:-1], n_runs) if n_runs else []
    indices: CarrierIndices = {
        ("placebo", ALL): retained,
        ("prompt", ALL): retained[retained < case.blocks[0].start],
        ("everything", ALL): retained,
        ("earlier", ALL): retained[(retained >= case.blocks[0].start) & (retained < block.start)],
        ("other", ALL): retained[(retained > block.end) & (retained < block.memento_start)],
        ("delimiters", ALL): delimiters,
    }
    indices |= {("delimiters", n): delimiters[[n]] for n in range(len(delimiters))}
    runs = [memento[:1], *text_runs, memento[-1:]]
    indices |= {("memento", ALL): memento} | {("memento", n): run for n, run in enumerate(runs)}
    return {key: tokens for key, tokens in indices.items() if len(tokens)}


def all_sites(carrier_indices: CarrierIndices, n_layers: int) -> list[PatchSite]:
    """Return every site: each carrier and offset, in each layer and in all, by keys, by values and by both.

    The controls `placebo` and `prompt` have one site each, the whole carrier in all layers.

    Args:
        carrier_indices: token indices by (carrier, offset); only the keys are used.
        n_layers: number of layers of the model.
    """
    sites = []
    for carrier, offset in carrier_indices:
        is_control = carrier in ("placebo", "prompt")
        for layer in (ALL,) if is_control else (ALL, *range(n_layers)):
            sites += [PatchSite(carrier, offset, layer, kv) for kv in (("kv",) if is_control else ("k", "v", "kv"))]
    return sites


def batch_cases(cases: Sequence[PatchCase], tokens: int) -> list[list[PatchCase]]:
    """Return batches of cases of one group, of similar lengths and of at most `tokens` tokens with padding."""
    batches: list[list[PatchCase]] = []
    for case in sorted(cases, key=lambda case: (case.group, case.end_index)):
        last = batches[-1] if batches else []
        if last and last[0].group == case.group and (len(last) + 1) * case.end_index <= tokens:
            last.append(case)
        else:
            batches.append([case])
    return batches


def count_memento_runs(cases: Sequence[PatchCase], maximum: int) -> Mapping[tuple[str, int], int]:
    """Return by group the number of runs into which the text of its mementos is divided.

    This is the number of tokens in the shortest memento text of the group, at most `maximum`, so that all its cases
    have the same sites.
    """
    lengths: dict[tuple[str, int], int] = {}
    for case in cases:
        length = case.block.memento_end - case.block.memento_start - 1
        lengths[case.group] = min(lengths.get(case.group, maximum), length)
    return lengths
