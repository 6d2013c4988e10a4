"""Rich tables of an ablation plan."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ghosttrace.report.tables import results_table

if TYPE_CHECKING:
    from ghosttrace.ablation.plan import Plan

GIB = 2**30


def plan_findings(plan: "Plan") -> list[str]:
    """Return how many repetitions the effect needs, what the assumed number detects, and the plan's main limitation."""
    assumptions = plan.assumptions
    drop = f"a drop of {100 * assumptions.effect:g} points on {assumptions.n_problems:,} problems"
    needed = (
        f"No number of repetitions detects {drop} with 80 % power: add problems."
        if plan.min_repetitions is None
        else f"Repetitions per arm that detect {drop} with 80 % power: {plan.min_repetitions:,}."
    )
    power = "over 99 %" if plan.power > 0.99 else "under 1 %" if plan.power < 0.01 else f"{100 * plan.power:.0f} %"
    return [
        needed,
        f"Power with {assumptions.repetitions:,} repetitions per arm: {power}.",
        "The plan assumes that the arm shifts the log odds of every problem equally. An effect that is carried by a "
        "few problems needs more problems than planned.",
    ]


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
        f"follow a Beta distribution with a + b = {assumptions.concentration:g}; the arm shifts their log odds.",
    )
    table.add_column()
    table.add_column(justify="right", min_width=29)
    table.add_row("problems, repetitions", f"{assumptions.n_problems:,}, {assumptions.repetitions:,}")
    table.add_row("95 % interval of that drop", f"± {100 * plan.half_width:.1f} points")
    table.add_row("power: chance of detecting it", "over 99 %" if plan.power > 0.99 else f"{100 * plan.power:.0f} %")
    table.add_row("smallest drop detected with 80 % power", _points(plan.detectable))
    table.add_row(
        "repetitions needed for 80 % power",
        "no number suffices: add problems" if plan.min_repetitions is None else f"{plan.min_repetitions:,}",
    )
    table.add_section()
    table.add_row("samples, all arms", f"{plan.samples * len(plan.arms):,}")
    table.add_row(f"tokens decoded, {assumptions.response_tokens:,} per sample", f"{plan.tokens:,}")
    table.add_row("tokens recomputed by sealing arms", f"{plan.recomputed_tokens:,}")
    decoding_time = "unknown: set --throughput" if plan.seconds is None else _duration(plan.seconds)
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
    table.add_column("arm", no_wrap=True)
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
    return "none: add problems" if share is None else f"{100 * share:.1f} points"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
