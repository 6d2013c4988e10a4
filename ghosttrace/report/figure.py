"""A matplotlib figure that a notebook shows as an image."""

from io import BytesIO

from matplotlib.figure import Figure as MatplotlibFigure

from ghosttrace.runs.figures import save_figure


class Figure(MatplotlibFigure):
    """Figure that is shown when it is the value of a notebook's cell.

    IPython shows a figure that pyplot did not make as text only, unless pyplot was imported in an earlier cell.
    """

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG."""
        image = BytesIO()
        save_figure(self, image, "png", dpi=90, bbox_inches="tight")
        return image.getvalue()
