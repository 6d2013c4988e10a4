"""Draw the figures in `figures/` from the recorded results: `make figures`.

Nothing is measured again. `report.png`, a picture of a page, is not among them.
"""

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import (
    adapted_drop,
    curriculum,
    ledger_pair,
    paper_power,
    passcode,
    probe_toys,
    rl_channel,
    serving_figure,
    story_figure,
    toy_leakage,
)
from experiments.result_tables import RESULTS, read
from ghosttrace.probing.evidence import NEGLIGIBLE_BITS
from ghosttrace.report.audit.figures import pareto_figure
from ghosttrace.runs.figures import write_figure
from ghosttrace.stats import ALPHA


def rows(name: str) -> list[Any]:
    """Return the rows of a recorded table."""
    return read(name).to_dict("records")


BENCHMARKS = RESULTS.parents[1] / "benchmarks" / "results"
FIGURES: dict[str, Callable[[], Figure]] = {
    "adapted_drop": lambda: adapted_drop.draw(read("adapted_drop")),
    "curriculum": lambda: curriculum.draw(read("curriculum_losses")),
    "defences": lambda: pareto_figure(rows("defences")),
    "ledger_pair": lambda: ledger_pair.draw(read("ledger_pair")),
    "paper_power": lambda: paper_power.figure(read("paper_power")),
    "passcode": lambda: passcode.draw(read("passcode")),
    "probe_toys": lambda: probe_toys.draw(with_significance(read("probe_toys"))),
    "rl_channel": lambda: rl_channel.draw(read("rl_channel")),
    "serving": lambda: serving_figure.draw(json.loads((BENCHMARKS / "serving.json").read_text())["scarce"]),
    "story": lambda: story_figure.draw(read("story_channel")),
    "toy_leakage": lambda: toy_leakage.figure(read("toy_leakage")),
}


def with_significance(results: pd.DataFrame) -> pd.DataFrame:
    """Return results recorded before the column `significant` existed, with it."""
    return results.assign(significant=(results["p_holm"] <= ALPHA) & (results["bits"] > NEGLIGIBLE_BITS))


def main() -> None:
    """Draw and write every figure."""
    for name, draw in FIGURES.items():
        write_figure(RESULTS.parents[1], name, draw())


if __name__ == "__main__":
    main()
