"""Rich tables of ablation results."""

import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.tables import results_table


def percent(value: float, low: float, high: float, signed: bool = False) -> str:
    """Format a share with its interval, in percent."""
    form = "+.1f" if signed else ".1f"
    return f"{100 * value:{form}} [{100 * low:{form}},{100 * high:{form}}]"


def ablation_table(results: pd.DataFrame) -> Table:
    """Return a table with one row per benchmark and arm, 80 columns wide.

    Args:
        results: Rows of `ghosttrace.ablation.summary.summarise`.
    """
    table = results_table(
        caption="Accuracy and paired effect against memento in %, with 95 % intervals over problems; "
        "+/-: problems better and worse; mde: minimum detectable effect (80 % power); "
        f"KV: mean peak of KV tokens. Finished blocks per response: {_range(results['blocks'])}.",
    )
    table.padding = 0  # the columns are one space apart, so that names and numbers fit
    table.add_column("arm", overflow="fold", max_width=20)
    for name in ("accuracy", "effect", "+/-", "mde", "KV"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in results.to_dict("records"):
        if previous != row["bench"]:
            table.add_section()
            table.add_row(f"[bold]{escape(row['bench'])}[/]")
        previous, reference = row["bench"], row["arm"] == "memento"
        table.add_row(
            row["arm"],
            percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
            "reference" if reference else percent(row["effect"], row["effect_low"], row["effect_high"], signed=True),
            "" if reference else f"{row['better']}/{row['worse']}",
            "" if reference else "none" if pd.isna(row["detectable"]) else f"{100 * row['detectable']:.1f}",
            f"{row['peak_kv_tokens']:,.0f}",
        )
    return table


def joint_table(results: pd.DataFrame, margin: float | None) -> Table | None:
    """Return a table of joint intervals, p-values and equivalence; None if only the reference was run.

    Args:
        results: Rows of `ghosttrace.ablation.summary.summarise`.
        margin: Margin of the test of equivalence in points; None if the run had none.
    """
    compared = results[results["arm"] != "memento"]
    if compared.empty:
        return None
    table = results_table(
        caption="joint: effects in points with intervals that hold for all arms of a benchmark together "
        "(Bonferroni, 95 %); p: adjusted for these arms (Holm); few: not significant without the five problems that "
        "carry most of it" + ("." if margin is None else "; equivalence: two one-sided tests at 5 %."),
    )
    table.add_column("bench", overflow="fold", max_width=24)
    table.add_column("arm", overflow="fold", max_width=20)
    for name in ("joint", "p", "few", *(() if margin is None else (f"within ±{margin:g}",))):
        table.add_column(name, justify="right", no_wrap=True)
    words = {True: "equivalent", False: "not shown"}
    for row in compared.to_dict("records"):
        table.add_row(
            escape(row["bench"]),
            row["arm"],
            percent(row["effect"], row["effect_low_joint"], row["effect_high_joint"], signed=True),
            f"{row['p_holm']:.4f}",
            "yes" if row["rests_on_few"] else "no",
            *(() if margin is None else (words[bool(row["equivalent"])],)),
        )
    return table


def _range(values: pd.Series) -> str:
    """Format the smallest and the largest of some means."""
    ends = dict.fromkeys(f"{value:.1f}" for value in (values.min(), values.max()))
    return " to ".join(ends)


def swap_table(results: pd.DataFrame) -> Table | None:
    """Return a table of how many answers follow the donor under `swap`; None if nothing was swapped."""
    swapped = results[results["follows_donor"].notna()]
    if swapped.empty:
        return None
    table = results_table(
        caption="swap: one memento computed from a counterfactual block with the same memento text; % of answers.",
    )
    table.add_column("bench", overflow="fold", max_width=36)
    for name in ("follow the donor", "keep the original", "neither"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in swapped.to_dict("records"):
        table.add_row(
            escape(row["bench"]), *(f"{100 * row[n]:.1f}" for n in ("follows_donor", "keeps_original", "neither"))
        )
    return table
