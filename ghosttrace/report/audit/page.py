"""The reports of a privacy audit: audit.sarif, card.md and report.html, from its run.json and summary.json.

The page is one file: a summary in plain words, then the evidence. It contains no script, its content security
policy forbids scripts and fetching, and names of models and traces are escaped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.page import TEMPLATES, p_value, plain
from ghosttrace.report.audit import advice, wording
from ghosttrace.report.audit.card import COSTS, card
from ghosttrace.report.audit.charts import WIDTH, bar, heat_maps, scales, ticks
from ghosttrace.report.audit.sarif import sarif
from ghosttrace.report.command import repeat_command
from ghosttrace.runs.atomic import write_text

REQUIRED_KEYS = (
    *("valid", "failures", "verdict", "exit_code", "sentence", "max_leak_bits", "max_exposed", "ceiling_bits"),
    *("detectable_bits", "detectable_exposed", "detectable_pad_bits"),
    *("traces", "traces_needed", "model", "defence", "secrets", "excluded", "left_out", "attacks", "threats"),
    *("results", "sites"),
)
"""Keys of summary.json that the reports read."""
MAX_EXCLUDED_SHOWN = 200  # excluded traces that the page lists


def write_reports(folder: Path, summary: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write audit.sarif, card.md and report.html into the folder of an audit.

    Args:
        folder: Folder of the run.
        summary: Content of summary.json.
        run: Content of run.json.

    Raises:
        UserError: If one of the three files cannot be written.
    """
    write_text(folder / "audit.sarif", json.dumps(sarif(summary, run), indent=2, allow_nan=False) + "\n")
    write_text(folder / "card.md", card(summary, run))
    write_text(folder / "report.html", page(summary, run))


def page(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return the HTML page of an audit as text.

    Args:
        summary: Content of summary.json.
        run: Content of run.json.
    """
    rows, limit = summary["results"], summary["max_leak_bits"]
    scale_of_unit = scales(rows, limit)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "p": p_value, "number": wording.format_number, "bits": wording.bits}
    style = "\n".join((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "audit.css"))
    return environment.get_template("audit.html.j2").render(
        summary=summary,
        run=run,
        wording=wording,
        advice=advice,
        threats=wording.by_threat(summary),
        groups=rows_by_threat(summary),
        controls=wording.controls(summary),
        heats=heat_maps(summary["sites"]),
        ticks=ticks(rows, limit),
        bar=lambda row: bar(row, limit, scale_of_unit),
        width=WIDTH,
        costs=COSTS,
        shown=MAX_EXCLUDED_SHOWN,
        command=repeat_command(run),
        style=Safe(style),
    )


def rows_by_threat(summary: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Group the open rows by unit and threat.

    Args:
        summary: Content of summary.json.

    Returns:
        For `bits` and for `other` units a list of threats, each with its name and its pairs of row and state. Rows
        that decide the verdict come first, and among them those with the highest lower bound.
    """
    order = (*wording.STATE_ORDER, None)
    groups: dict[str, list[dict[str, Any]]] = {"bits": [], "other": []}
    for threat in summary["threats"]:
        threat_rows = [
            row for row in summary["results"] if row["threat"] == threat["name"] and row["condition"] == "open"
        ]
        for kind, group in groups.items():
            rows = [
                (row, row["state"]) for row in threat_rows if (row["unit"] in wording.BIT_UNITS) == (kind == "bits")
            ]
            rows.sort(key=lambda pair: (order.index(pair[1]), -(pair[0]["low"] or 0.0) if pair[1] else 0.0))
            if rows:
                group.append({"name": threat["name"], "rows": rows})
    return groups
