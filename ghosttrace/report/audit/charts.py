"""Charts of an audit's page as numbers for its template: interval bars, and heat maps of the cache."""

from collections.abc import Callable, Mapping, Sequence
from math import copysign, log1p
from typing import Any

from ghosttrace.report.audit.wording import BIT_UNITS, RATE_UNITS

ALPHA = 0.05
WIDTH, MARGIN = 220.0, 6.0  # of a bar in pixels
Row = Mapping[str, Any]
Scale = Callable[[float], float]


def bits_scale(rows: Sequence[Row], limit: float) -> Scale:
    """Pixels of an amount of information: linear about 0, logarithmic beyond the limit, all rows within."""
    ends = [row[name] for row in rows if row["unit"] in BIT_UNITS for name in ("estimate", "low", "high")]
    known = [end for end in ends if end is not None]
    return _stretch(
        lambda value: copysign(log1p(abs(value) / limit), value), min([0.0, *known]), max([2 * limit, *known])
    )


def scales(rows: Sequence[Row], limit: float) -> dict[str, Scale]:
    """Pixels for each unit."""
    highest = max((row["estimate"] or 0.0 for row in rows if row["unit"] == "epsilon"), default=0.0)
    plain = _stretch(lambda value: value, 0.0, 1.0)
    found = dict.fromkeys(BIT_UNITS, bits_scale(rows, limit)) | dict.fromkeys(RATE_UNITS, plain)
    return found | {"epsilon": _stretch(lambda value: value, 0.0, max(1.0, highest))}


def _stretch(form: Scale, low: float, high: float) -> Scale:
    """The scale of a shape between two ends."""
    left, span = form(low), form(high) - form(low)
    return lambda value: round(MARGIN + (WIDTH - 2 * MARGIN) * (form(value) - left) / span, 1)


def bar(row: Row, limit: float, at: Mapping[str, Scale]) -> dict[str, Any]:
    """Where the marks of a row go, in pixels; None for those it lacks.

    Returns:
        low, high and value of the estimate, base (what there is to see without a leak) and limit.
    """
    scale, unit = at[row["unit"]], row["unit"]
    base = row["baseline"] if unit in RATE_UNITS else 0.0
    marks = {"low": row["low"], "high": row["high"], "value": row["estimate"], "base": base}
    marks["limit"] = limit if unit in BIT_UNITS else None
    return {name: None if value is None else scale(value) for name, value in marks.items()}


def ticks(rows: Sequence[Row], limit: float) -> list[tuple[str, float]]:
    """The axis of the bars of bits: 0, the limit, and steps of ten beyond it, with their pixels."""
    scale, found = bits_scale(rows, limit), [0.0, limit]
    while scale(found[-1] * 10) <= WIDTH - MARGIN:
        found.append(found[-1] * 10)
    return [(f"{value:g}", scale(value)) for value in found]


def heat_maps(sites: Sequence[Row]) -> list[dict[str, Any]]:
    """Bits by layer and hop, of linear probes on all heads: one entry a target.

    Returns:
        target, highest (bits of the darkest cell) and maps: kv, condition, hops and lines, each of them a
        layer with its cells; a cell is None, or bits, share (of highest, in percent) and sure (above 0
        after Holm's adjustment).
    """
    kept = [row for row in sites if row["probe"] == "linear" and row["head"] == "all" and row["layer"].isdigit()]
    names = {row["target"] for row in kept}
    stems = {name: f"{name.rpartition('-')[0]}-*" for name in names}
    shown = dict.fromkeys(stems[row["target"]] if stems[row["target"]] in names else row["target"] for row in kept)
    found = []
    for target in shown:
        rows = [row for row in kept if row["target"] == target and row["bits"] is not None]
        seen = [row["bits"] for row in rows if row["condition"] in ("open", "sealed")]
        highest = max([0.05, *seen])
        kinds = dict.fromkeys((row["kv"], row["condition"]) for row in rows if row["condition"] in ("open", "sealed"))
        maps = [_heat_map(rows, kv, condition, highest) for kv, condition in sorted(kinds)]
        found.append({"target": target, "highest": highest, "maps": maps})
    return found


def _heat_map(rows: Sequence[Row], kv: str, condition: str, highest: float) -> dict[str, Any]:
    """One map, the causal control at hop -1 with it; of several carriers the one that shows most."""
    mine = [row for row in rows if row["kv"] == kv and row["condition"] in (condition, "causal")]
    best: dict[tuple[int, int], Row] = {}
    for row in sorted(mine, key=lambda row: row["bits"]):
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
