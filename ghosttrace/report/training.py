"""The findings of a training run in sentences, and the figure of its log."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.report.findings import DO_NOT_RELY
from ghosttrace.report.looks import LOOKS


def training_findings(summary: Mapping[str, Any]) -> list[str]:
    """Return the last training losses and whether the trained weights can be used.

    Args:
        summary: Content of summary.json.
    """
    last = summary["results"][-1] if summary["results"] else {}
    if summary.get("command") == "rl":
        return _rl_findings(summary, last)
    losses = [
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in last.items()
        if name.startswith("loss_") and value is not None
    ]
    logged = f"; last logged losses, in nats per token: {', '.join(losses)}" if losses else ""
    found = [f"Training steps: {summary['steps']:,}{logged}."]
    if not summary["valid"]:
        return [*found, f"{DO_NOT_RELY} this model, because some weights are not finite: lower the learning rate."]
    return [*found, "A low loss does not show whether the model uses the ghost channel: run ablate on it."]


def _rl_findings(summary: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Return the last mean reward and how far rollouts and training were from each other."""
    rewards = [row["reward"] for row in summary["results"] if row.get("reward") is not None]
    reward = rewards[-1] if rewards else float("nan")  # a step that reuses rollouts logs none
    found = [f"Training steps: {summary['steps']:,}; last logged mean reward {reward:.3f}."]
    if not summary["valid"]:
        return [*found, f"{DO_NOT_RELY} this model, because some weights are not finite: lower the learning rate."]
    gap = last.get("rollout_gap")
    if gap is not None:
        found.append(f"Log-probabilities of rollouts and training differed by at most {gap:.1e} nats in the last step.")
    return [*found, "A reward does not show whether the model uses the ghost channel: run ablate on it."]


def draw_log(log: pd.DataFrame, prefix: str) -> Figure:
    """Draw columns of a training log by step.

    Args:
        log: One row per logged step, with the column `step`.
        prefix: Beginning of the columns' names; `rewards/` selects the mean of each reward.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    names = [name for name in log.columns if name.startswith(prefix) and not name.endswith("/std")]
    for number, name in enumerate(names):
        label = name.removeprefix(prefix).removesuffix("/mean")
        rows = log[["step", name]].dropna()
        axis.plot(rows["step"], rows[name], label=label, linewidth=1.3, markersize=3, **LOOKS[number % len(LOOKS)])
    axis.set_xlabel("step")
    axis.set_ylabel("mean reward" if prefix == "rewards/" else "loss, nats per token")
    if names:
        axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
