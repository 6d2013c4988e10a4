"""The page of a leaderboard: one table per benchmark, and what redoes each run.

The page contains no script, its content security policy forbids scripts and fetching, and names are escaped.
"""

from collections.abc import Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.page import TEMPLATES
from ghosttrace.report.leaderboard import cells
from ghosttrace.report.leaderboard.cells import Row

HASH_DIGITS = 12  # of the weights' hash that the page shows; the Parquet file has all


def leaderboard_page(rows: Sequence[Row], findings: Sequence[str]) -> str:
    """Return the page as text; it depends on the rows alone.

    Args:
        rows: Rows of `ghosttrace.leaderboards.result.Leaderboard`.
        findings: Sentences of `ghosttrace.report.leaderboard.table.leaderboard_findings`.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    names = ("report.css", "audit.css", "leaderboard.css")
    benchmarks = dict.fromkeys(row["benchmark"] for row in rows)
    runs = {tuple(run.values()): run for row in rows for run in row["runs"]}
    invalid = {tuple(run.values()) for row in rows if not row["valid"] for run in row["runs"]}
    return environment.get_template("leaderboard.html.j2").render(
        benchmarks={name: [row for row in rows if row["benchmark"] == name] for name in benchmarks},
        findings=findings,
        runs=[(run, key in invalid) for key, run in sorted(runs.items(), key=lambda pair: list(map(str, pair[0])))],
        cells=cells,
        hash_digits=HASH_DIGITS,
        style=Safe("\n".join((TEMPLATES / name).read_text("utf-8") for name in names)),
    )
