"""Decomposition of a drop under `restart`: samples of known composition, what cannot be told, and the conditions."""

import numpy as np
import pandas as pd
import pytest
from helpers.decompositions import NEEDED, SUFFICIENT, configuration, draw_samples

from ghosttrace.ablation.contrasts import LOWERS, NO_EFFECT, NOT_MEASURED, RAISES, UNTOLD
from ghosttrace.ablation.decomposition import FOLLOWS, decompose
from ghosttrace.bench import GENERATED_BENCHES, decomposable_groups
from ghosttrace.errors import UserError
from ghosttrace.paired import difference_of_effects
from ghosttrace.stats import Estimate

EQUIVALENT = "equivalent to zero within ±10 points"
ABSENT = {NO_EFFECT, EQUIVALENT}


def accuracies(
    content: float = 0.0, unfamiliarity: float = 0.0, delimiters: float = 0.0, position: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return the accuracy by condition and arm if the channel carries `content` and these things cost that much."""
    found = {}
    for bench in (SUFFICIENT, NEEDED):
        restart = 0.9 - unfamiliarity - (content if bench == NEEDED else 0.0)
        arms = {"memento": 0.9, "restart": restart, "restart-bare": restart - delimiters}
        arms |= {"restart-renumbered": restart - position, "rerotated": 0.9 - position}
        found[bench] = arms | {"swap": content if bench == NEEDED else 0.0}
    return found


def truth(bench: str, component: str, cost: dict[str, float]) -> float:
    """Return the true value of a component."""
    if component in ("swap", "total", "content", "unfamiliarity"):
        content, unfamiliarity = (-cost.get(name, 0.0) for name in ("content", "unfamiliarity"))
        return {"swap": -content, "total": content + unfamiliarity, "content": content}.get(component, unfamiliarity)
    return -cost.get("delimiters" if component == "delimiters" else "position", 0.0) * component.startswith(
        ("delimiters", "position")
    )


COMPOSITIONS: dict[str, dict[str, float]] = {
    "nothing": {},
    "content": {"content": 0.6},
    "unfamiliarity": {"unfamiliarity": 0.4},
    "delimiters": {"delimiters": 0.3},
    "position": {"position": 0.3},
    "content and unfamiliarity": {"content": 0.35, "unfamiliarity": 0.3},
    "all": {"content": 0.25, "unfamiliarity": 0.2, "delimiters": 0.2, "position": 0.2},
}


@pytest.mark.parametrize("cluster_size", [1, 2])
def test_components_cover_their_truth_and_the_others_are_absent(cluster_size: int) -> None:
    """Intervals of 95 % cover at least 93 %, components that are there are found, others are called by chance alone."""
    rng, covered, missed, called, absent = np.random.default_rng(cluster_size), [], [], [], []
    for cost in COMPOSITIONS.values():
        for _ in range(2):
            samples = draw_samples(rng, accuracies(**cost), 160, cluster_size)
            for row in decompose(samples, configuration()).to_dict("records"):
                true = truth(row["bench"], row["component"], cost)
                covered.append(row["low"] - 1e-9 <= true <= row["high"] + 1e-9)
                called_now = row["verdict"] not in ABSENT
                (missed if true else called).append(called_now != bool(true))
                if not true and not called_now:
                    absent.append(row["verdict"] == EQUIVALENT)
    assert np.mean(covered) >= 0.93
    assert np.mean(missed) <= 0.02 and np.mean(called) <= 0.05
    if cluster_size == 1:
        assert np.mean(absent) >= 0.7
    assert len(missed) == 50 and len(called) == 118


def rows(samples: pd.DataFrame, **settings: object) -> pd.DataFrame:
    """Return the decomposition by benchmark and component."""
    return decompose(samples, configuration(**settings)).set_index(["bench", "component"])  # type: ignore[arg-type]


def test_content_is_total_minus_unfamiliarity_on_the_problems_of_both() -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.4, unfamiliarity=0.2), 120, 2)
    table = rows(samples)
    total, unfamiliarity, content = (
        table.loc[key] for key in ((NEEDED, "total"), (SUFFICIENT, "unfamiliarity"), (NEEDED, "content"))
    )
    assert content["estimate"] == pytest.approx(total["estimate"] - unfamiliarity["estimate"])
    assert content["high"] - content["low"] > max(each["high"] - each["low"] for each in (total, unfamiliarity))
    assert (total["n_problems"], total["n_clusters"]) == (120, 60)
    assert (content["n_problems"], content["n_clusters"], content["compared_with"]) == (240, 120, SUFFICIENT)


def test_difference_of_effects_combines_distances_as_independent_errors() -> None:
    combined = difference_of_effects(Estimate(-0.5, -0.8, -0.46), Estimate(-0.1, -0.13, 0.3))
    assert combined.value == pytest.approx(-0.4)
    assert combined.low == pytest.approx(-0.4 - np.hypot(0.3, 0.4))
    assert combined.high == pytest.approx(-0.4 + np.hypot(0.04, 0.03))


def test_without_text_that_suffices_content_and_unfamiliarity_cannot_be_separated() -> None:
    samples = draw_samples(np.random.default_rng(0), {NEEDED: accuracies(content=0.5)[NEEDED]})
    table = rows(samples, benches=(NEEDED,)).loc[NEEDED]
    assert table.loc["total", "verdict"] == LOWERS
    assert table.loc["content", "verdict"] == UNTOLD and pd.isna(table.loc["content", "estimate"])
    assert "content and unfamiliarity cannot be separated" in table.loc["content", "note"]
    assert table.loc["swap", ["verdict", "note"]].tolist() == [FOLLOWS, "no null donors were run"]
    assert not {"interaction", "unfamiliarity"} & set(table.index)


def test_content_cannot_be_told_where_unfamiliarity_leaves_nothing_to_lose() -> None:
    """As with `toy-open`: a drop to the floor in both conditions, and all answers follow the donor."""
    wanted = accuracies(unfamiliarity=0.89)
    wanted[NEEDED]["swap"] = 1.0
    table = rows(draw_samples(np.random.default_rng(0), wanted))
    content = table.loc[(NEEDED, "content")]
    assert content["verdict"] == UNTOLD and f"unfamiliarity on {SUFFICIENT} leaves" in content["note"]
    assert table.loc[(NEEDED, "delimiters"), "verdict"] == UNTOLD
    assert table.loc[(NEEDED, "interaction"), "verdict"] == UNTOLD
    assert table.loc[(NEEDED, "swap"), "verdict"] == FOLLOWS


def test_content_cannot_be_told_where_memento_itself_fails() -> None:
    """As with `toy-sealed`: restart helps where the text suffices, and there was no content that it could remove."""
    arms = {"memento": 0.02, "restart-bare": 0.02, "restart-renumbered": 0.02, "rerotated": 0.02, "swap": 0.0}
    samples = draw_samples(
        np.random.default_rng(0), {SUFFICIENT: arms | {"restart": 0.95}, NEEDED: arms | {"restart": 0.1}}
    )
    table = rows(samples)
    assert table.loc[(SUFFICIENT, "unfamiliarity"), "verdict"] == RAISES
    content = table.loc[(NEEDED, "content")]
    assert content["high"] < -0.5 and content["verdict"] == UNTOLD
    assert content["note"].startswith("memento leaves") and content["note"].endswith("less than the difference")


def test_content_down_to_the_floor_is_a_lower_bound() -> None:
    wanted = accuracies(content=0.5, unfamiliarity=0.4)
    content = rows(draw_samples(np.random.default_rng(0), wanted)).loc[(NEEDED, "content")]
    assert content["verdict"] == LOWERS and "at least so much" in content["note"]


def test_drop_where_the_prompt_determines_the_value_is_no_missing_information() -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.5))
    assert "working it out again" in rows(samples, ceiling=1.0).loc[(NEEDED, "content"), "note"]
    assert "working it out again" not in rows(samples).loc[(NEEDED, "content"), "note"]


@pytest.mark.parametrize("here, there, words", [(0.4, 0.0, "more"), (0.0, 0.4, "less")])
def test_interaction_of_delimiters_is_reported(here: float, there: float, words: str) -> None:
    wanted = accuracies()
    wanted[NEEDED]["restart-bare"] -= here
    wanted[SUFFICIENT]["restart-bare"] -= there
    found = rows(draw_samples(np.random.default_rng(0), wanted)).loc[(NEEDED, "interaction")]
    assert found["verdict"] == f"delimiters cost {words} where a value is omitted"
    assert found["low"] <= there - here <= found["high"]


def test_interaction_cannot_be_told_where_one_condition_is_at_the_floor() -> None:
    """Nothing can be lost at the floor, so that the delimiters seem to cost less there."""
    wanted = accuracies(content=0.85, delimiters=0.2)
    wanted[NEEDED]["restart-bare"] = 0.05
    found = rows(draw_samples(np.random.default_rng(0), wanted)).loc[(NEEDED, "interaction")]
    assert found["low"] > 0 and found["verdict"] == UNTOLD and "points to lose" in found["note"]


def test_no_effect_and_equivalent_are_two_verdicts() -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.5))
    with_margin, narrow, without = (rows(samples, margin=margin) for margin in (10.0, 1.0, None))
    key = (SUFFICIENT, "unfamiliarity")
    assert with_margin.loc[key, "verdict"] == EQUIVALENT
    assert narrow.loc[key, ["verdict", "note"]].tolist() == [NO_EFFECT, ""]
    assert without.loc[key, ["verdict", "note"]].tolist() == [
        NO_EFFECT,
        "equivalence was not tested: no margin was set",
    ]


def test_equivalence_is_not_claimed_where_less_than_the_margin_is_left_to_lose() -> None:
    wanted = accuracies(content=0.82)
    found = rows(draw_samples(np.random.default_rng(0), wanted, 400)).loc[(NEEDED, "delimiters")]
    assert found["verdict"] == NO_EFFECT and "within the margin" in found["note"]


def test_gain_is_called_a_gain() -> None:
    wanted = accuracies(unfamiliarity=0.4, position=-0.3)
    table = rows(draw_samples(np.random.default_rng(0), wanted))
    assert table.loc[(SUFFICIENT, "position (sealed)"), "verdict"] == RAISES


def test_arms_that_were_not_run_are_named() -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.5))
    table = rows(samples[samples["arm"].isin(["memento", "restart"])])
    assert table.loc[(NEEDED, "content"), "verdict"] == LOWERS
    for name in ("delimiters", "position (sealed)", "position (open)", "interaction", "swap"):
        assert table.loc[(NEEDED, name), "verdict"] == NOT_MEASURED
    assert table.loc[(NEEDED, "delimiters"), "note"] == "restart-bare or restart was not run"


def test_wrong_answers_of_memento_that_equal_the_donor_are_no_evidence() -> None:
    """A model that answers "2" by itself does not follow the donor."""
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.5))
    samples.loc[samples["bench"] == NEEDED, ["extracted", "correct"]] = ["2", False]
    assert rows(samples).loc[(NEEDED, "swap"), "verdict"] != FOLLOWS


def test_null_donors_that_change_answers_are_reported() -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies(content=0.5))
    null = (samples["bench"] == SUFFICIENT) & (samples["arm"] == "swap")
    samples.loc[null, "extracted"] = None
    found = rows(samples).loc[(SUFFICIENT, "null swap")]
    assert (found["estimate"], found["verdict"]) == (1.0, "changes answers")
    samples.loc[samples["bench"] == SUFFICIENT, "extracted"] = None
    assert rows(samples).loc[(SUFFICIENT, "null swap"), "estimate"] == 0.0


def test_generated_benchmarks_declare_their_conditions() -> None:
    declared = {name: make(1, 0).condition for name, make in GENERATED_BENCHES.items()}
    omitting = {name for name, condition in declared.items() if condition is not None and condition.omits_needed}
    assert omitting == {"ledger-h1", "ledger-h2", "ledger-h3", "story-needed-derived", "story-needed-observed"}
    families = {condition.family for condition in declared.values() if condition is not None}
    assert families == {"ledger", "story-derived", "story-observed"}
    assert decomposable_groups() == ["ledger", "story"]


@pytest.mark.parametrize("benches", [(SUFFICIENT,), ()])
def test_benchmark_that_omits_nothing_needed_is_refused(benches: tuple[str, ...]) -> None:
    samples = draw_samples(np.random.default_rng(0), accuracies())
    with pytest.raises(UserError, match="give --bench ledger or story"):
        decompose(samples, configuration(benches=benches))
