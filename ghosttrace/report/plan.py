"""A plan as rich tables."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ghosttrace.report.tables import results_table

if TYPE_CHECKING:
    from ghosttrace.ablation.plan import Plan

GIB = 2**30


def plan_table(plan: "Plan") -> list[Table]:
    """What the ablation can find, and what it takes, in tables 80 columns wide."""
    return [_detectable_effects_table(plan), _cost_table(plan)]


def _detectable_effects_table(plan: "Plan") -> Table:
    given = plan.assumptions
    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=False,
        show_edge=False,
        pad_edge=False,
        width=80,
        title_justify="left",
        caption_justify="left",
        title=f"To find a drop of {100 * given.effect:g} points from {100 * given.accuracy:g} %",
        caption="Paired by problem, problems resampled, two-sided 5 % test; the chances of success of the "
        f"problems spread as Beta with a + b = {given.concentration:g}, and the arm shifts their log odds.",
    )
    table.add_column()
    table.add_column(justify="right", min_width=29)
    table.add_row("problems, repetitions", f"{given.n_problems:,}, {given.repetitions:,}")
    table.add_row("95 % interval of that drop", f"± {100 * plan.half_width:.1f} points")
    table.add_row("chance of finding it", "over 99 %" if plan.power > 0.99 else f"{100 * plan.power:.0f} %")
    table.add_row("smallest drop found with 80 % power", _points(plan.detectable))
    table.add_row(
        "repetitions needed for 80 % power",
        "none is enough: more problems" if plan.min_repetitions is None else f"{plan.min_repetitions:,}",
    )
    table.add_section()
    table.add_row("samples, all arms", f"{plan.samples * len(plan.arms):,}")
    table.add_row(f"tokens decoded, {given.response_tokens:,} a sample", f"{plan.tokens:,}")
    table.add_row("tokens prefilled again by sealing arms", f"{plan.recomputed_tokens:,}")
    told = "not told: give a throughput" if plan.seconds is None else _duration(plan.seconds)
    table.add_row("time to decode", told)
    return table


def _cost_table(plan: "Plan") -> Table:
    delimiters = "erased" if plan.policy.mask_delimiters else "kept"
    table = results_table(
        width=80,
        title_justify="left",
        caption_justify="left",
        title=f"KV cache, {plan.bytes_per_token / 1024:g} KiB a token, block delimiters {delimiters}",
        caption="By the law, on a trace of the paper's average blocks and mementos. Longer responses and uneven "
        "blocks take more, and so does the allocator's room to spare. *: twice, for the sealed copy that is "
        "held beside the live cache; read again: tokens prefilled once more in each response.",
    )
    table.add_column("arm", no_wrap=True)
    for name in ("peak tokens", "GiB a row", "mean GiB", f"GiB, {plan.rows:,} rows", "read again"):
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
    return "none: more problems" if share is None else f"{100 * share:.1f} points"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
