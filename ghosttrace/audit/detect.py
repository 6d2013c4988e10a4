"""The smallest leak that a run could have seen: leaks of known size put into caches that have none.

A code is written into a sealed cache's states along random directions: with some probability the true
label of a secret's first part, else one drawn at random, so that the bits it holds are known. What an
attacker who learns on as many traces finds of it says what the run would have seen.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import entropy
from torch import Tensor

from ghosttrace.audit.evidence import mean_of
from ghosttrace.audit.exhibit import Exhibit
from ghosttrace.probe.cells import linear_scores
from ghosttrace.probe.evidence import Asked
from ghosttrace.probe.sweep import Site

TRIALS = 10
SEEN = 8  # of the trials, for a leak to count as one that would have been seen
STRENGTH = 3.0  # of the code's directions, relative to the states' spread
LEAST = 1e-3  # spread of the states that a code is written for, relative to their size
LADDER = (1.0, 2.0, 5.0, 10.0)  # times the leak that the gate allows


def detectable(exhibit: Exhibit, secret: str, site: Site, max_leak: float) -> float | None:
    """The least of some leaks, in bits a secret, that 8 of 10 runs like this one tell from none.

    Args:
        exhibit: whose sealed cache the leaks are put into.
        secret: whose first part is leaked.
        site: where.
        max_leak: the leaks tried are multiples of it.

    Returns:
        None if none of them is seen, or none is possible.
    """
    asked = exhibit.asked[exhibit.secrets[secret][0]]
    states = site.read(exhibit.features["sealed"])
    most = np.log2(asked.text.shape[1])
    for level in (max_leak * times for times in LADDER):
        if level < most and trials(exhibit, asked, states, level) >= SEEN:
            return float(level)
    return None


def trials(exhibit: Exhibit, asked: Asked, states: Tensor, bits: float) -> int:
    """How many of the trials see a leak of so many bits."""
    rng = np.random.default_rng([exhibit.settings.seed, 0xDE7])
    flat = replace(asked, text=np.full(asked.text.shape, -np.log(asked.text.shape[1])))
    features = torch.stack([inject(states, asked, bits, rng) for _ in range(TRIALS)])
    found = 0
    for (scores,) in linear_scores(features, [flat], exhibit.split, exhibit.device):
        cluster = exhibit.split.cluster[scores.sample]
        gained = mean_of(scores.log2p - scores.text_log2p, cluster, exhibit.alpha, np.inf)
        found += gained.low > 0
    return found


def inject(states: Tensor, asked: Asked, bits: float, rng: np.random.Generator) -> Tensor:
    """States, float[N, d], with a code of so many bits of a uniform label written into them."""
    classes = asked.text.shape[1]
    honest = honesty(bits, classes)
    n = len(states)
    shown = np.where(rng.random(n) < honest, asked.labels, rng.integers(0, classes, n))
    directions = torch.from_numpy(rng.standard_normal((classes, states.shape[1]))).to(states)
    spread = states.std(0, correction=0).mean()
    least = LEAST * states.square().mean().sqrt()  # where nothing varies, as in a delimiter's first layer
    return states + STRENGTH * torch.maximum(spread, least) * directions[torch.from_numpy(shown)]


def honesty(bits: float, classes: int) -> float:
    """The probability with which the true label must be written for the code to hold so many bits."""

    def held(share: float) -> float:
        said = np.full(classes, (1 - share) / classes)
        said[0] += share
        return float(np.log2(classes) - entropy(said, base=2))

    return float(brentq(lambda share: held(share) - bits, 0.0, 1.0))
