"""Decomposition of the drop under `restart` into unfamiliarity and content, and what other restarts add to it.

A benchmark declares the condition of its problems (`ghosttrace.bench.benchmark.Condition`): its mementos omit a value
that the answer needs, or the retained text suffices. Within a family of conditions

- total: restart - memento where a needed value is omitted;
- unfamiliarity: restart - memento where the retained text suffices: a sealed cache lacks nothing there, so a drop is
  the cost of a kind of cache that the model does not know;
- content: total - unfamiliarity, two effects on different problems;
- delimiters: restart-bare - restart, what a restart without the block delimiters adds;
- position (sealed), position (open): restart-renumbered - restart, rerotated - memento: what closed-up positions add;
- interaction: the delimiters where a value is omitted minus the delimiters where the text suffices;
- swap: share of answers that follow the donor; null swap: where the retained text suffices, the share of answers that
  differ from those under memento.

Differences of accuracies add up only above the floor. A component cannot be told where its interval includes the loss
of all accuracy that was left to lose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from ghosttrace.ablation.contrasts import (
    LOWERS,
    NO_EFFECT,
    NOT_MEASURED,
    UNTOLD,
    ConditionScores,
    Contrast,
    Verdict,
    equivalent_words,
    is_equivalent,
    judge,
)
from ghosttrace.ablation.decomposable import check_conditions, check_sealing
from ghosttrace.errors import UserError
from ghosttrace.runs.folder import REFERENCE_ARM

COLUMNS = ["bench", "arm", "problem", "cluster", "repetition", "correct", "extracted", "answer", "donor_answer"]
"""Columns of the samples that a decomposition reads."""
ADDITIONS = {
    "delimiters": ("restart-bare", "restart"),
    "position (sealed)": ("restart-renumbered", "restart"),
    "position (open)": ("rerotated", REFERENCE_ARM),
}
"""Arm and its reference of each component that a run compares within one condition, beside the drop itself."""
FOLLOWS, CHANGES = "answers follow the donor", "changes answers"


@dataclass(frozen=True)
class Component:
    """One component of a decomposition; a row of the table.

    Attributes:
        bench: The condition.
        component: Name of the component.
        compared_with: The condition whose effect was subtracted; None within one condition.
        verdict: What the component shows, in a few words.
        note: What limits the verdict or explains it; may be empty.
        estimate, low, high: Estimate and 95 % interval, as a difference of accuracies or, for swap, as a share; None if
            not measured.
        tested_low, tested_high: The 90 % interval of two one-sided tests at 5 %.
        n_problems, n_clusters: Number of problems and of resampled clusters, of both conditions if there are two.
    """

    bench: str
    component: str
    compared_with: str | None
    verdict: str
    note: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    tested_low: float | None = None
    tested_high: float | None = None
    n_problems: int | None = None
    n_clusters: int | None = None


def decompose(samples: pd.DataFrame, configuration: Mapping[str, Any]) -> pd.DataFrame:
    """Return the decomposition of every family of conditions that a run holds.

    Args:
        samples: One row per sample, with `COLUMNS`.
        configuration: Content of run.json.

    Returns:
        One row per component (see `Component`); benchmarks without a condition are left out.

    Raises:
        UserError: No benchmark omits a needed value, the run sealed only a part of the cache, its mementos are not
            what stays, or it lacks the arm `restart`.
    """
    benches = configuration["benches"]
    check_conditions([bench.get("condition") for bench in benches.values()])
    check_sealing(configuration["settings"]["part"], "law" in configuration)
    if "restart" not in configuration["arms"]:
        raise UserError("a decomposition needs the arm restart: add it to the arms, and repeat the run")
    margin = configuration["settings"].get("margin")
    bare = not configuration["policy"]["mask_delimiters"]
    by_bench = dict(list(samples.groupby("bench", sort=False)))
    conditions = [
        ConditionScores(name, **bench["condition"], derivable=bench["ceiling"] == 1.0, samples=by_bench[name])
        for name, bench in benches.items()
        if bench.get("condition") is not None
    ]
    families = {each.family for each in conditions if each.omits_needed}
    rows = [
        asdict(component)
        for family in dict.fromkeys(each.family for each in conditions)
        if family in families
        for component in _family([each for each in conditions if each.family == family], margin, bare)
    ]
    return pd.DataFrame(rows)


def _family(conditions: list[ConditionScores], margin: float | None, bare: bool) -> Iterator[Component]:
    """Yield the components of one family of conditions.

    Args:
        conditions: The conditions of the family.
        margin: Margin of equivalence in points; None for no test.
        bare: Whether the policy keeps delimiters, so that `restart-bare` differs from `restart`.
    """
    sufficient = [each for each in conditions if not each.omits_needed]
    for condition in conditions:
        drop = _drop(condition)
        name = "total" if condition.omits_needed else "unfamiliarity"
        yield _component(condition, name, drop, judge(drop, margin, REFERENCE_ARM))
        if condition.omits_needed:
            yield from _content(condition, sufficient, margin)
        for name, arms in ADDITIONS.items():
            yield _within(condition, name, arms, margin, bare)
        if condition.omits_needed:
            for other in sufficient:
                yield _interaction(condition, other, margin)
        yield _swap(condition, margin, bool(sufficient))


def _drop(condition: ConditionScores) -> Contrast:
    drop = condition.contrast("restart", REFERENCE_ARM)
    assert drop is not None  # `decompose` has checked that the arm was run
    return drop


def _content(
    condition: ConditionScores, sufficient: list[ConditionScores], margin: float | None
) -> Iterator[Component]:
    """Yield the content against each condition in which the retained text suffices."""
    if not sufficient:
        reason = f"no condition of {condition.family} whose retained text suffices was run, so content and"
        yield _component(condition, "content", None, Verdict(UNTOLD, f"{reason} unfamiliarity cannot be separated"))
    for other in sufficient:
        total, unfamiliarity = _drop(condition), _drop(other)
        cost = min(0.0, unfamiliarity.effect.value)  # where restart helps, memento still has no more to lose
        content = total.minus(unfamiliarity, total.left_to_lose + cost)
        verdict = judge(content, margin, f"unfamiliarity on {other.name}" if cost else REFERENCE_ARM)
        notes = [verdict.note]
        if content.drop and unfamiliarity.drop and content.at_floor:
            notes.append("at least so much, because nothing is left to lose")
        if content.drop and condition.derivable:
            notes.append("the prompt determines the omitted value, so it is the cost of working it out again")
        verdict = Verdict(verdict.verdict, "; ".join(filter(None, notes)))
        yield _component(condition, "content", content, verdict, other)


def _within(
    condition: ConditionScores, name: str, arms: tuple[str, str], margin: float | None, bare: bool
) -> Component:
    """Return a component that compares two arms within one condition."""
    contrast = condition.contrast(*arms)
    if contrast is None:
        erased = arms[0] == "restart-bare" and not bare
        note = "this policy erases the delimiters with their block" if erased else f"{' or '.join(arms)} was not run"
        return _component(condition, name, None, Verdict(NOT_MEASURED, note))
    return _component(condition, name, contrast, judge(contrast, margin, arms[1]))


def _interaction(condition: ConditionScores, other: ConditionScores, margin: float | None) -> Component:
    """Return by how much the delimiters cost more or less where a value is omitted than where the text suffices."""
    arms = ADDITIONS["delimiters"]
    here, there = condition.contrast(*arms), other.contrast(*arms)
    if here is None or there is None:
        return _component(
            condition, "interaction", None, Verdict(NOT_MEASURED, "the delimiters were not measured"), other
        )
    difference, cost = here.minus(there, 1.0), -min(here.effect.value, there.effect.value)
    least = min(here, there, key=lambda contrast: contrast.left_to_lose)
    if least.left_to_lose < cost or (least.at_floor and not least.drop):
        left = f"restart leaves {100 * least.left_to_lose:.1f} points to lose in one of the conditions"
        return _component(condition, "interaction", difference, Verdict(UNTOLD, left), other)
    verdict = judge(difference, margin, "restart")
    more = "more" if verdict.verdict == LOWERS else "less"
    if not difference.effect.low <= 0 <= difference.effect.high:
        words = f"delimiters cost {more} where a value is omitted"
        verdict = Verdict(words, verdict.note)
    return _component(condition, "interaction", difference, verdict, other)


def _swap(condition: ConditionScores, margin: float | None, null_donors: bool) -> Component:
    """Return the share of answers that follow the donor, or that a null donor changes.

    Args:
        condition: The condition.
        margin: Margin of equivalence in points; None for no test.
        null_donors: Whether a condition of the family was run in which nothing needed is omitted.
    """
    swapped = condition.swapped.fillna({"extracted": "", "unswapped": ""})
    if condition.omits_needed:
        name, chance = "swap", float((swapped["unswapped"] == swapped["donor_answer"]).mean())
        found, words = swapped["extracted"] == swapped["donor_answer"], FOLLOWS
    else:
        name, chance = "null swap", 0.0
        found, words = swapped["extracted"] != swapped["unswapped"], CHANGES
    share = condition.swapped_share(found)
    if share is None:
        return _component(condition, name, None, Verdict(NOT_MEASURED, "swap was not run, or changed no memento"))
    if share.effect.low > chance:
        verdict = Verdict(words, "" if null_donors else "no null donors were run")
    elif margin is not None and is_equivalent(share.tested, margin):
        verdict = Verdict(equivalent_words(margin))
    else:
        verdict = Verdict(NO_EFFECT, "equivalence was not tested: no margin was set" if margin is None else "")
    return _component(condition, name, share, verdict)


def _component(
    condition: ConditionScores,
    name: str,
    contrast: Contrast | None,
    verdict: Verdict,
    compared_with: ConditionScores | None = None,
) -> Component:
    other = None if compared_with is None else compared_with.name
    component = Component(condition.name, name, other, verdict.verdict, verdict.note)
    if contrast is None:
        return component
    return replace(
        component,
        estimate=contrast.effect.value,
        low=contrast.effect.low,
        high=contrast.effect.high,
        tested_low=contrast.tested.low,
        tested_high=contrast.tested.high,
        n_problems=contrast.n_problems,
        n_clusters=contrast.n_clusters,
    )
