"""Closed forms of `ghosttrace.ablation.power` against simulations."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from experiments import paper_power
from ghosttrace.ablation.power import (
    concentrated_effect,
    detectable,
    detectable_concentrated,
    half_width,
    interval_half_width,
    log_odds,
    population_with_effect,
    power,
    repetitions_needed,
    standard_error,
)
from ghosttrace.errors import UserError
from ghosttrace.paired import paired_effect, paired_p_value

ROOT = Path(__file__).parent.parent
DESIGNS = [(0.661, 0.153, 0.5), (0.661, 0.153, 1.0), (0.661, 0.05, 2.0), (0.3, 0.1, 4.0)]  # accuracy, effect, a + b


@cache
def shift(accuracy: float, effect: float, concentration: float) -> float:
    """Return the decrease of log odds that gives this effect, by bisection on 400,000 drawn problems."""
    theta = drawn(np.random.default_rng(9), accuracy, concentration, (400_000,))
    low, high = 0.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if (theta - expit(logit(theta) - middle)).mean() < effect else (low, middle)
    return low


def drawn(rng: np.random.Generator, accuracy: float, concentration: float, size: tuple[int, ...]) -> np.ndarray:
    return rng.beta(accuracy * concentration, (1 - accuracy) * concentration, size)


def simulated_scores(
    design: tuple[float, float, float], runs: int, problems: int, repetitions: int, arm_repetitions: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of both arms, float[runs, problems] each, with problems and answers drawn in each run."""
    accuracy, _, concentration = design
    rng = np.random.default_rng(seed)
    theta = drawn(rng, accuracy, concentration, (runs, problems))
    fallen = expit(logit(theta) - shift(*design))
    return rng.binomial(repetitions, theta) / repetitions, rng.binomial(arm_repetitions, fallen) / arm_repetitions


@pytest.mark.parametrize("design", DESIGNS)
def test_grid_equals_the_simulated_population(design: tuple[float, float, float]) -> None:
    accuracy, effect, concentration = design
    drop = population_with_effect(*design)
    assert drop.effect == pytest.approx(effect, abs=1e-9)
    assert drop.reference.mean() == pytest.approx(accuracy, abs=1e-5)
    assert (drop.arm <= drop.reference).all()
    theta = drawn(np.random.default_rng(1), accuracy, concentration, (400_000,))
    fallen = expit(logit(theta) - shift(*design))
    assert drop.paired_variance == pytest.approx(np.var(fallen - theta), rel=0.02)
    assert drop.unpaired_variance == pytest.approx(np.var(fallen) + np.var(theta), rel=0.01)
    noise, arm_noise = (theta * (1 - theta)).mean(), (fallen * (1 - fallen)).mean()
    assert drop.within_problem_variance(8, 64) == pytest.approx(noise / 8 + arm_noise / 64, rel=0.01)
    assert noise == pytest.approx(accuracy * (1 - accuracy) * concentration / (1 + concentration), rel=0.01)


def test_uniform_probabilities_have_a_closed_form() -> None:
    """Beta(1, 1): the mean of theta r / (1 - (1 - r) theta), r = exp(-delta), is an elementary integral."""
    odds = log_odds(0.5, 2.0)
    for delta in (0.1, 1.0, 3.0):
        r = np.exp(-delta)
        mean = -r / (1 - r) - r * np.log(r) / (1 - r) ** 2
        assert expit(odds - delta).mean() == pytest.approx(mean, abs=1e-6)


def test_probabilities_close_to_1_have_finite_log_odds() -> None:
    assert np.isfinite(log_odds(0.661, 0.1)).all()
    assert population_with_effect(0.661, 0.66, 0.1).effect == pytest.approx(0.66)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("repetitions", [(64, 8), (2, 5)])
def test_standard_errors(design: tuple[float, float, float], repetitions: tuple[int, int]) -> None:
    """Standard errors equal the spread over 10,000 simulated runs, on shared and on separate problems."""
    drop, n, runs = population_with_effect(*design), 30, 10_000
    within = drop.within_problem_variance(*repetitions)
    reference, arm = simulated_scores(design, runs, n, *repetitions)
    paired = (arm - reference).mean(axis=1).std()
    unpaired = (np.roll(arm, 1, axis=0) - reference).mean(axis=1).std()
    assert standard_error(n, drop.paired_variance, within) == pytest.approx(paired, rel=0.025)
    assert standard_error(n, drop.unpaired_variance, within) == pytest.approx(unpaired, rel=0.025)


