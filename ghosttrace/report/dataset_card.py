"""The card of a data set with mementos: its counts, its origin, and the figures of the Memento paper."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PANELS = ("Blocks per trace", "Tokens per block", "Tokens per memento", "Block tokens per memento token")


def shape_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the values behind the panels by title: one per trace, or one per block.

    Args:
        rows: the token counts `block_tokens` and `memento_tokens` of each trace.
    """
    ratios = [sum(row["block_tokens"]) / max(1, sum(row["memento_tokens"])) for row in rows]
    block_tokens, memento_tokens = (
        [count for row in rows for count in row[name]] for name in ("block_tokens", "memento_tokens")
    )
    values = [len(row["block_tokens"]) for row in rows], block_tokens, memento_tokens, ratios
    return dict(zip(PANELS, values, strict=True))


def shape_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw blocks per trace, tokens per block and memento, and compression, by domain (figure 3 of the paper).

    Args:
        rows: `domain` and the token counts of each trace.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for domain in dict.fromkeys(row["domain"] for row in rows):
        values = shape_values([row for row in rows if row["domain"] == domain])
        for axis, panel in zip(axes.flat, PANELS, strict=True):
            name = domain or "no domain"
            axis.hist(values[panel], bins=20, alpha=0.6, label=f"{name}: median {median(values[panel]):,.1f}")
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        axis.set_title(panel)
        if rows:
            axis.legend(fontsize="small")
    plt.close(figure)
    return figure


def dataset_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a data set.

    Args:
        summary: content of the build's summary.json.
    """
    configurations = "\n".join(
        f"  - config_name: {name}\n    data_files: {name}/train.parquet" + ("\n    default: true" if not index else "")
        for index, (name, count) in enumerate(summary["rows"].items())
        if count or not index
    )
    shape = "\n".join(f"| {row['what']} | {row['mean']:,.1f} | {row['median']:,.1f} |" for row in summary["shape"])
    dropped = "\n".join(f"| {row['stage']} | {row['reason']} | {row['count']:,} |" for row in summary["set_aside"])
    counts = "\n".join(f"| {name} | {count:,} |" for name, count in summary["rows"].items() if name != "full")
    prompts = ", ".join(f"{name} {version}" for name, version in summary["prompts"].items())
    return f"""---
configs:
{configurations}
tags:
  - memento
  - reasoning
---

# Reasoning traces with mementos

Made with `ghosttrace data build` in the format of
[OpenMementos](https://huggingface.co/datasets/microsoft/OpenMementos) (arXiv 2604.09852). `default` holds problem and
response, `full` also sentences, blocks, scores and the certificate of the segmentation. `rejected` holds the rows with
a memento that was not accepted. Annotated by {summary["model"]}, prompts {prompts}.

| rows | count |
|---|---:|
{counts}

| shape | mean | median |
|---|---:|---:|
{shape}

![Blocks per trace, tokens per block and memento, compression](figures/shape.png)

| set aside in | reason | traces |
|---|---|---:|
{dropped or "| | none | 0 |"}
"""
