"""Patches of several sites together, and of everything except these sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase, batch_cases
from ghosttrace.patching.patcher import Patch, Patcher, PatchScore
from ghosttrace.patching.sites import PatchSite
from ghosttrace.patching.summary import WHOLE_CACHE, share_of

OWN, DONOR = "own", "donor"


@dataclass(frozen=True)
class JointEffect:
    """Effect of one joint patch on n cases.

    Attributes:
        bits: float[n], the decrease of log2 p(own continuation) - log2 p(donor continuation), or of the first term
            alone for a seal or a case without a donor continuation.
        flipped: bool[n], whether greedy decoding writes the donor's continuation and not the trace's own.
        has_donor: whether all cases were scored on a donor continuation. If not, `flipped` is False everywhere.
    """

    bits: np.ndarray
    flipped: np.ndarray
    has_donor: bool

    def columns(self, whole_bits: np.ndarray) -> dict[str, Any]:
        """Return the effect as JSON values.

        Args:
            whole_bits: float[n], effect of patching everything.

        Returns:
            recovered, recovered_low, recovered_high and overshoot (see `share_of`); flipped, the number of cases, None
            if not all have a donor continuation.
        """
        share = share_of(self.bits, whole_bits)
        low, high = (None if np.isnan(end) else end for end in (share.recovered.low, share.recovered.high))
        return {
            "recovered": share.recovered.value,
            "recovered_low": low,
            "recovered_high": high,
            "overshoot": share.overshoot,
            "flipped": int(self.flipped.sum()) if self.has_donor else None,
        }


class JointPatches:
    """Cases of one group with their caches and their reference scores, computed once for many joint patches.

    Args:
        checkpoint: the model and its law.
        cases: the cases, all of one group.
        name: the intervention, `seal` or `swap`.
        batch_tokens: maximum number of tokens that are processed together.
        n_runs: see `ghosttrace.patching.sites.carrier_token_indices`.

    Attributes:
        everything: effect of patching everything.
    """

    def __init__(
        self, checkpoint: Checkpoint, cases: Sequence[PatchCase], name: str, batch_tokens: int, n_runs: int
    ) -> None:
        self.cases, self.name, self.batch_tokens = cases, name, batch_tokens
        self.patchers = [Patcher(checkpoint, batch, (name,), n_runs) for batch in batch_cases(cases, batch_tokens)]
        self.has_donor = name == "swap" and all(case.donor_continuation is not None for case in cases)
        self._unpatched_bits, _ = self._score((), ())
        self.everything = self._effect((WHOLE_CACHE,), ())

    def patch(self, sites: Sequence[PatchSite]) -> JointEffect:
        """Return the effect of patching these sites together. Sites that a case lacks are left out there."""
        return self._effect(sites, ())

    def patch_rest(self, sites: Sequence[PatchSite]) -> JointEffect:
        """Return the effect of patching everything except these sites."""
        return self._effect((WHOLE_CACHE,), sites)

    def _effect(self, sites: Sequence[PatchSite], kept: Sequence[PatchSite]) -> JointEffect:
        bits, flipped = self._score(sites, kept)
        return JointEffect(self._unpatched_bits - bits, flipped, self.has_donor)

    def _score(self, sites: Sequence[PatchSite], kept: Sequence[PatchSite]) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of all cases under one joint patch.

        Returns:
            float[n], log2 p(own continuation) - log2 p(donor continuation), or the first term alone; and bool[n], see
            `JointEffect.flipped`.
        """
        scores: dict[tuple[str, int], tuple[float, bool]] = {}
        for patcher in self.patchers:
            own = self._continuation_scores(patcher, OWN, sites, kept)
            donor = self._continuation_scores(patcher, DONOR, sites, kept) if self.has_donor else []
            for index, case in enumerate(patcher.cases):
                bits, flipped = float(own[index].log2p.sum()), False
                if donor:
                    bits -= float(donor[index].log2p.sum())
                    keeps = own[index].is_greedy(case.own_forced)
                    flipped = donor[index].is_greedy(case.donor_forced) and not keeps
                scores[case.trace.name, case.block_index] = bits, flipped
        ordered = [scores[case.trace.name, case.block_index] for case in self.cases]
        return np.array([bits for bits, _ in ordered]), np.array([flipped for _, flipped in ordered])

    def _continuation_scores(
        self, patcher: Patcher, which: str, sites: Sequence[PatchSite], kept: Sequence[PatchSite]
    ) -> list[PatchScore]:
        """Return the score of the own or the donor's continuation of every case of a batch."""
        patches = []
        for index, case in enumerate(patcher.cases):
            known = patcher.carrier_indices[index]
            patched, unpatched = (
                tuple(site for site in some if (site.carrier, site.offset) in known) for some in (sites, kept)
            )
            continuation = case.own_continuation if which == OWN else case.donor_continuation or ()
            patches.append(Patch(index, self.name, patched, continuation, unpatched))
        return patcher.score(patches, self.batch_tokens)
