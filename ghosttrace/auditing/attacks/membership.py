"""`membership`: was it this secret, or another? The likelihood ratio that a probe gives the claim.

Half of the traces, drawn at random, are shown with the secret that they hold, the others with one that
they do not. The AUC is of all traces, and its interval knows which of them are not independent; thresholds,
rates and epsilon are of one trace a cluster. The threshold is set on validation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ghosttrace.auditing.context import Exhibit, where
from ghosttrace.auditing.evidence import Estimate, Evidence, one_each, rate_of
from ghosttrace.auditing.evidence import Site as Where
from ghosttrace.probing.sweep import Site
from ghosttrace.stats import unseen

NAME = "membership"
RATES = (0.01, 0.001)  # false alarms an attacker may make
ROUNDING = 1e-12  # of a standard error, below which there is none


@dataclass(frozen=True)
class Claims:
    """Scores of claims, higher where they are believed.

    Attributes:
        present, absent: float[n] and float[m].
        present_cluster, absent_cluster: int64[n] and int64[m], claims that are not independent; all are if None.
    """

    present: np.ndarray
    absent: np.ndarray
    present_cluster: np.ndarray | None = None
    absent_cluster: np.ndarray | None = None


def membership(
    exhibit: Exhibit, secret: str, site: Site, said: Mapping[str, list[np.ndarray]], fpr: float | None = None
) -> list[Evidence]:
    """AUC, rate of right claims at a given rate of false ones, and a lower bound on epsilon.

    Args:
        exhibit: what to attack.
        secret: which secret.
        site: where the probe looked.
        said: by condition, its posteriors of the secret's parts, see `Exhibit.posteriors`.
        fpr: how many of the false claims may be believed; 1 % unless told.

    Returns:
        The AUC alone where validation has too few independent traces to set a threshold, which its note says;
        nothing where no false claim can be made, as all traces hold the same secret.
    """
    found, split, seed = [], exhibit.split, exhibit.settings.seed
    fpr = RATES[0] if fpr is None else fpr
    every = {name: exhibit.known(secret, getattr(split, name)) for name in ("validation", "test")}
    single = {name: one_each(rows, split.cluster, seed) for name, rows in every.items()}
    for condition, parts in said.items():
        rng = np.random.default_rng([seed, 0x3E3B])
        whole = _claims(exhibit, secret, parts, every["test"], rng)
        chosen, judged = (_claims(exhibit, secret, parts, single[name], rng) for name in ("validation", "test"))
        if whole is None:
            continue
        n, place = len(every["test"]), where(site)
        few = "" if chosen and judged and len(chosen.absent) * fpr >= 1 else too_few(exhibit, chosen, fpr)
        found.append(Evidence(NAME, secret, condition, "AUC", auc(whole), n, 0.5, site=place, note=few))
        if chosen and judged and not few:
            found += _rates(secret, condition, chosen, judged, fpr, place)
    return found


def _rates(secret: str, condition: str, chosen: Claims, judged: Claims, fpr: float, place: Where) -> list[Evidence]:
    """What independent claims show: rates at thresholds set on other traces, and epsilon."""
    found, n = [], len(judged.present) + len(judged.absent)
    for rate in [r for r in sorted({fpr, *RATES}, reverse=True) if r <= fpr and len(chosen.absent) * r >= 1]:
        right, false = rates(judged, threshold(chosen.absent, rate))
        note = f"at {rate:.1%} false claims on validation, {false.value:.1%} on test"
        found.append(Evidence(NAME, secret, condition, "TPR", right, n, rate, site=place, note=note))
    bound, ceiling = epsilon(chosen, judged)
    note = f"ceiling {ceiling:.2f} with so many traces"
    return [*found, Evidence(NAME, secret, condition, "epsilon", bound, n, site=place, note=note)]


def too_few(exhibit: Exhibit, chosen: Claims | None, fpr: float) -> str:
    """Why no threshold was set."""
    claims = len(chosen.absent) if chosen else 0
    clusters = len(np.unique(exhibit.split.cluster))
    needed = int(np.ceil(clusters / fpr / max(1, claims)))
    return (
        f"{claims} independent false claims on validation cannot set a threshold for a rate of {fpr:g}: "
        f"give {needed} independent traces, or a higher --fpr"
    )


def _claims(
    exhibit: Exhibit, secret: str, said: list[np.ndarray], part: np.ndarray, rng: np.random.Generator
) -> Claims | None:
    """Half of a part's traces with their own secret, half with that of another trace which differs.

    None if there is no other, or one trace alone.
    """
    rows = rng.permutation(part)
    half = len(rows) // 2
    asked = exhibit.parts(secret)
    own = np.stack([one.labels[rows] for one in asked], axis=1)
    if not half or (own == own[0]).all():
        return None
    claimed = own.copy()
    for place in range(half, len(rows)):
        others = np.flatnonzero((own != own[place]).any(axis=1))
        claimed[place] = own[rng.choice(others)]
    ratio = np.zeros(len(rows))
    for column, one in enumerate(asked):
        gained = said[column][rows] - one.text[rows]
        ratio += gained[np.arange(len(rows)), claimed[:, column]]
    cluster = exhibit.split.cluster[rows]
    return Claims(ratio[:half], ratio[half:], cluster[:half], cluster[half:])


def auc(claims: Claims) -> Estimate:
    """Mann and Whitney's share of right orders, ties half; its interval and p-value respect clusters.

    DeLong's structural components are summed by cluster, whichever side its claims are on (Obuchowski 1997,
    Biometrics 53, 567-578). Where all clusters agree, the interval is what may have gone unseen.
    """
    n, m = len(claims.present), len(claims.absent)
    above = np.sign(claims.present[:, None] - claims.absent[None]) / 2 + 0.5
    value = float(above.mean())
    components = np.concatenate([(above.mean(1) - value) / n, (above.mean(0) - value) / m])
    number = _numbered(claims)
    count = int(number.max()) + 1
    sums = np.bincount(number, components)
    error = float(np.sqrt((sums**2).sum() * count / (count - 1))) if count > 1 else 0.0
    if error < ROUNDING:
        slack = unseen(count)
        return Estimate(
            value, value * (1 - slack), value + slack * (1 - value), float(0.5**count if value > 0.5 else 1)
        )
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(stats.t.sf((value - 0.5) / error, count - 1))
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), p)


def _numbered(claims: Claims) -> np.ndarray:
    """int64[n + m]: the cluster of each claim, counted from 0."""
    if claims.present_cluster is None or claims.absent_cluster is None:
        return np.arange(len(claims.present) + len(claims.absent))
    return np.unique(np.concatenate([claims.present_cluster, claims.absent_cluster]), return_inverse=True)[1]


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
    each at 97.5 % (Nasr et al. 2021, arXiv 2101.04535, section 4). The estimate is the bound itself, and what
    it bounds has no upper end.
    """
    candidates = np.unique(np.concatenate([chosen.present, chosen.absent]))
    candidates = candidates[:: max(1, len(candidates) // 200)]
    looks = [_bound(rates(chosen, float(least))) for least in candidates]
    bound = _bound(rates(judged, float(candidates[int(np.argmax(looks))])))
    n, m = len(judged.present), len(judged.absent)
    ceiling = float(np.log(0.025 ** (1 / n) / (1 - 0.025 ** (1 / m))))
    return Estimate(bound, bound, float("inf")), ceiling


def _bound(found: tuple[Estimate, Estimate]) -> float:
    right, false = found
    claimed = np.log(right.low / false.high) if right.low > 0 else 0.0
    denied = np.log((1 - false.high) / (1 - right.low)) if right.low < 1 and false.high < 1 else 0.0
    return float(max(0.0, claimed, denied))
