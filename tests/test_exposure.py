"""The share of traces whose whole secret is guessed, against a loop over traces, and its null distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ghosttrace.auditing.evidence import one_row_per_cluster
from ghosttrace.auditing.exposure import exposed_traces


def part(guess: np.ndarray, text: np.ndarray, hit: np.ndarray) -> dict[str, np.ndarray]:
    """Return the row of one part of a secret; `guess` and `text` are probabilities of the guessed label."""
    columns = {"guess_log2p": np.log2(guess), "guess_text_log2p": np.log2(text), "hit": hit}
    return {"sample": np.arange(len(hit)), "text_log2p": np.full(len(hit), -10.0), **columns}


@given(st.integers(0, 2**32 - 1))
def test_share_equals_a_loop_over_one_trace_per_cluster(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, cluster = 40, rng.integers(0, 12, 40)
    parts = [
        part(rng.choice([0.3, 0.8, 0.99], n), rng.choice([0.05, 0.1, 0.9], n), rng.random(n) < 0.7) for _ in range(2)
    ]
    exposed, chance = 0, 0.0
    rows = one_row_per_cluster(np.arange(n), cluster, 3)
    for row in rows:
        guess = np.prod([2.0 ** p["guess_log2p"][row] for p in parts])
        text = np.prod([2.0 ** p["guess_text_log2p"][row] for p in parts])
        if guess >= 0.5 and guess / text >= 8:
            exposed += all(p["hit"][row] for p in parts)
            chance += text / len(rows)
    estimate, drawn = exposed_traces(parts, cluster, 0.05, 3)
    interval = stats.binomtest(exposed, len(rows)).proportion_ci(0.95, "exact")
    assert drawn == len(rows) == len(np.unique(cluster))
    assert estimate.value == pytest.approx(exposed / len(rows) - chance)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low - chance, interval.high - chance))


def test_bit_leaking_in_few_traces_is_exposed() -> None:
    """A secret of one bit counts too, although no guess of it can be three bits more probable."""
    n, leaking = 1000, np.arange(1000) < 50
    bit = part(np.where(leaking, 0.999, 0.5), np.full(n, 0.5), leaking | (np.arange(n) % 2 == 0)) | {
        "text_log2p": np.full(n, -1.0)
    }
    estimate, _ = exposed_traces([bit], np.arange(n), 0.05)
    assert estimate.value == pytest.approx(0.025) and estimate.low > 0.01


def test_no_trace_with_all_parts_bounds_nothing() -> None:
    first, second = (part(np.full(1, 0.9), np.full(1, 0.1), np.ones(1, dtype=bool)) for _ in range(2))
    estimate, n = exposed_traces([first, second | {"sample": np.array([7])}], np.arange(9), 0.05)
    assert (n, estimate.low, estimate.high, estimate.p) == (0, -np.inf, 1.0, 1.0)


def test_confident_guesses_of_a_probe_that_knows_nothing_expose_nothing() -> None:
    """An overconfident probe guesses 1 of 10 labels right by chance: in about 5 % of runs p is below 0.05."""
    rejected, n = 0, 400
    for seed in range(200):
        hit = np.random.default_rng(seed).random(n) < 0.1
        estimate, _ = exposed_traces([part(np.full(n, 0.9), np.full(n, 0.1), hit)], np.arange(n), 0.05)
        rejected += estimate.p <= 0.05
        assert estimate.low < 0.05
    assert rejected <= 18


def test_guesses_that_the_text_makes_as_well_do_not_count() -> None:
    n = 100
    by_text = part(np.full(n, 0.99), np.full(n, 0.9), np.ones(n, dtype=bool))
    assert exposed_traces([by_text], np.arange(n), 0.05)[0].value == 0
    few = np.arange(n) < 3
    by_cache = part(np.where(few, 0.99, 0.1), np.full(n, 0.1), few)
    estimate, _ = exposed_traces([by_cache], np.arange(n), 0.05)
    assert estimate.value == pytest.approx(0.03, abs=0.004) and estimate.low > 0 and estimate.p < 0.01
