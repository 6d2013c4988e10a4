"""Tables of simulated intervals and tests of paired effects, as Markdown."""

from collections.abc import Callable

from experiments.markdown import markdown_table, percent
from experiments.result_tables import read

EFFECT_MODELS = {
    "spread": "−5 points, spread",
    "few-15": "−5 points in 1 of 15 problems",
    "few-10": "−5 points in 1 of 10 problems",
    "mixed": "gains and losses",
    "null": "none",
}


def effect_coverage() -> str:
    """Coverage and width of intervals by model of the effect, number of problems, clusters and repetitions."""
    results, rows = read("effect_coverage"), []
    for (model, problems, size), part in results.groupby(["model", "problems", "cluster_size"], sort=False):
        part = part.sort_values("repetitions")
        cells = [
            " / ".join(percent(value) for value in part[name])
            for name in ("covers", "bootstrap_covers", "half_width", "bootstrap_half_width")
        ]
        rows.append([EFFECT_MODELS[str(model)], f"{problems}{' in pairs' if size == 2 else ''}", *cells])
    header = ["effect", "problems", "covered, %", "bootstrap alone, %", "half-width, points", "bootstrap alone, points"]
    return markdown_table(header, rows)


def effect_families() -> str:
    """Share of runs of eight arms without effect in which some arm seems to have one, by method."""
    rows = [
        [f"{row['problems']:.0f}", f"{row['repetitions']:.0f}"]
        + [percent(row[name]) for name in ("bootstrap", "interval", "joint", "p", "p_holm")]
        for row in read("effect_families").to_dict("records")
    ]
    header = [
        "problems",
        "repetitions",
        "bootstrap alone, %",
        "interval, %",
        "joint interval, %",
        "p, %",
        "p (Holm), %",
    ]
    return markdown_table(header, rows)


def paper_power() -> str:
    """Interval and power of the paper's design, by reading and by spread of the problems."""
    results = read("paper_power")
    results = results[results["effect"] == 0.153]
    designs = [
        (64, 8, "unpaired"),
        (64, 8, "paired"),
        (8, 8, "paired"),
        (64, 64, "paired"),
        (64, 8, "fixed"),
        (64, 64, "fixed"),
    ]
    rows = []
    for reference, arm, way in designs:
        part = results[
            (results["repetitions"] == reference) & (results["arm_repetitions"] == arm) & (results["way"] == way)
        ]
        part = part.sort_values("concentration")
        cells = [
            " / ".join(percent(value, 1 if name == "half_width" else 0) for value in part[name])
            for name in ("half_width", "excludes_0", "detects", "covers_population", "covers_these_problems")
        ]
        rows.append([f"{reference} and {arm}, {way}", *cells])
    header = [
        "repetitions, reading",
        "95 % half-width, points",
        "intervals that exclude 0, %",
        "runs that detect the drop, %",
        "cover the population's drop, %",
        "cover the drop on these problems, %",
    ]
    return markdown_table(header, rows)


def small_drop() -> str:
    """Share of simulated runs that detect a drop of 5 points."""
    results = read("paper_power")
    results = results[
        (results["effect"] == 0.05)
        & (results["concentration"] == 1.0)
        & (results["repetitions"] == results["arm_repetitions"])
    ]
    ways = results.pivot_table(index="repetitions", columns="way", values="detects")
    rows = [[f"{count}", percent(row["paired"], 0), percent(row["unpaired"], 0)] for count, row in ways.iterrows()]
    return markdown_table(["repetitions of both arms", "paired, %", "unpaired, %"], rows)


EFFECT_TABLES: dict[str, Callable[[], str]] = {
    "effect-coverage": effect_coverage,
    "effect-families": effect_families,
    "paper-power": paper_power,
    "small-drop": small_drop,
}
