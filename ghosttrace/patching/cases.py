"""Patching cases: a trace, read up to an erasure, with the text to swap and the continuation to score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ghosttrace.bench import Bench, Counterfactual, Harness, Problem
from ghosttrace.bench.reference_traces import problem_trace
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker, MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.tools import find_tool_results
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.sampling import random_stream

DONOR_STREAM = 1_000_033
"""Part of the random stream key of donors, so that they share no random numbers with other draws."""
MAX_CONTINUATION_TOKENS = 128
"""Maximum length of a continuation under another law than Memento's, where an erasure may be long in coming."""
MAX_DRAWS = 16
"""Number of counterfactual chats that are drawn until one has as many tokens as the original."""


@dataclass(frozen=True)
class PatchCase:
    """A trace, read up to an erasure, and what follows.

    The cache is patched right after the erasure: under Memento's law at the end of a block's memento, under another law
    where tokens have left. The continuation is the text after it that is scored. It ends with the next memento, or
    where tokens leave next. After the last erasure it is the rest of the trace, with the answer.

    Attributes:
        trace: the trace.
        content: token indices of the text that leaves and that a donor replaces: the text of the block, or the tokens
            from the first to the last one that leaves.
        prefix_end: number of tokens that are read before the cache is patched.
        end_index: token index at which the continuation stops.
        block_index: index of the block, or of the erasure under another law.
        block_label: this index as the run counts it, from the end if negative. Cases of one source with the same label
            are summarised together.
        donor: token ids of a counterfactual text of the same length; None if there is none.
        donor_continuation: token ids of the continuation that follows from the donor; None if unknown.
        own_forced, donor_forced: for each token of the two continuations, whether the harness of the benchmark forces
            it, so that the model does not choose it. Empty: no token is forced.
    """

    trace: TokenTrace
    content: range
    prefix_end: int
    end_index: int
    block_index: int
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
    def own_continuation(self) -> tuple[int, ...]:
        """Token ids from `prefix_end` to `end_index`."""
        return tuple(self.trace.ids[self.prefix_end : self.end_index])

    def ids(self, swapped: bool) -> list[int]:
        """Return the token ids up to `end_index`.

        Args:
            swapped: replace the text that leaves with the donor, if there is one.
        """
        ids = self.trace.ids[: self.end_index]
        if swapped and self.donor is not None:
            ids[self.content.start : self.content.stop] = self.donor
        return ids


class ErasedText(NamedTuple):
    """Text that has left, or leaves, when `prefix_end` tokens have been read (see `PatchCase`)."""

    content: range
    prefix_end: int


def erased_texts(ids: Sequence[int], law: Law) -> list[ErasedText]:
    """Return the blocks of a trace, or under another law than Memento's what leaves at each erasure, in order.

    Args:
        ids: int[T], token ids of the trace.
        law: which tokens leave the cache and when.
    """
    if isinstance(law, MementoLaw):
        blocks = find_blocks(ids, law.markup, law.policy.require_assistant_section)
        return [ErasedText(range(block.start + 1, block.end), block.memento_end + 1) for block in blocks]
    together = groupby(law.erasures(ids), key=lambda erasure: erasure.expires_at)
    keys_at = {end: np.concatenate([np.asarray(erasure.keys) for erasure in group]) for end, group in together}
    return [ErasedText(range(int(keys.min()), int(keys.max()) + 1), end) for end, keys in keys_at.items()]


def _continuation_end(ids: Sequence[int], texts: Sequence[ErasedText], index: int, law: Law) -> int:
    """Return the token index at which the continuation stops that follows an erasure."""
    end = texts[index + 1].prefix_end if index + 1 < len(texts) else len(ids)
    return end if isinstance(law, MementoLaw) else min(end, texts[index].prefix_end + MAX_CONTINUATION_TOKENS)


def make_cases(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    benches: Sequence[Bench] = (),
    block: int | None = None,
    seed: int = 0,
) -> list[PatchCase]:
    """Return one case per trace and block, or erasure, that has at least two tokens after it.

    Args:
        checkpoint: provides the tokenizer and the law.
        traces: traces to patch. A trace whose benchmark writes counterfactual texts gets a random donor.
        benches: the benchmarks that the traces come from.
        block: index of the block or erasure to patch; negative values count from the last one. None: all of them,
            labelled -1 (the last), -2, and so on.
        seed: random seed of the donors.

    Raises:
        UserError: the policy keeps finished blocks, or no trace qualifies.
    """
    law = checkpoint.law
    if isinstance(law, MementoLaw) and (law.policy.keep_last_n_blocks != 0 or law.policy.keep_last_block_for_answer):
        raise UserError(
            "patch needs keep_last_n_blocks 0 and no keep_last_block_for_answer: load the checkpoint with this policy"
        )
    bench_by_name = {bench.name: bench for bench in benches}
    cases = []
    for trace_index, trace in enumerate(traces):
        texts = erased_texts(trace.ids, law)
        labels = range(-1, -len(texts) - 1, -1) if block is None else (block,)
        for label in labels:
            if not -len(texts) <= label < len(texts):
                continue
            index = label % len(texts)
            case = PatchCase(trace, *texts[index], _continuation_end(trace.ids, texts, index, law), index, label)
            if len(case.own_continuation) >= 2:
                rng = random_stream(seed, DONOR_STREAM, trace_index, index)
                cases.append(_with_donor(checkpoint, bench_by_name.get(trace.source), case, rng))
    if not cases:
        raise UserError(_no_cases(law, block))
    return cases


