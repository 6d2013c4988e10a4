"""Coordinates of the charts of an audit's page: interval bars and heat maps of the cache."""

from collections.abc import Callable, Mapping, Sequence
from math import copysign, log1p
from typing import Any

from ghosttrace.report.audit.wording import BIT_UNITS, RATE_UNITS
from ghosttrace.stats import ALPHA

WIDTH, MARGIN = 220.0, 6.0  # of a bar, in pixels
Row = Mapping[str, Any]
Scale = Callable[[float], float]


def bits_scale(rows: Sequence[Row], limit: float) -> Scale:
    """Return the scale from bits to pixels, linear around 0 and logarithmic beyond the limit, that fits all rows."""
    ends = [row[name] for row in rows if row["unit"] in BIT_UNITS for name in ("estimate", "low", "high")]
    known = [end for end in ends if end is not None]
    return _stretch(
        lambda value: copysign(log1p(abs(value) / limit), value), min([0.0, *known]), max([2 * limit, *known])
    )


def scales(rows: Sequence[Row], limit: float) -> dict[str, Scale]:
    """Return the scale to pixels of each unit."""
    highest = max((row["estimate"] or 0.0 for row in rows if row["unit"] == "log rate ratio"), default=0.0)
    unit_interval = _stretch(lambda value: value, 0.0, 1.0)
    by_unit = dict.fromkeys(BIT_UNITS, bits_scale(rows, limit)) | dict.fromkeys(RATE_UNITS, unit_interval)
    return by_unit | {"log rate ratio": _stretch(lambda value: value, 0.0, max(1.0, highest))}


def _stretch(transform: Scale, low: float, high: float) -> Scale:
    """Return the scale that maps `low` to `high`, after a transform, to the width of a bar."""
    left, span = transform(low), transform(high) - transform(low)
    return lambda value: round(MARGIN + (WIDTH - 2 * MARGIN) * (transform(value) - left) / span, 1)


def bar(row: Row, limit: float, at: Mapping[str, Scale]) -> dict[str, Any]:
    """Compute the coordinates of a row's marks.

    Args:
        row: One row of the results.
        limit: Limit of the audit, in bits.
        at: Scale of each unit, as `scales` returns them.

    Returns:
        Pixels of `low`, `high` and `value` (interval and estimate), `base` (the expected value without a leak) and
        `limit`; None for marks that the row lacks.
    """
    scale, unit = at[row["unit"]], row["unit"]
    base = row["baseline"] if unit in RATE_UNITS else 0.0
    marks = {"low": row["low"], "high": row["high"], "value": row["estimate"], "base": base}
    marks["limit"] = limit if unit in BIT_UNITS else None
    return {name: None if value is None else scale(value) for name, value in marks.items()}


def ticks(rows: Sequence[Row], limit: float) -> list[tuple[str, float]]:
    """Return labels and pixels of the axis in bits: 0, the limit, and powers of ten times the limit."""
    scale, values = bits_scale(rows, limit), [0.0, limit]
    while scale(values[-1] * 10) <= WIDTH - MARGIN:
        values.append(values[-1] * 10)
    return [(f"{value:g}", scale(value)) for value in values]


def heat_maps(sites: Sequence[Row]) -> list[dict[str, Any]]:
    """Arrange the bits of linear probes on all heads by layer and hop.

    Args:
        sites: The sites of summary.json.

    Returns:
        One entry per target with `target`, `highest` (bits of the darkest cell) and `maps`. A map has `kv`,
        `condition`, `hops` and `lines`; a line has `layer` and `cells`; a cell is None or has `bits`, `share` (percent
        of `highest`) and `sure` (True if above 0 after Holm's adjustment).
    """
    kept = [row for row in sites if row["probe"] == "linear" and row["head"] == "all" and row["layer"].isdigit()]
    names = {row["target"] for row in kept}
    stems = {name: f"{name.rpartition('-')[0]}-*" for name in names}
    shown = dict.fromkeys(stems[row["target"]] if stems[row["target"]] in names else row["target"] for row in kept)
    entries = []
    for target in shown:
        rows = [row for row in kept if row["target"] == target and row["bits"] is not None]
        bits = [row["bits"] for row in rows if row["condition"] in ("open", "sealed")]
        highest = max([0.05, *bits])
        kinds = dict.fromkeys((row["kv"], row["condition"]) for row in rows if row["condition"] in ("open", "sealed"))
        maps = [_heat_map(rows, kv, condition, highest) for kv, condition in sorted(kinds)]
        entries.append({"target": target, "highest": highest, "maps": maps})
    return entries


def _heat_map(rows: Sequence[Row], kv: str, condition: str, highest: float) -> dict[str, Any]:
    """Build one map, with the causal control at hop -1; cells show the carrier with the most bits."""
    map_rows = [row for row in rows if row["kv"] == kv and row["condition"] in (condition, "causal")]
    best: dict[tuple[int, int], Row] = {}
    for row in sorted(map_rows, key=lambda row: row["bits"]):
        best[int(row["layer"]), row["hop"]] = row
    layers, hops = (sorted({key[part] for key in best}) for part in (0, 1))
    lines = [
        {"layer": layer, "cells": [_cell(best.get((layer, hop)), highest) for hop in hops]} for layer in layers[::-1]
    ]
    return {"kv": kv, "condition": condition, "hops": hops, "lines": lines}


def _cell(row: Row | None, highest: float) -> dict[str, Any] | None:
    if row is None:
        return None
    sure = row["p_holm"] is not None and row["p_holm"] <= ALPHA
    return {"bits": row["bits"], "share": round(100 * min(1.0, max(0.0, row["bits"] / highest))), "sure": sure}
