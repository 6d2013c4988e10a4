"""The report of a run that has no page of its own kind: verdict, figures and results, as one HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe
from matplotlib.figure import Figure

from ghosttrace.report.ablation.page import TEMPLATES, plain

MAX_ROWS = 500  # rows of the results; all of them are in summary.json


def run_page(
    title: str,
    configuration: Mapping[str, Any],
    failures: Sequence[str],
    results: pd.DataFrame,
    figures: Sequence[Figure],
) -> str:
    """The page as text. It holds no script, and its content security policy lets nothing be fetched.

    Args:
        title: what was measured on what.
        configuration: run.json.
        failures: the controls that did not hold, in words.
        results: one row per finding.
        figures: in the order in which they are shown.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain}
    shown = results.head(MAX_ROWS).round(4).to_html(index=False, na_rep="", border=0)
    return environment.get_template("run.html.j2").render(
        title=title,
        configuration=configuration,
        failures=list(failures),
        table=Safe(shown),
        left_out=max(0, len(results) - MAX_ROWS),
        images=[_image(figure) for figure in figures],
        style=Safe((TEMPLATES / "report.css").read_text("utf-8")),
    )


def _image(figure: Figure) -> str:
    """A figure as a data URI."""
    held = io.BytesIO()
    figure.savefig(held, format="svg", bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(held.getvalue()).decode()}"
