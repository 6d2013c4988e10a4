"""The patcher: copies part of one cache into another and scores the following text.

A trace is processed up to an erasure, such as the end of one memento, in several ways: normally, sealed, and with a
donor text in place of the one that leaves. All these caches retain the same token indices. The keys or values of any
retained token in any layer can therefore be copied into a copy of the normal cache. The following text is then scored
under teacher forcing.

The first token after the erasure is not scored. It is predicted from the last token before the erasure. Where tokens
leave after that one has been processed, its hidden state saw them, and no patch of the cache can change it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ghosttrace.ablation.arms import Arm, Memento, PlaceboArm, Restart
from ghosttrace.ghost_bits.likelihood import MAX_LOGIT_BYTES
from ghosttrace.model.attention import attending
from ghosttrace.model.cache import KVCache
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.patching.cases import PatchCase
from ghosttrace.patching.sites import ALL, PatchSite, carrier_token_indices

CACHE_ARMS: dict[str, Arm] = {"memento": Memento(), "placebo": PlaceboArm(), "seal": Restart(), "swap": Memento()}
"""The arm that computes each cache, by the cache's name. `swap` computes its cache over the donor."""


class Patch(NamedTuple):
    """One patch to score.

    Attributes:
        case_index: index of the case in the batch.
        cache_name: name in `CACHE_ARMS` of the cache to copy from.
        sites: the sites to copy together. An empty tuple leaves the normal cache unchanged.
        continuation: token ids after the erasure to score.
        kept: sites that keep the states of the normal cache although `sites` covers them. Everything except some sites
            is the whole cache in `sites` and these in `kept`.
    """

    case_index: int
    cache_name: str
    sites: tuple[PatchSite, ...]
    continuation: tuple[int, ...]
    kept: tuple[PatchSite, ...] = ()


class PatchScore(NamedTuple):
    """Scores of a continuation of n tokens over a patched cache.

    Attributes:
        log2p: float64[n - 1], log2 probability of each token except the first.
        most_likely: bool[n - 1], whether each of these tokens is the most likely one.
    """

    log2p: np.ndarray
    most_likely: np.ndarray

    def is_greedy(self, forced: Sequence[bool]) -> bool:
        """Return whether greedy decoding would write the continuation, after its first token.

        Args:
            forced: for each of the n tokens, whether a harness forces it; empty if none is forced.
        """
        return bool((self.most_likely | np.array(forced[1:], dtype=bool) if forced else self.most_likely).all())


class Patcher:
    """A batch of cases with their normal cache and the caches to copy from, all computed once.

    Args:
        checkpoint: the model and its law.
        cases: the cases. All must have a donor if `cache_names` contains `swap`.
        cache_names: names in `CACHE_ARMS`; `memento`, the normal cache, is always computed.
        n_runs: see `ghosttrace.patching.sites.carrier_token_indices`.

    Attributes:
        carrier_indices: token indices by (carrier, offset), for each case.
        caches: the cache of the batch by name; row i belongs to case i.
    """

    def __init__(
        self, checkpoint: Checkpoint, cases: Sequence[PatchCase], cache_names: Sequence[str], n_runs: int
    ) -> None:
        self.checkpoint, self.cases = checkpoint, cases
        self.carrier_indices = [carrier_token_indices(case, checkpoint, n_runs) for case in cases]
        self.session = self._session([(0,)], Memento())
        self.caches = {name: self._compute_cache(name) for name in dict.fromkeys(("memento", *cache_names))}

    def _session(self, keys: Sequence[tuple[int, ...]], arm: Arm) -> Session:
        checkpoint = self.checkpoint
        return Session(checkpoint.model, checkpoint.markup, checkpoint.policy, keys, arm.eraser, checkpoint.law)

    def _compute_cache(self, name: str) -> KVCache:
        arm = CACHE_ARMS[name]
        keys = [(row,) for row in range(len(self.cases))]
        with attending(self.checkpoint.model):
            session = self._session(keys, arm)
            session.advance([case.ids(name == "swap")[: case.prefix_end] for case in self.cases])
        return session.cache

    def score(self, patches: Sequence[Patch], batch_tokens: int) -> list[PatchScore]:
        """Return the score of each patch's continuation over its patched cache, in order.

        Args:
            patches: the patches, at least one.
            batch_tokens: maximum number of tokens, cached and new, that are processed together.
        """
        vocabulary = self.checkpoint.model.config.get_text_config().vocab_size
        max_length = max(len(patch.continuation) for patch in patches)
        row_tokens = int(self.caches["memento"].slots.length.max()) + max_length
        n_rows = max(1, min(batch_tokens // row_tokens, MAX_LOGIT_BYTES // (4 * vocabulary * max_length)))
        with attending(self.checkpoint.model):
            batches = [self._score_batch(patches[begin : begin + n_rows]) for begin in range(0, len(patches), n_rows)]
        return [score for batch in batches for score in batch]

    def _score_batch(self, patches: Sequence[Patch]) -> list[PatchScore]:
        cache = self.caches["memento"].copy_rows([patch.case_index for patch in patches])
        for row, patch in enumerate(patches):
            for site in patch.sites:
                self._copy_site(cache, row, patch, site, "placebo" if site.carrier == "placebo" else patch.cache_name)
            for site in patch.kept:
                self._copy_site(cache, row, patch, site, "memento")
        inputs = [patch.continuation[:-1] for patch in patches]
        starts = [self.cases[patch.case_index].prefix_end for patch in patches]
        index = [np.arange(start, start + len(ids)) for start, ids in zip(starts, inputs, strict=True)]
        logits = self.session.forward(cache, inputs, index, index, all_logits=True).float()
        next_ids = torch.zeros(logits.shape[:2], dtype=torch.int64)
        for row, patch in enumerate(patches):
            next_ids[row, : len(patch.continuation) - 1] = torch.tensor(patch.continuation[1:])
        next_ids = next_ids.to(logits.device)[:, :, None]
        log2p = (logits.gather(-1, next_ids)[:, :, 0] - logits.logsumexp(-1)).double().cpu().numpy() / np.log(2)
        is_most_likely = (logits.argmax(-1) == next_ids[:, :, 0]).cpu().numpy()
        counts = [len(ids) for ids in inputs]
        return [PatchScore(log2p[row, :n], is_most_likely[row, :n]) for row, n in enumerate(counts)]

    def _copy_site(self, cache: KVCache, row: int, patch: Patch, site: PatchSite, cache_name: str) -> None:
        """Copy the states of one site from a cache into a row of the cache to score."""
        source = self.caches[cache_name]
        tokens = self.carrier_indices[patch.case_index][site.carrier, site.offset]
        target_slots = torch.from_numpy(np.searchsorted(cache.held_indices(row), tokens))
        source_slots = torch.from_numpy(np.searchsorted(source.held_indices(patch.case_index), tokens))
        for layer, (target_layer, source_layer) in enumerate(zip(cache.layers, source.layers, strict=True)):
            if site.layer not in (ALL, layer):
                continue
            if "k" in site.kv:
                target_layer.keys[row, :, target_slots] = source_layer.keys[patch.case_index, :, source_slots]
            if "v" in site.kv:
                target_layer.values[row, :, target_slots] = source_layer.values[patch.case_index, :, source_slots]
