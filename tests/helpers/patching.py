"""Random traces with donors, and results of patching them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ghosttrace.data.tokens import TokenTrace
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.masks import Visibility
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.states import read_states
from ghosttrace.patching.cases import PatchCase
from ghosttrace.patching.measure import PATCH_TABLE, measure, record_keys
from ghosttrace.patching.sites import ALL, PatchSite, carrier_token_indices
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


class HeldLayer(CacheLayerMixin):
    """Constant cache layer that precedes the new tokens, independent of the package."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, *args: Any) -> None: ...

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2] + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


def patched_by_hand(
    checkpoint: Checkpoint, case: PatchCase, reading: str, sites: tuple[PatchSite, ...], own: bool = True
) -> np.ndarray:
    """Return log2-probabilities of the continuation after patching states with plain tensor operations."""
    model, law, end = checkpoint.model, checkpoint.law, case.prefix_end
    ids = case.trace.ids[:end]
    held = np.flatnonzero(expiry(ids, law) > end)
    clean = read_states(model, [open_layout(ids, law)], [held])
    swapped = [*ids[: case.content.start], *(case.donor or ()), *ids[case.content.stop :]]
    layout = sealed_layout(ids, law) if reading == "seal" else open_layout(swapped, law)
    altered = read_states(model, [layout], [held])
    site_indices = carrier_token_indices(case, checkpoint, 2)
    keys, values = clean.keys.clone(), clean.values.clone()
    for site in sites:
        is_patched = np.isin(held, site_indices[site.carrier, site.offset])
        layers = slice(None) if site.layer == ALL else slice(site.layer, site.layer + 1)
        for letter, states, altered_states in (("k", keys, altered.keys), ("v", values, altered.values)):
            if letter in site.kv:
                states[layers, ..., is_patched, :] = altered_states[layers, ..., is_patched, :]
    store = Cache(layers=[HeldLayer(k, v) for k, v in zip(keys, values, strict=True)])
    following = case.own_continuation if own else case.donor_continuation
    assert following is not None
    index = torch.from_numpy(np.arange(end, end + len(following) - 1))[None]
    every = torch.cat([torch.from_numpy(held)[None], index], 1)
    with attending(model), torch.no_grad():
        visibility = Visibility(index, every, torch.full_like(every, NEVER), index, every)
        text = torch.tensor([following[:-1]])
        logits = model(
            input_ids=text, position_ids=index, past_key_values=store, use_cache=True, expiry=visibility
        ).logits
    log2p = logits[0].log_softmax(-1)[range(len(following) - 1), list(following[1:])]
    return log2p.double().numpy() / np.log(2)
