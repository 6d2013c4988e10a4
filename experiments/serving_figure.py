"""Figure of `benchmarks/serving.py`: pages in use over time, with erasure and without."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ghosttrace.report.looks import GREY, LOOKS


def draw(scarce: dict[str, Any]) -> Figure:
    """Draw pages in use over time for stock vLLM and vLLM with erasure; a dotted line marks the total."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axis = figure.subplots()
    for name, look in zip(("stock", "erasing"), LOOKS, strict=False):
        steps = np.linspace(0, scarce["seconds"][name][-1], len(scarce["used"][name]))
        axis.plot(steps, scarce["used"][name], label=f"vLLM, {name}", linewidth=1, **look | {"marker": None})
    axis.axhline(scarce["pages"], color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xlabel("seconds")
    axis.set_ylabel("pages in use")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