def _no_cases(law: Law, block: int | None) -> str:
    """Return the message for traces of which none qualifies."""
    which, remedy = ("", "") if block is None else (f" of block {block}", " or another --block")
    if isinstance(law, MementoLaw):
        return f"no trace has a memento{which} with text after it: give other traces{remedy}"
    which = "an erasure" if block is None else f"erasure {block}"
    return (
        f"no trace has at least two tokens between {which} of the law {law.spec} and the next one: give longer traces, "
        f"a law that erases less often{remedy}"
    )


def _with_donor(checkpoint: Checkpoint, bench: Bench | None, case: PatchCase, rng: np.random.Generator) -> PatchCase:
    """Return the case with a random donor, or unchanged if its benchmark writes no counterfactual text for it."""
    if bench is None or bench.counterfactual is None:
        return case
    problem = next(problem for problem in bench.problems if problem.id == case.trace.name)
    if isinstance(checkpoint.law, MementoLaw):
        counterfactual = bench.counterfactual(problem, case.block_index, rng)
        return case if counterfactual is None else _with_donor_block(checkpoint, bench, problem, case, counterfactual)
    for number, result in enumerate(find_tool_results(case.trace.ids, checkpoint.chat)):
        if case.content.start <= result.start and result.stop <= case.content.stop:
            donor_ids = _donor_trace(checkpoint, bench, problem, number, len(case.trace.ids), rng)
            if donor_ids is not None:
                case = replace(case, donor=tuple(donor_ids[case.content.start : case.content.stop]))
                return _with_continuation(checkpoint, bench, problem, case, donor_ids)
    return case


def _donor_trace(
    checkpoint: Checkpoint, bench: Bench, problem: Problem, number: int, length: int, rng: np.random.Generator
) -> list[int] | None:
    """Return the token ids of the trace with a counterfactual tool result; None if there is none of this length."""
    assert bench.counterfactual is not None
    for _ in range(MAX_DRAWS):
        counterfactual = bench.counterfactual(problem, number, rng)
        if counterfactual is None or counterfactual.messages is None:
            return None
        other = replace(problem, messages=counterfactual.messages)
        donor_ids = problem_trace(checkpoint, bench, other, counterfactual.response or "").ids
        if len(donor_ids) == length:
            return donor_ids
    return None


def _with_donor_block(
    checkpoint: Checkpoint, bench: Bench, problem: Problem, case: PatchCase, counterfactual: Counterfactual
) -> PatchCase:
    """Return the case with a donor that is given as the tokens of a block."""
    donor = tuple(counterfactual.token_ids(checkpoint.tokenizer))
    if len(donor) != len(case.content):
        raise UserError(
            f"a donor must be as long as its block: {len(donor)} tokens, not {len(case.content)}, in "
            f"{case.trace.name}: correct the counterfactual blocks of {bench.name}"
        )
    case = replace(case, donor=donor)
    if counterfactual.response is None:
        return case
    donor_ids = problem_trace(checkpoint, bench, problem, counterfactual.response).ids
    return _with_continuation(checkpoint, bench, problem, case, donor_ids)


def _with_continuation(
    checkpoint: Checkpoint, bench: Bench, problem: Problem, case: PatchCase, donor_ids: list[int]
) -> PatchCase:
    """Return the case with the continuation that follows from its donor.

    Args:
        checkpoint: provides the tokenizer and the law.
        bench: the benchmark of the trace.
        problem: its problem.
        case: a case with a donor.
        donor_ids: token ids of the trace in which the donor stands.

    Raises:
        UserError: the two traces differ in more than the donor before the cache is patched.
    """
    start = case.prefix_end
    if donor_ids[:start] != case.ids(True)[:start]:
        until = "its block until the memento ends"
        what = until if isinstance(checkpoint.law, MementoLaw) else "the text that leaves"
        raise UserError(
            f"a counterfactual response must differ from the response only in {what}, in {case.trace.name}: "
            f"correct the counterfactual blocks of {bench.name}"
        )
    end_index = _continuation_end(donor_ids, erased_texts(donor_ids, checkpoint.law), case.block_index, checkpoint.law)
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
