"""Table of `experiments/story_channel.py`: a pretrained model that writes mementos, by condition and arm."""

from collections.abc import Callable

from experiments.markdown import interval, markdown_table, percent
from experiments.result_tables import ENDS, read


def story_channel() -> str:
    """Accuracy and effect of each arm, the share of answers that follow a donor, and of well-formed responses."""
    rows = []
    for row in read("story_channel").to_dict("records"):
        low, high = (percent(row[f"accuracy{end}"]) for end in ENDS[1:])
        reference = row["arm"] == "memento"
        effect = "" if reference else interval((100 * row[f"effect{end}"] for end in ENDS), 1)
        follows = "" if row["arm"] != "swap" else percent(row["follows_donor"])
        cells = [f"{percent(row['accuracy'])} [{low}, {high}]", effect, follows, percent(row["format"])]
        rows.append([f"`{row['bench']}`", f"`{row['arm']}`", *cells])
    header = ["benchmark", "arm", "accuracy, %", "effect, points", "follows the donor, %", "valid format, %"]
    return markdown_table(header, rows)


STORY_TABLES: dict[str, Callable[[], str]] = {"story-channel": story_channel}
