"""The patcher: part of one reading's cache put into another's, and what the text that follows is worth then.

A trace is read up to the end of one memento in several ways: as ever, sealed, and with a donor's block
under the same memento text. The retained places are the same each time, so the states of any of them,
in any layer, of keys or values, can be put into a copy of the normal cache. What follows is read under
teacher forcing. The token right behind the memento is left out: where blocks expire after
`<|summary_end|>` has been read, it is predicted from a hidden state that saw the block, which no patch
of a cache can change.
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
from ghosttrace.patching.cases import ALL, PatchCase, PatchSite, carrier_token_indices

CACHE_ARMS: dict[str, Arm] = {"memento": Memento(), "placebo": PlaceboArm(), "seal": Restart(), "swap": Memento()}


class Patch(NamedTuple):
    """One cell of an experiment: the sites of one case taken from one reading, and what is read then."""

    case_index: int
    cache_name: str
    sites: tuple[PatchSite, ...]
    continuation: tuple[int, ...]


class PatchScore(NamedTuple):
    """What a patch leaves of a continuation.

    Attributes:
        log2p: float64[n - 1], of its tokens but the first.
        greedy: each of them is the likeliest.
    """

    log2p: np.ndarray
    greedy: bool


class Patcher:
    """A batch of cases, each read once in every way asked for.

    Args:
        checkpoint: the model and its law.
        cases: all with a donor if `swap` is among the cache_names.
        cache_names: names in `CACHE_ARMS`, beside `memento`.
        runs: see `carrier_token_indices`.
    """

    def __init__(
        self, checkpoint: Checkpoint, cases: Sequence[PatchCase], cache_names: Sequence[str], runs: int
    ) -> None:
        self.checkpoint, self.cases = checkpoint, cases
        self.carrier_indices = [carrier_token_indices(case, checkpoint, runs) for case in cases]
        self.session = Session(checkpoint.model, checkpoint.markup, checkpoint.policy, [(0,)])
        self.caches = {name: self._read(name) for name in dict.fromkeys(("memento", *cache_names))}

    def _read(self, name: str) -> KVCache:
        arm, checkpoint = CACHE_ARMS[name], self.checkpoint
        keys = [(row,) for row in range(len(self.cases))]
        with attending(checkpoint.model):
            session = Session(checkpoint.model, checkpoint.markup, checkpoint.policy, keys, arm.eraser)
            session.advance([case.ids(name == "swap")[: case.block.memento_end + 1] for case in self.cases])
        return session.cache

    def score(self, patches: Sequence[Patch], batch_tokens: int) -> list[PatchScore]:
        """Read what follows over each patched cache.

        Args:
            patches: any number.
            batch_tokens: patched copies are made and read together, as many as hold this many tokens.
        """
        vocabulary = self.checkpoint.model.config.get_text_config().vocab_size
        longest = max(len(patch.continuation) for patch in patches)
        width = int(self.caches["memento"].slots.length.max()) + longest
        rows = max(1, min(batch_tokens // width, MAX_LOGIT_BYTES // (4 * vocabulary * longest)))
        with attending(self.checkpoint.model):
            parts = [self._score(patches[begin : begin + rows]) for begin in range(0, len(patches), rows)]
        return [score for part in parts for score in part]

    def _score(self, patches: Sequence[Patch]) -> list[PatchScore]:
        cache = self.caches["memento"].copy_rows([patch.case_index for patch in patches])
        for row, patch in enumerate(patches):
            for site in patch.sites:
                self._put(cache, row, patch, site)
        runs = [patch.continuation[:-1] for patch in patches]
        first = [self.cases[patch.case_index].block.memento_end + 1 for patch in patches]
        index = [np.arange(begin, begin + len(run)) for begin, run in zip(first, runs, strict=True)]
        logits = self.session.forward(cache, runs, index, index, all_logits=True).float()
        following = torch.zeros(logits.shape[:2], dtype=torch.int64)
        for row, patch in enumerate(patches):
            following[row, : len(patch.continuation) - 1] = torch.tensor(patch.continuation[1:])
        following = following.to(logits.device)[:, :, None]
        log2p = (logits.gather(-1, following)[:, :, 0] - logits.logsumexp(-1)).double().cpu().numpy() / np.log(2)
        likeliest = (logits.argmax(-1) == following[:, :, 0]).cpu().numpy()
        counts = [len(run) for run in runs]
        return [PatchScore(log2p[row, :n], bool(likeliest[row, :n].all())) for row, n in enumerate(counts)]

    def _put(self, cache: KVCache, row: int, patch: Patch, site: PatchSite) -> None:
        """Copy the states of one site."""
        source = self.caches["placebo" if site.carrier == "placebo" else patch.cache_name]
        places = self.carrier_indices[patch.case_index][site.carrier, site.place]
        here = torch.from_numpy(np.searchsorted(cache.held_indices(row), places))
        there = torch.from_numpy(np.searchsorted(source.held_indices(patch.case_index), places))
        for number, (mine, theirs) in enumerate(zip(cache.layers, source.layers, strict=True)):
            if site.layer not in (ALL, number):
                continue
            if "k" in site.kv:
                mine.keys[row, :, here] = theirs.keys[patch.case_index, :, there]
            if "v" in site.kv:
                mine.values[row, :, here] = theirs.values[patch.case_index, :, there]
