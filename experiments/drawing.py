"""Looks that the figures share: series differ in colour, line and marker, and can be told apart in grey too."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ghosttrace.runs.figures import save_figure

FOLDER = Path(__file__).parent.parent / "figures"
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#009e73", "linestyle": "-.", "marker": "^"},
    {"color": "#9a5b8a", "linestyle": ":", "marker": "D"},
)
"""Colours that colour-blind readers can tell apart, after Okabe and Ito, each with a line and a marker of its own."""
GREY = "#888888"


def save(name: str, figure: Figure, folder: Path = FOLDER) -> None:
    """Write a figure to NAME.png and NAME.svg in a folder."""
    for kind in ("png", "svg"):
        save_figure(figure, folder / f"{name}.{kind}", kind, dpi=150)
