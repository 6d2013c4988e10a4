"""Tables of what runs cost: plans beside measurements, growth on tiny models, and the modelled cost on large ones."""

from collections.abc import Callable

import numpy as np

from experiments.benchmark_tables import read as read_benchmark
from experiments.markdown import markdown_table
from experiments.result_tables import read

INSTRUMENTS_OF = {
    "read": "`bits`, `probe`, `patch`, `audit`: masked passes",
    "decode": "`ablate`, `rl`: decoding",
    "train": "`sft`, `rl`: forward and backward",
    "fit": "`probe`, `audit`: linear probes",
}


def plan_accuracy() -> str:
    """Predicted and measured time, memory and disk of runs that were planned first."""
    rows = []
    for name, found in read_benchmark("plan").items():
        predicted, measured = found["predicted"], found["measured"]
        seconds = predicted["seconds"]
        inside = seconds["low"] <= measured["seconds"] <= seconds["high"]
        ratio = seconds["value"] / measured["seconds"]
        rows.append(
            [
                f"`{name}`",
                f"{found['amount']:,} {found['unit']}",
                f"{seconds['value']:.0f} ({seconds['low']:.0f} to {seconds['high']:.0f})",
                f"{measured['seconds']:.0f}",
                f"{ratio:.2f}x",
                "yes" if inside else "no",
                f"{predicted['memory'] / measured['memory']:.2f}x",
                f"{predicted['peak_disk'] / measured['peak_disk']:.2f}x",
                f"{100 * found['calibration_seconds'] / measured['seconds']:.0f} %",
            ]
        )
    header = ["instrument", "work", "predicted, s", "measured, s", "ratio", "in the range"]
    return markdown_table([*header, "memory, ratio", "disk, ratio", "calibration, of the run"], rows)


def growth() -> str:
    """Exponent of the growth of CPU time with each factor, over all sizes and between the two largest."""
    rows = []
    for (work, factor), part in read("growth").groupby(["work", "factor"], sort=False):
        values, seconds = (np.log(part[name].to_numpy(float)) for name in ("value", "seconds"))
        exponent = np.polyfit(values, seconds, 1)[0]
        last = (seconds[-1] - seconds[-2]) / (values[-1] - values[-2])
        sizes = f"{part['value'].iloc[0]:,} to {part['value'].iloc[-1]:,}"
        rows.append([INSTRUMENTS_OF[str(work)], str(factor), sizes, f"{exponent:.2f}", f"{last:.2f}"])
    return markdown_table(["work", "factor", "sizes", "exponent", "between the two largest"], rows)


def scale() -> str:
    """Modelled hours and memory of every instrument on large models."""
    recorded = read("scale")
    rows = []
    for (model, instrument), part in recorded.groupby(["model", "instrument"], sort=False):
        hours = [f"{row['hours']:,.2f}" for _, row in part.iterrows()]
        memory = [f"{row['memory'] / 1e9:,.0f}" for _, row in part.iterrows()]
        rows.append([str(model).split("/")[1], f"`{instrument}`", part["work"].iloc[0], *hours, *memory])
    gpus = list(dict.fromkeys(recorded["gpus"]))
    shares = [f"{100 * recorded[name].iloc[0]:.0f} %" for name in ("flops_share", "bandwidth_share")]
    work = f"work, at {shares[0]} of the peak operations and {shares[1]} of the peak bandwidth of an "
    header = ["model", "instrument", work + recorded["gpu"].iloc[0], *(f"hours, {number} GPUs" for number in gpus)]
    return markdown_table([*header, *(f"GB per GPU, {number} GPUs" for number in gpus)], rows)


SCALE_TABLES: dict[str, Callable[[], str]] = {"plan-accuracy": plan_accuracy, "growth": growth, "scale": scale}
