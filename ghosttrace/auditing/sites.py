"""Selection of sweep rows: the site and probe with the most bits on validation."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
SITE_AND_PROBE = ("carrier", "hop", "layer", "kv", "head", "probe")


def best_probe(rows: Iterable[Row]) -> Row:
    """Return the open-cache site and probe with the most bits on validation, under the keys of `SITE_AND_PROBE`."""
    groups = group_by_site([row for row in rows if row["condition"] == "open"])
    best = max(groups, key=validation_bits)[0]
    return {name: best[name] for name in SITE_AND_PROBE}


def matches_site(row: Row, site: Row, condition: str) -> bool:
    """Return whether a row was measured at a site under a condition."""
    return row["condition"] == condition and all(row[name] == value for name, value in site.items())


def group_by_site(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows by site and probe, in the order in which the sites first occur."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SITE_AND_PROBE), []).append(row)
    return list(groups.values())


def validation_bits(rows: Sequence[Row]) -> float:
    """Return the bits on validation, summed over targets."""
    return float(sum(row["validation_bits"] for row in rows))
