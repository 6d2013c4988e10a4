"""Choosing among the rows of a sweep: the site and probe that did best on validation."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
SITE_AND_PROBE = ("carrier", "hop", "layer", "kv", "head", "probe")


def best_probe(rows: Iterable[Row]) -> Row:
    """The site and probe of the open cache with the most bits on validation, as a dict with the keys `SITE_AND_PROBE`."""
    groups = group_by_site([row for row in rows if row["condition"] == "open" and row["probe"] in ("linear", "mlp")])
    best = max(groups, key=validation_bits)[0]
    return {name: best[name] for name in SITE_AND_PROBE}


def matches_site(row: Row, site: Row, condition: str) -> bool:
    """Whether a row was measured at a site under a condition."""
    return row["condition"] == condition and all(row[name] == value for name, value in site.items())


def group_by_site(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same site and probe together, in the order in which sites first occur."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SITE_AND_PROBE), []).append(row)
    return list(groups.values())


def validation_bits(rows: Sequence[Row]) -> float:
    """Bits on validation, summed over targets."""
    return float(sum(row["validation_bits"] for row in rows))
