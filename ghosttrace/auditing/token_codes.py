"""Codes written into single tokens of a sealed cache, as a model would leave them, before a probe pools the tokens."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ghosttrace.auditing.context import AuditContext
from ghosttrace.probing.carriers import divide
from ghosttrace.probing.features import StateKind, StateSelection, extract_features
from ghosttrace.probing.site import ProbeSite

CODE_STRENGTH = 3.0  # length scale of a code's directions, relative to the spread of a token's states
MIN_RELATIVE_SPREAD = 1e-3  # minimum spread that a code is scaled by, relative to the size of the states
SPREAD_TRACES = 256  # traces whose tokens are read one by one, if a probe averages them


@dataclass(frozen=True)
class CachedTokens:
    """The states of one carrier, layer and kind in N traces, as a probe reads them.

    Attributes:
        states: float[N, P, d]; P is 1 if the tokens are averaged, and the number of last tokens if only those are read.
        count: Number of tokens that the carrier has in every trace.
        weights: float[N], share of one token in the states that a probe reads: 1, or 1 / tokens if it averages them.
        spread: Standard deviation of one token's states over traces.
    """

    states: Tensor
    count: int
    weights: Tensor
    spread: float

    def copy(self) -> "CachedTokens":
        """Return tokens whose states can be written without changing these."""
        return replace(self, states=self.states.clone())

    def features(self) -> Tensor:
        """Return the states as the features of a probe, float[N, P * d]."""
        return self.states.flatten(1)

    def draw_offsets(self, n: int, rng: np.random.Generator) -> list[int]:
        """Draw n different tokens, counted from the last one of the carrier."""
        return rng.choice(self.count, n, replace=False).tolist()

    def write(
        self, offset: int, codes: np.ndarray, n_codes: int, rng: np.random.Generator, rows: np.ndarray | None = None
    ) -> None:
        """Add to one token a random direction for each code. A token that the probe does not read stays as it is.

        Args:
            offset: The token, counted from the last one.
            codes: int64[N], code of each trace, below `n_codes`.
            n_codes: Number of codes.
            rng: Generator of random numbers.
            rows: bool[N], traces to write to. None: all.
        """
        averaged = bool((self.weights < 1).any())
        slot = 0 if averaged else self.states.shape[1] - 1 - offset
        if slot < 0:
            return
        length = CODE_STRENGTH * self.spread
        directions = torch.from_numpy(rng.standard_normal((n_codes, self.states.shape[2]))).to(self.states) * length
        added = directions[torch.from_numpy(codes)] * self.weights[:, None]
        if rows is not None:
            added[torch.from_numpy(~rows)] = 0
        self.states[:, slot] += added


def read_tokens(context: AuditContext, site: ProbeSite, kind: StateKind) -> CachedTokens:
    """Return the tokens of a site in the sealed cache.

    Args:
        context: Context with features of the sealed cache.
        site: The site; its last layer is read.
        kind: Keys or values.
    """
    carrier, layer = site.carrier, site.layers[-1]
    states = context.features["sealed"].load(carrier, layer, kind)
    if carrier.pool == "all":
        return CachedTokens(states, states.shape[1], torch.ones(len(states)), _spread(states))
    samples, whole = context.task.samples, replace(carrier, pool="all")
    counts = np.array([len(whole.token_indices(trace)) for trace in divide(context.checkpoint, samples)])
    smallest = int(counts.min())
    if carrier.pool != "mean":
        return CachedTokens(states, smallest, torch.ones(len(states)), _spread(states))
    few = replace(context.task, samples=samples[:SPREAD_TRACES])
    one_by_one = replace(carrier, pool=smallest)
    selection = StateSelection("sealed", (one_by_one,), (layer,))
    with TemporaryDirectory() as folder:
        features = extract_features(context.checkpoint, few, selection, Path(folder))
        spread = _spread(features.load(one_by_one, layer, kind))
    return CachedTokens(states, smallest, torch.from_numpy(1 / counts).to(states), spread)


def _spread(states: Tensor) -> float:
    """Return the mean standard deviation over traces of the states of a token, float[N, P, d]."""
    spread = states.std(0, correction=0).mean()
    # States can be constant, as those of a delimiter in the first layer.
    return float(torch.maximum(spread, MIN_RELATIVE_SPREAD * states.square().mean().sqrt()))
