"""Looks that figures with several series share: series differ in colour, line and marker, and so in grey too."""

from typing import Any

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#009e73", "linestyle": "-.", "marker": "^"},
    {"color": "#9a5b8a", "linestyle": ":", "marker": "D"},
)
"""Colours that colour-blind readers can tell apart, after Okabe and Ito, each with a line and a marker of its own."""
GREY = "#888888"