@pytest.mark.parametrize("design", DESIGNS)
def test_paired_intervals_have_the_planned_width_and_coverage(design: tuple[float, float, float]) -> None:
    n, repetitions, runs = 30, 8, 400
    drop = population_with_effect(*design)
    planned = half_width(standard_error(n, drop.paired_variance, drop.within_problem_variance(repetitions)), n - 1)
    effects = [
        paired_effect(a, r) for r, a in zip(*simulated_scores(design, runs, n, repetitions, repetitions), strict=True)
    ]
    widths = np.array([e.high - e.low for e in effects]) / 2
    assert np.mean([e.low <= -drop.effect <= e.high for e in effects]) > 0.93
    assert widths.mean() == pytest.approx(interval_half_width(n, repetitions, drop), rel=0.05)
    on_many = widths[[not e.rests_on_few for e in effects]]
    assert len(on_many) < 40 or on_many.mean() == pytest.approx(planned, rel=0.08)


def detected(reference: np.ndarray, arm: np.ndarray) -> float:
    """Return the share of runs, float[runs, problems] each, whose t test finds a drop at 5 %, two-sided."""
    tests = stats.ttest_rel(arm, reference, axis=1)
    return float(np.mean((tests.pvalue <= 0.05) & (tests.statistic < 0)))


@pytest.mark.parametrize(("design", "problems", "repetitions"), [((0.661, 0.08, 2.0), 60, 8), ((0.3, 0.1, 4.0), 60, 4)])
def test_power_is_the_share_of_runs_that_find_the_effect(
    design: tuple[float, float, float], problems: int, repetitions: int
) -> None:
    runs, drop = 2000, population_with_effect(*design)
    promised = power(
        drop.effect,
        standard_error(problems, drop.paired_variance, drop.within_problem_variance(repetitions)),
        problems - 1,
    )
    reference, arm = simulated_scores(design, runs, problems, repetitions, repetitions)
    assert 0.6 < promised < 0.95
    assert detected(reference, arm) == pytest.approx(promised, abs=3.5 * np.sqrt(promised * (1 - promised) / runs))
    tests = [paired_p_value(a, r) <= 0.05 for r, a in zip(reference[:300], arm[:300], strict=True)]
    assert np.mean(tests) == pytest.approx(detected(reference[:300], arm[:300]), abs=0.03)


@pytest.mark.parametrize(("concentration", "spare"), [(0.5, 0.15), (1.0, 0.08), (2.0, 0.05)])
def test_power_is_conservative_on_few_u_shaped_problems(concentration: float, spare: float) -> None:
    """With skewed differences, an effect with predicted power 80 % is found slightly more often."""
    for repetitions in (8, 64):
        effect = detectable(0.661, 30, repetitions, concentration)
        assert effect is not None
        scores = simulated_scores((0.661, effect, concentration), 2000, 30, repetitions, repetitions)
        assert 0.77 < detected(*scores) < 0.8 + spare


def test_concentrated_effects_equal_a_simulation() -> None:
    """A random share of the problems fails entirely: moments, and the power of the smallest detectable drop."""
    rng, accuracy, problems, repetitions = np.random.default_rng(3), 0.661, 100, 8
    effect = detectable_concentrated(accuracy, problems, repetitions)
    assert effect is not None and effect > 1.5 * (detectable(accuracy, problems, repetitions) or 1)
    drop = concentrated_effect(accuracy, effect)
    theta = drawn(rng, accuracy, 1.0, (3000, problems))
    fallen = np.where(rng.random(theta.shape) < effect / accuracy, 0.0, theta)
    assert drop.effect == pytest.approx(effect, abs=1e-9)
    assert drop.paired_variance == pytest.approx(np.var(fallen - theta), rel=0.03)
    reference, arm = (rng.binomial(repetitions, p) / repetitions for p in (theta, fallen))
    assert detected(reference, arm) == pytest.approx(0.8, abs=0.05)
    assert detectable_concentrated(accuracy, 4, 8) is None


def test_power_of_a_t_test_on_normal_differences() -> None:
    rng = np.random.default_rng(2)
    for n, effect in ((5, 1.2), (30, 0.4), (30, 2.0)):
        x = rng.normal(effect, 1, (20_000, n))
        share = np.mean(x.mean(axis=1) / (x.std(axis=1, ddof=1) / np.sqrt(n)) > stats.t.ppf(0.975, n - 1))
        assert power(effect, 1 / np.sqrt(n), n - 1) == pytest.approx(share, abs=0.012)
    assert power(0.0, 1.0, 29) == pytest.approx(0.025)
    assert power(1.0, 0.001, 29) == 1


ANY = {
    "accuracy": st.floats(0.05, 0.95),
    "share": st.floats(0.02, 0.9),
    "concentration": st.floats(0.2, 8),
    "problems": st.integers(3, 500),
}


