"""The generic HTML report of a run: verdict, figures and results on one page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe
from matplotlib.figure import Figure

from ghosttrace.report.ablation.page import TEMPLATES, plain
from ghosttrace.report.command import repeat_command
from ghosttrace.runs.figures import save_figure

MAX_ROWS = 500  # rows of the results table; summary.json has all of them


def run_page(
    title: str,
    configuration: Mapping[str, Any],
    failures: Sequence[str],
    results: pd.DataFrame,
    figures: Sequence[Figure],
) -> str:
    """Return the report of a run as the text of one HTML page.

    The page contains no script, and its content security policy forbids fetching anything.

    Args:
        title: Title of the page, such as the command and the model.
        configuration: Content of run.json.
        failures: One sentence per failed control.
        results: One row per finding.
        figures: Figures in the order in which the page shows them.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain}
    shown = results.head(MAX_ROWS).round(4).to_html(index=False, na_rep="", border=0)
    return environment.get_template("run.html.j2").render(
        title=title,
        configuration=configuration,
        failures=list(failures),
        table=Safe(shown),
        command=repeat_command(configuration),
        omitted_rows=max(0, len(results) - MAX_ROWS),
        images=[_image(figure) for figure in figures],
        style=Safe((TEMPLATES / "report.css").read_text("utf-8")),
    )


def _image(figure: Figure) -> str:
    """Return a figure as a data URI."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, "svg", bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
