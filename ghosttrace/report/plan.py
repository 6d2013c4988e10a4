"""Rich tables of an ablation plan."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ghosttrace.report.tables import results_table

if TYPE_CHECKING:
    from ghosttrace.ablation.plan import Assumptions, Outlook, Plan

GIB = 2**30


def plan_findings(plan: "Plan") -> list[str]:
    """Return how many repetitions the effect needs, what the assumed number detects, and the plan's main limitation."""
    return power_findings(plan.assumptions, plan.spread, plan.concentrated)


def power_findings(assumptions: "Assumptions", spread_out: "Outlook", in_few: "Outlook") -> list[str]:
    """Return how many repetitions an effect needs, and the power of the assumed number.

    Args:
        assumptions: Problems, repetitions and effect.
        spread_out: What the run can detect if the effect is spread over the problems.
        in_few: What it can detect if a few problems carry the effect.
    """
    drop = f"a drop of {100 * assumptions.effect:g} points on {assumptions.n_problems:,} problems"
    spread, concentrated = (_repetitions(outlook) for outlook in (spread_out, in_few))
    powers = dict.fromkeys(map(_chance, sorted((in_few.power, spread_out.power))))
    return [
        f"Repetitions per arm that detect {drop} with 80 % power: {spread} if the arm shifts the log odds of all "
        f"problems alike; {concentrated} if it makes a few problems fail entirely.",
        f"Power with {assumptions.repetitions:,} repetitions per arm: {' to '.join(powers)}.",
        "How an effect is spread over the problems is not known before the run: plan for the less favourable case.",
    ]


def _repetitions(outlook: "Outlook") -> str:
    return "no number (add problems)" if outlook.min_repetitions is None else f"{outlook.min_repetitions:,}"


def _chance(power: float) -> str:
    return "over 99 %" if power > 0.99 else "under 1 %" if power < 0.01 else f"{100 * power:.0f} %"


def plan_table(plan: "Plan") -> list[Table]:
    """Return two tables, 80 columns wide: the detectable effects of the planned ablation, and its cost."""
    return [_detectable_effects_table(plan), _cost_table(plan)]


def _detectable_effects_table(plan: "Plan") -> Table:
    assumptions = plan.assumptions
    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=False,
        show_edge=False,
        pad_edge=False,
        width=80,
        title_justify="left",
        caption_justify="left",
        title=f"To detect a drop of {100 * assumptions.effect:g} points from {100 * assumptions.accuracy:g} %",
        caption="Paired by problem, problems resampled, two-sided 5 % test. Success probabilities of the problems "
        f"follow a Beta distribution with a + b = {assumptions.concentration:g}. spread: the arm shifts all log odds "
        "alike; concentrated: it makes a share of the problems fail entirely. Intervals allow for problems that the "
        "sample missed, so they can include an effect of 0 that the test rejects.",
    )
    outlooks = (plan.spread, plan.concentrated)
    table.add_column()
    for _ in outlooks:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("effect over the problems", "spread", "concentrated")
    table.add_row(
        "95 % interval of that drop, mean", *(f"± {100 * outlook.half_width:.1f} points" for outlook in outlooks)
    )
    table.add_row("power: chance of detecting it", *(_chance(outlook.power) for outlook in outlooks))
    table.add_row("smallest drop detected with 80 % power", *(_points(outlook.detectable) for outlook in outlooks))
    table.add_row(
        "repetitions needed for 80 % power",
        *("add problems" if o.min_repetitions is None else f"{o.min_repetitions:,}" for o in outlooks),
    )
    table.add_section()
    table.add_row("problems, repetitions", f"{assumptions.n_problems:,}, {assumptions.repetitions:,}")
    table.add_row("samples, all arms", f"{plan.samples * len(plan.arms):,}")
    table.add_row(f"tokens decoded, {assumptions.response_tokens:,} per sample", f"{plan.tokens:,}")
    table.add_row("tokens recomputed by sealing arms", f"{plan.recomputed_tokens:,}")
    decoding_time = "set --throughput" if plan.seconds is None else _duration(plan.seconds)
    table.add_row("time to decode", decoding_time)
    return table


def _cost_table(plan: "Plan") -> Table:
    delimiters = "erased" if plan.policy.mask_delimiters else "kept"
    table = results_table(
        width=80,
        title_justify="left",
        caption_justify="left",
        title=f"KV cache, {plan.bytes_per_token / 1024:g} KiB per token, block delimiters {delimiters}",
        caption="Computed from the expiry of a trace with the paper's average blocks and mementos. Longer responses, "
        "uneven blocks and the allocator's reserve take more. *: doubled, for the sealed copy beside the live cache; "
        "recomputed: tokens prefilled a second time in each response.",
    )
    table.add_column("arm", overflow="fold")
    for name in ("peak tokens", "GiB/row", "mean GiB", f"GiB, {plan.rows:,} rows", "recomputed"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in plan.arms:
        peak, mean = (tokens * plan.bytes_per_token / GIB for tokens in (arm.peak_tokens, arm.mean_tokens))
        table.add_row(
            arm.name + "*" * arm.has_sealed_copy,
            f"{arm.peak_tokens:,}",
            f"{peak:.2f}",
            f"{mean:.2f}",
            f"{plan.rows * peak:.1f}",
            f"{arm.recomputed_tokens:,}" if arm.has_sealed_copy else "",
        )
    return table


def _points(share: float | None) -> str:
    return "add problems" if share is None else f"{100 * share:.1f} points"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