@settings(max_examples=40, deadline=None)
@given(**ANY)
def test_repetitions_needed_are_minimal(accuracy: float, share: float, concentration: float, problems: int) -> None:
    drop = population_with_effect(accuracy, share * accuracy, concentration)

    def power_at(repetitions: float) -> float:
        return power(
            drop.effect,
            standard_error(problems, drop.paired_variance, drop.within_problem_variance(repetitions)),
            problems - 1,
        )

    needed = repetitions_needed(problems, drop)
    if needed is None:
        assert power_at(1e12) < 0.8
    else:
        assert power_at(needed) >= 0.8 - 1e-9
        assert needed == 1 or power_at(needed - 1) < 0.8


@settings(max_examples=12, deadline=None)
@given(repetitions=st.integers(1, 64), accuracy=ANY["accuracy"], concentration=ANY["concentration"])
def test_detectable_effect_is_minimal(repetitions: int, accuracy: float, concentration: float) -> None:
    n, smallest = 30, detectable(accuracy, 30, repetitions, concentration)

    def power_at(effect: float) -> float:
        drop = population_with_effect(accuracy, effect, concentration)
        return power(effect, standard_error(n, drop.paired_variance, drop.within_problem_variance(repetitions)), n - 1)

    if smallest is None:
        assert max(power_at(share * accuracy) for share in np.linspace(0.01, 0.99, 20)) < 0.8
    else:
        assert power_at(smallest) == pytest.approx(0.8, abs=1e-6)
        assert all(power_at(share * smallest) < 0.8 for share in (0.1, 0.5, 0.9, 0.99))


def test_design_of_the_paper_by_hand() -> None:
    """Beta(0.661, 0.339): Var(theta) = E[theta (1 - theta)] = 0.661 * 0.339 / 2, so most of it between problems."""
    drop = population_with_effect(0.661, 0.153)
    assert np.var(drop.reference) == pytest.approx(0.661 * 0.339 / 2, rel=1e-3)
    assert drop.paired_variance < drop.unpaired_variance / 10
    unpaired = standard_error(30, drop.unpaired_variance, drop.within_problem_variance(64, 8))
    assert (
        half_width(unpaired, 58)
        > 0.153
        > half_width(standard_error(30, drop.paired_variance, drop.within_problem_variance(8)), 29)
    )


@pytest.mark.parametrize(
    ("accuracy", "effect", "concentration", "message"),
    [
        (0.0, 0.1, 1.0, "accuracy assumed"),
        (66.1, 0.1, 1.0, "accuracy assumed"),
        (0.661, 0.0, 1.0, "above 0 and below"),
        (0.661, 5.0, 1.0, "above 0 and below"),
        (0.661, 0.661, 1.0, "above 0 and below"),
        (0.661, float("nan"), 1.0, "above 0 and below"),
        (0.661, 0.1, 0.0, "concentration"),
    ],
)
def test_invalid_designs_are_refused(accuracy: float, effect: float, concentration: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        population_with_effect(accuracy, effect, concentration)
    with pytest.raises(UserError, match="at least 2"):
        standard_error(1, 0.1, 0.1)


RESULTS = pd.read_parquet(ROOT / "experiments" / "results" / "paper_power.parquet")
CELL = ["effect", "repetitions", "arm_repetitions", "way", "concentration"]


def recorded(column: str, way: str, repetitions: tuple[int, int], concentration: float, effect: float = 0.153) -> float:
    return 100 * RESULTS.set_index(CELL).loc[(effect, *repetitions, way, concentration), column]


@pytest.mark.parametrize("concentration", [0.5, 1.0, 2.0])
def test_recorded_simulation_agrees_with_the_closed_forms(concentration: float) -> None:
    rows = RESULTS[(RESULTS["concentration"] == concentration) & (RESULTS["repetitions"] >= 8)]
    paired, others = rows[rows["way"] == "paired"], rows[rows["way"] != "paired"]
    np.testing.assert_allclose(others["half_width"], others["planned_half_width"], rtol=0.06)
    assert (paired["half_width"] > 0.94 * paired["planned_half_width"]).all()
    assert (paired["detects"] > paired["planned_power"] - 0.07).all()  # sign flips find slightly less than a t test
    assert (paired["covers_population"] >= 0.93).all() and (paired["excludes_0"] <= paired["detects"] + 0.01).all()
    assert rows.loc[rows["way"] == "fixed", "covers_these_problems"].between(0.93, 0.97).all()


def test_experiment_reproduces_a_recorded_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same seeds and fewer runs, a recorded row is reproduced within its noise."""
    monkeypatch.setattr(paper_power, "RUNS", 300)
    for row in paper_power.simulate(0.153, 1.0, (64, 8)):
        half_width_recorded = recorded("half_width", row["way"], (64, 8), 1.0) / 100
        assert row["half_width"] == pytest.approx(half_width_recorded, rel=0.03)
        assert row["planned_half_width"] == pytest.approx(
            recorded("planned_half_width", row["way"], (64, 8), 1.0) / 100, rel=1e-9
        )
    assert paper_power.figure(RESULTS).axes[1].get_title() == "power"
