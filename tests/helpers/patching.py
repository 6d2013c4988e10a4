"""Random traces with donors, and results of patching them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.data.tokens import TokenTrace
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase
from ghosttrace.patching.measure import PATCH_TABLE, measure, record_keys
from ghosttrace.patching.summary import summarise
from ghosttrace.runs.records import Records
from helpers.families import tiny
from helpers.traces import MARKUP, trace

KEEP, ERASE = Policy(mask_delimiters=False), Policy(mask_delimiters=True)
POLICIES = {"keep": KEEP, "erase": ERASE, "before": replace(KEEP, erase_at="before_summary_end")}
TOKENIZER = SimpleNamespace(decode=lambda ids: f"t{ids[0]}")


def checkpoint_of(family: str, policy: Policy = KEEP) -> Checkpoint:
    """Return a tiny random model of a family as a checkpoint with this policy."""
    return Checkpoint(family, tiny(family), TOKENIZER, MARKUP, policy)


def case_in(item: TokenTrace, number: int) -> PatchCase:
    """Return the case of one block of a trace, without a donor."""
    blocks = find_blocks(item.ids, MARKUP)
    number %= len(blocks)
    last, block = number == len(blocks) - 1, blocks[number]
    stop = len(item.ids) if last else blocks[number + 1].memento_end + 1
    return PatchCase(item, range(block.start + 1, block.end), block.memento_end + 1, stop, number)


def case_of(seed: int, blocks: int = 4, number: int = -1) -> PatchCase:
    """Return a random trace with a random donor block and, for the last block, an alternative continuation."""
    rng, ids = np.random.default_rng(100 + seed), [*trace(seed, blocks), 11, 12, 13]
    case = case_in(TokenTrace("random", str(seed), ids[:3], ids[3:]), number)
    last = case.end_index == len(ids)
    donor = tuple(rng.integers(8, 96, len(case.content)).tolist())
    return replace(case, donor=donor, donor_continuation=(*case.own_continuation[:-2], 14, 15) if last else None)


def results_of(checkpoint: Checkpoint, cases: list[PatchCase], **more: Any) -> tuple[pd.DataFrame, Records]:
    """Measure the cases with options `more`; return the summary table and the records."""
    records = Records(PATCH_TABLE)
    measure(checkpoint, cases, records, **more)
    return summarise(records.get(key) for key in record_keys(cases)), records
