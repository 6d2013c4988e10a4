"""Files of figures: the same figure gives the same bytes, so that two equal runs have equal folders."""

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", target: Path | IO[bytes], kind: str, **options: Any) -> None:
    """Save a figure without a date and without random ids.

    Args:
        figure: the figure.
        target: path of the file, or a binary stream.
        kind: `png` or `svg`.
        options: further arguments of `Figure.savefig`, such as `dpi`.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "ghosttrace"}):
        figure.savefig(target, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)


def write_figure(folder: Path, name: str, figure: "Figure") -> None:
    """Write a figure of a run to figures/<name>.png and figures/<name>.svg."""
    for kind in ("png", "svg"):
        save_figure(figure, folder / "figures" / f"{name}.{kind}", kind, dpi=150, bbox_inches="tight")
