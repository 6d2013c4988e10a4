"""Tables of `experiments/story_channel.py`: pretrained models that write mementos, by condition and arm."""

from collections.abc import Callable
from typing import Any

from experiments.markdown import interval, markdown_table, percent
from experiments.result_tables import ENDS, read

RESTARTS = ("restart", "restart-bare", "restart-renumbered")


def accuracy(row: Any) -> str:
    """Return the accuracy of a row of results with its interval, in %."""
    value, low, high = (percent(row[f"accuracy{end}"]) for end in ENDS)
    return f"{value} [{low}, {high}]"


def story_channel() -> str:
    """Accuracy and effect of each arm, the share of answers that follow a donor, and of well-formed responses."""
    rows, table = [], read("story_channel")
    for row in table[table["model"] == "smollm2-open"].to_dict("records"):
        reference = row["arm"] == "memento"
        effect = "" if reference else interval((100 * row[f"effect{end}"] for end in ENDS), 1)
        follows = "" if row["arm"] != "swap" else percent(row["follows_donor"])
        cells = [accuracy(row), effect, follows, percent(row["format"])]
        rows.append([f"`{row['bench']}`", f"`{row['arm']}`", *cells])
    header = ["benchmark", "arm", "accuracy, %", "effect, points", "follows the donor, %", "valid format, %"]
    return markdown_table(header, rows)


def story_checkpoints() -> str:
    """Accuracy of each checkpoint under `memento`, and the effect of each restart, in two conditions."""
    table = read("story_channel")
    rows = []
    for condition in ("complete-derived", "needed-observed"):
        part = table[table["bench"] == f"story-{condition}"]
        for model, arms in part.groupby("model", sort=False):
            by_arm = arms.set_index("arm")
            cells = [accuracy(by_arm.loc["memento"])]
            name = f"`{model}`" + ("" if arms["valid"].all() else " (invalid)")
            for arm in RESTARTS:
                effect = by_arm.reindex([arm])[[f"effect{end}" for end in ENDS]].iloc[0].astype(float)
                cells.append("" if effect.isna().all() else interval(100 * effect, 1))
            rows.append([f"`story-{condition}`", name, *cells])
    return markdown_table(["benchmark", "checkpoint", "memento, %", *(f"`{arm}`, points" for arm in RESTARTS)], rows)


STORY_TABLES: dict[str, Callable[[], str]] = {
    "story-channel": story_channel,
    "story-checkpoints": story_checkpoints,
}
