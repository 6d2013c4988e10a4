"""The reports of a privacy audit: audit.sarif, card.md and report.html, from its run.json and summary.json.

The page is one file, in plain words first and with its evidence below. It holds no script, its content
security policy lets none run and nothing be fetched, and whatever a model or a trace is called is text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.errors import UserError
from ghosttrace.report.ablation.page import TEMPLATES, p_value, plain
from ghosttrace.report.audit import advice, wording
from ghosttrace.report.audit.card import COSTS, card
from ghosttrace.report.audit.charts import WIDTH, bar, heat_maps, scales, ticks
from ghosttrace.report.audit.sarif import sarif
from ghosttrace.runs.atomic import commit_file

REQUIRED_KEYS = (
    *("valid", "failures", "verdict", "exit_code", "sentence", "max_leak_bits", "ceiling_bits", "detectable_bits"),
    *("traces", "traces_needed", "model", "defence", "secrets", "excluded", "left_out", "attacks", "threats"),
    *("results", "sites"),
)
"""What a report needs of summary.json."""
MAX_EXCLUDED_SHOWN = 200  # excluded traces that the page names


def write_reports(folder: Path, summary: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write audit.sarif, card.md and report.html into the folder of an audit.

    Args:
        folder: of the run.
        summary: summary.json.
        run: run.json.

    Raises:
        UserError: one of the three files cannot be written.
    """
    _write(folder / "audit.sarif", json.dumps(sarif(summary, run), indent=2, allow_nan=False) + "\n")
    _write(folder / "card.md", card(summary, run))
    _write(folder / "report.html", page(summary, run))


def _write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        commit_file(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room or rights") from error


def page(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        summary: summary.json.
        run: run.json.
    """
    rows, limit = summary["results"], summary["max_leak_bits"]
    at = scales(rows, limit)
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
        bar=lambda row: bar(row, limit, at),
        width=WIDTH,
        costs=COSTS,
        shown=MAX_EXCLUDED_SHOWN,
        command=wording.command(run),
        style=Safe(style),
    )


def rows_by_threat(summary: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The open rows in `bits` and in `other` units, by threat: name and rows, each a row with its state.

    Rows that decide the verdict come first, surest leaks before others.
    """
    order = (*wording.STATE_ORDER, None)
    found: dict[str, list[dict[str, Any]]] = {"bits": [], "other": []}
    for threat in summary["threats"]:
        mine = [row for row in summary["results"] if row["threat"] == threat["name"] and row["condition"] == "open"]
        for kind, chosen in found.items():
            rows = [(row, row["state"]) for row in mine if (row["unit"] in wording.BIT_UNITS) == (kind == "bits")]
            rows.sort(key=lambda pair: (order.index(pair[1]), -(pair[0]["low"] or 0.0) if pair[1] else 0.0))
            if rows:
                chosen.append({"name": threat["name"], "rows": rows})
    return found
