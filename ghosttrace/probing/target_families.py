"""Families of targets, such as the digits of one secret: their mean is shown in place of the members."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def target_family(target: str) -> str:
    """Return the family of a target: `note-*` for `note-3`, else the name itself."""
    stem, dash, number = target.rpartition("-")
    return f"{stem}-*" if dash and number.isdigit() else target


def is_headline(targets: pd.Series) -> pd.Series:
    """Return whether to show each target; a family is shown as its mean only."""
    known = set(targets)
    return targets.map(lambda name: target_family(name) == name or target_family(name) not in known)


def family_means(
    records: Sequence[dict[str, Any]], chances: dict[str, float], site_columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the mean over each family of targets, on its common samples, as records; add the families to `chances`.

    Args:
        records: Rows of `ghosttrace.probing.evidence.PROBE_RECORDS`.
        chances: Accuracy by chance, by target.
        site_columns: The columns that members of a family share in a record.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in records:
        key = tuple(row[name] for name in site_columns)
        groups.setdefault((*key, target_family(row["target"])), []).append(row)
    merged = []
    for key, members in groups.items():
        if len(members) == 1:
            continue
        name = key[-1]
        chances[name] = float(np.mean([chances[row["target"]] for row in members]))
        common = sorted(set.intersection(*(set(row["sample"]) for row in members)))
        indices = [np.searchsorted(row["sample"], common) for row in members]
        means = {
            column: np.mean([np.asarray(m[column], float)[i] for m, i in zip(members, indices, strict=True)], axis=0)
            for column in ("log2p", "text_log2p", "hit")
        }
        scalars = {"n_train": min(row["n_train"] for row in members)}
        scalars["validation_bits"] = float(np.mean([row["validation_bits"] for row in members]))
        merged.append(members[0] | means | scalars | {"target": name, "sample": common})
    return merged
