"""Tables of the recorded patching results, as Markdown."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from experiments.markdown import interval, markdown_table, number
from experiments.result_tables import ENDS, read

KV_NAMES = {"k": "keys", "v": "values"}


def toy_patching() -> str:
    """Share of the effect of swapping everything that one part of the memento reproduces, by block."""
    results = read("toy_patching")
    mementos, rows = results[(results["carrier"] == "memento") & (results["offset"] == "all")], []
    layers = [layer for layer in sorted(set(mementos["layer"])) if layer != "all"]
    for (model, source, block), part in mementos.groupby(["model", "source", "block"], sort=False):
        by_site = part.set_index(["layer", "kv"])
        sites = [("all", "k"), ("all", "v"), *((layer, "kv") for layer in layers)]
        cells = [_share(by_site.loc[site], "recovered") for site in sites]
        rows.append([str(model), str(source), str(block), *cells])
    header = ["model", "benchmark", "block", "all keys", "all values", *(f"layer {layer}" for layer in layers)]
    return markdown_table(header, rows)


def toy_patching_sets() -> str:
    """Sets of sites that carry the text after each block, with what everything else does."""
    rows = []
    for row in read("toy_patching_sets").to_dict("records"):
        cells = [str(row["model"]), str(row["source"]), str(row["block"]), _sites(row)]
        for prefix in ("", "rest_"):
            cells += [_share(row, f"{prefix}recovered"), number(100 * row[f"{prefix}overshoot"], 0)]
            cells.append(f"{row[f'{prefix}flipped']} of {row['n_traces']}")
        rows.append(cells)
    header = ["model", "benchmark", "block", "set", "share", "beyond", "flipped"]
    return markdown_table([*header, "rest: share", "rest: beyond", "rest: flipped"], rows)


def _share(row: Mapping[Any, Any], column: str) -> str:
    """Return a share in percent with its interval."""
    return interval((100 * row[f"{column}{end}"] for end in ENDS), 0)


def _sites(row: Mapping[Any, Any]) -> str:
    """Return the number of tokens of a set by layer, keys and values."""
    counts = Counter((int(site["layer"]), site["kv"]) for site in row["sites"])
    return ", ".join(f"layer {layer} {KV_NAMES[kv]}: {count}" for (layer, kv), count in sorted(counts.items()))


PATCHING_TABLES: dict[str, Callable[[], str]] = {
    "toy-patching": toy_patching,
    "toy-patching-sets": toy_patching_sets,
}
