"""Table of the recorded plan of `experiments/reproduce_paper.py`, which nothing has measured."""

from collections.abc import Callable

import pandas as pd

from experiments.markdown import markdown_table
from experiments.result_tables import RESULTS


def reproduce_plan() -> str:
    """Hours, memory and disk of every step of the chain on eight GPUs of each kind."""
    recorded = pd.read_parquet(RESULTS / "reproduce_plan.parquet")
    rows = []
    for kind, planned in recorded.groupby("gpu", sort=False):
        for _, step in planned.iterrows():
            figures = [f"{step['hours']:,.1f}", f"{step['gpu_hours']:,.1f}"]
            sizes = [f"{step[name] / 1e9:,.0f}" for name in ("memory", "disk")]
            rows.append([f"{step['gpus']} x {kind}", f"`{step['step']}`", step["work"], *figures, *sizes])
        hours, gpu_hours, disk = (planned[name].sum() for name in ("hours", "gpu_hours", "disk"))
        rows.append([f"8 x {kind}", "all", "", f"{hours:,.1f}", f"{gpu_hours:,.1f}", "", f"{disk / 1e9:,.0f}"])
    shares = [f"{100 * recorded[name].iloc[0]:.0f} %" for name in ("flops_share", "bandwidth_share")]
    work = f"work, at {shares[0]} of the peak operations and {shares[1]} of the peak bandwidth"
    return markdown_table(["GPUs", "step", work, "hours", "GPU-hours", "GB per GPU", "GB of disk"], rows)


REPRODUCE_TABLES: dict[str, Callable[[], str]] = {"reproduce-plan": reproduce_plan}
