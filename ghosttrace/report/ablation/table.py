"""The results of an ablation as rich tables."""

import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.tables import results_table


def percent(value: float, low: float, high: float, signed: bool = False) -> str:
    """A share with its interval, in percent."""
    form = "+.1f" if signed else ".1f"
    return f"{100 * value:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def ablation_table(results: pd.DataFrame) -> Table:
    """One row per benchmark and arm (columns of `ghosttrace.ablation.summary.summarise`), 80 columns wide."""
    table = results_table(
        caption="Accuracy and paired effect against memento in %, with 95 % intervals over problems; "
        "+/-: problems better and worse; mde: the smallest effect the run could have seen; "
        "KV: mean peak of tokens held; cut: responses that reached the limit.",
    )
    table.add_column("arm", overflow="fold")  # where room is short a name is broken, and no number cut
    cut = bool(results["truncated"].any())
    for name in ("accuracy", "effect", "+/-", "mde", "KV", *(["cut"] if cut else [])):
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
            "" if reference else f"{100 * row['detectable']:.1f}",
            f"{row['peak_kv_tokens']:,.0f}",
            *([f"{row['truncated']:,}"] if cut else []),
        )
    return table


def swap_table(results: pd.DataFrame) -> Table | None:
    """Whom the answers follow under `swap`; None if nothing was swapped."""
    swapped = results[results["follows_donor"].notna()]
    if swapped.empty:
        return None
    table = Table(caption="swap: one memento computed from a counterfactual block, its text the same (% of answers)")
    table.add_column("bench")
    for name in ("follow the donor", "keep the original", "neither"):
        table.add_column(name, justify="right")
    for row in swapped.to_dict("records"):
        table.add_row(
            escape(row["bench"]), *(f"{100 * row[n]:.1f}" for n in ("follows_donor", "keeps_original", "neither"))
        )
    return table
