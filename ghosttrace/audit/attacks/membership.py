"""`membership`: was it this secret, or another? The likelihood ratio that a probe gives the claim.

Half of the traces, drawn at random, are shown with the secret that they hold, the others with one that
they do not; each counts once, so that all are independent. The threshold is set on validation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ghosttrace.audit.evidence import Estimate, Evidence, rate_of
from ghosttrace.audit.exhibit import Exhibit, where
from ghosttrace.errors import UserError
from ghosttrace.probe.sweep import Site

NAME = "membership"
RATES = (0.01, 0.001)  # false alarms an attacker may make


@dataclass(frozen=True)
class Claims:
    """Scores of claims, higher where they are believed: float[n] present, float[m] absent."""

    present: np.ndarray
    absent: np.ndarray


def membership(
    exhibit: Exhibit, secret: str, site: Site, said: Mapping[str, list[np.ndarray]], fpr: float = RATES[0]
) -> list[Evidence]:
    """AUC, rate of right claims at a given rate of false ones, and a lower bound on epsilon.

    Args:
        exhibit: what to attack.
        secret: which secret.
        site: where the probe looked.
        said: by condition, its posteriors of the secret's parts, see `Exhibit.posteriors`.
        fpr: how many of the false claims may be believed.

    Raises:
        UserError: validation has too few traces for the rate of false claims.
    """
    found = []
    for condition, parts in said.items():
        rng = np.random.default_rng([exhibit.settings.seed, 0x3E3B])
        chosen, judged = (
            _claims(exhibit, secret, parts, part, rng) for part in (exhibit.split.validation, exhibit.split.test)
        )
        if len(chosen.absent) * fpr < 1:
            raise UserError(
                f"{len(chosen.absent)} false claims on validation cannot set a threshold for a rate of {fpr:g}: "
                f"give {int(np.ceil(len(exhibit.task.samples) / fpr / max(1, len(chosen.absent))))} samples, "
                "or a higher --fpr"
            )
        n, place = len(judged.present) + len(judged.absent), where(site)
        found.append(Evidence(NAME, secret, condition, "AUC", auc(judged), n, 0.5, site=place))
        for rate in [r for r in sorted({fpr, *RATES}, reverse=True) if r <= fpr and len(chosen.absent) * r >= 1]:
            right, false = rates(judged, threshold(chosen.absent, rate))
            note = f"at {rate:.1%} false claims on validation, {false.value:.1%} on test"
            found.append(Evidence(NAME, secret, condition, "TPR", right, n, rate, site=place, note=note))
        bound, ceiling = epsilon(chosen, judged)
        note = f"ceiling {ceiling:.2f} with so many traces"
        found.append(Evidence(NAME, secret, condition, "epsilon", bound, n, site=place, note=note))
    return found


def _claims(
    exhibit: Exhibit, secret: str, said: list[np.ndarray], part: np.ndarray, rng: np.random.Generator
) -> Claims:
    """Half of a part's traces with their own secret, half with that of another trace which differs."""
    rows = rng.permutation(exhibit.known(secret, part))
    half = len(rows) // 2
    asked = exhibit.parts(secret)
    own = np.stack([one.labels[rows] for one in asked], axis=1)
    claimed = own.copy()
    for place in range(half, len(rows)):
        others = np.flatnonzero((own != own[place]).any(axis=1))
        claimed[place] = own[rng.choice(others)]
    ratio = np.zeros(len(rows))
    for column, one in enumerate(asked):
        gained = said[column][rows] - one.text[rows]
        ratio += gained[np.arange(len(rows)), claimed[:, column]]
    return Claims(ratio[:half], ratio[half:])


def auc(claims: Claims) -> Estimate:
    """Mann and Whitney's share of right orders, ties half; its interval and p-value from DeLong's variance.

    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44, 837-845.
    """
    above = np.sign(claims.present[:, None] - claims.absent[None]) / 2 + 0.5
    value = float(above.mean())
    error = float(np.sqrt(above.mean(1).var(ddof=1) / above.shape[0] + above.mean(0).var(ddof=1) / above.shape[1]))
    if error == 0:
        return Estimate(value, value, value, float(value <= 0.5))
    reach = 1.96 * error
    return Estimate(
        value, max(0.0, value - reach), min(1.0, value + reach), float(stats.norm.sf((value - 0.5) / error))
    )


def threshold(absent: np.ndarray, rate: float) -> float:
    """The least score that at most this share of false claims exceeds."""
    allowed = int(np.floor(rate * len(absent)))
    return float(np.sort(absent)[::-1][allowed])


def rates(claims: Claims, least: float) -> tuple[Estimate, Estimate]:
    """Shares of right and of false claims with scores above a threshold."""
    right, false = (int((scores > least).sum()) for scores in (claims.present, claims.absent))
    return rate_of(right, len(claims.present)), rate_of(false, len(claims.absent))


def epsilon(chosen: Claims, judged: Claims) -> tuple[Estimate, float]:
    """A lower bound on the epsilon of differential privacy, and the highest that so many traces could show.

    At the threshold that looks best on `chosen`, the rates of `judged` are bounded by Clopper and Pearson,
    each at 97.5 % (Nasr et al. 2021, arXiv 2101.04535, section 4). The estimate is the bound itself.
    """
    candidates = np.unique(np.concatenate([chosen.present, chosen.absent]))
    candidates = candidates[:: max(1, len(candidates) // 200)]
    looks = [_bound(rates(chosen, float(least))) for least in candidates]
    bound = _bound(rates(judged, float(candidates[int(np.argmax(looks))])))
    n, m = len(judged.present), len(judged.absent)
    ceiling = float(np.log(0.025 ** (1 / n) / (1 - 0.025 ** (1 / m))))
    return Estimate(bound, bound, ceiling), ceiling


def _bound(found: tuple[Estimate, Estimate]) -> float:
    right, false = found
    claimed = np.log(right.low / false.high) if right.low > 0 else 0.0
    denied = np.log((1 - false.high) / (1 - right.low)) if right.low < 1 and false.high < 1 else 0.0
    return float(max(0.0, claimed, denied))
