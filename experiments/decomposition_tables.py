"""Table of `experiments/decomposition.py`: what the drop under `restart` of each model is made of."""

from collections.abc import Callable

import pandas as pd

from experiments.markdown import interval, markdown_table
from experiments.result_tables import read
from ghosttrace.ablation.contrasts import NOT_MEASURED, UNTOLD

WITHIN = ("delimiters", "position (sealed)", "position (open)")


def decomposition() -> str:
    """Components in points, with 95 % intervals, by model and by pair of conditions; shares for swap."""
    results, rows = read("decomposition"), []
    measured = set(results.loc[results["verdict"] != NOT_MEASURED, "component"])
    within = [name for name in WITHIN if name in measured]
    for content in results[results["component"] == "content"].to_dict("records"):
        part = results[results["model"] == content["model"]].set_index(["bench", "component"])
        needed, sufficient = part.loc[content["bench"]], part.loc[content["compared_with"]]
        cells = [needed.loc["total"], sufficient.loc["unfamiliarity"], pd.Series(content)]
        cells += [needed.loc[name] for name in (*within, "swap")] + [sufficient.loc["null swap"]]
        rows.append([content["model"], f"{content['bench']} and {content['compared_with']}", *map(cell, cells)])
    header = ["model", "value omitted, and text suffices", "total", "unfamiliarity", "content", *within]
    return markdown_table([*header, "swap, %", "null swap, %"], rows)


def cell(component: pd.Series) -> str:
    """Return a component in points or percent, or in words if it cannot be told or was not measured."""
    if component["verdict"] in (NOT_MEASURED, UNTOLD):
        return str(component["verdict"])
    value = interval((100 * component[name] for name in ("estimate", "low", "high")), 1)
    return f"{value}, equivalent" if component["verdict"].startswith("equivalent") else value


DECOMPOSITION_TABLES: dict[str, Callable[[], str]] = {
    "decomposition": decomposition,
}
