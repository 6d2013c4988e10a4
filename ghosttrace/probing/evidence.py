"""Evidence: what a probe found on the test, as bits beyond the text, with the controls it must survive.

Bits of a row are the mean over test samples of log2 p(label | text, features) - log2 p(label | text):
held-out cross-entropy saved, a lower bound on the usable information that the features add to the text
(Xu et al. 2020, arXiv 2002.10689). Intervals are Student's t over clusters (base traces), p-values
one-sided from the same, adjusted by Holm over all open rows of the sweep; the control rows are adjusted
among themselves, so that a run without any leak is called invalid in at most 5 % of runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from ghosttrace.data.task import Task
from ghosttrace.probing.split import Split
from ghosttrace.runs.records import RecordLayout
from ghosttrace.stats import holm, ratio_estimate, unseen_share_bound

CONTROLS = ("sealed", "causal", "shuffled")
CONDITIONS = ("open", *CONTROLS, "control-task", "unerased", "text", "exact")
ALPHA = 0.05
NEGLIGIBLE_BITS = 0.01  # bits; what a control shows below this is rounding of the baseline, not a leak
MIN_TEST_CLUSTERS = 5  # on test; with fewer no control would be significant over a sweep, whatever it showed
MIN_UNKNOWN_BITS = 0.1  # bits that a text may leave of a target without there being something to read
ROUNDING_NATS = 1e-5  # nats by which a probe that says nothing may miss the text in float32
SITE_COLUMNS = ("carrier", "hop", "layer", "kv", "head")
KEY_COLUMNS = ("condition", *SITE_COLUMNS, "probe", "target")
PROBE_RECORDS = RecordLayout(
    pa.schema(
        {
            "condition": pa.string(),
            "carrier": pa.string(),
            "hop": pa.int32(),
            "layer": pa.string(),
            "kv": pa.string(),
            "head": pa.string(),
            "probe": pa.string(),
            "target": pa.string(),
            "n_train": pa.int32(),
            "validation_bits": pa.float64(),
            "sample": pa.list_(pa.int32()),
            "log2p": pa.list_(pa.float64()),
            "text_log2p": pa.list_(pa.float64()),
            "hit": pa.list_(pa.bool_()),
        }
    ),
    KEY_COLUMNS,
)


@dataclass(frozen=True)
class ProbeTarget:
    """A target as probes meet it.

    Attributes:
        name: the target.
        labels: int64[N], -1 where it does not apply.
        text: float[N, C], the natural logarithm of its posterior before any features.
    """

    name: str
    labels: np.ndarray
    text: np.ndarray


@dataclass(frozen=True)
class Scores:
    """What one probe said of one target.

    Attributes:
        target: its name.
        log2p, text_log2p: float[n], of the right label, with the features and from the text alone.
        hit: bool[n], whether the likeliest label was right.
        sample: int64[n], the test samples that it applies to.
        n_train: samples it was fitted on.
        validation_bits: what it was chosen by.
    """

    target: str
    log2p: np.ndarray
    text_log2p: np.ndarray
    hit: np.ndarray
    sample: np.ndarray
    n_train: int
    validation_bits: float


def score(asked: ProbeTarget, posterior: np.ndarray, split: Split) -> Scores:
    """Score a posterior, float[N, C] of natural logarithms, on the samples to which the target applies."""
    posterior = np.where(np.abs(posterior - asked.text) < ROUNDING_NATS, asked.text, posterior)
    test, check, train = (part[asked.labels[part] >= 0] for part in (split.test, split.validation, split.train))
    right = asked.labels[test]
    gained = (posterior - asked.text)[check, asked.labels[check]]
    return Scores(
        asked.name,
        posterior[test, right] / np.log(2),
        asked.text[test, right] / np.log(2),
        posterior[test].argmax(axis=1) == right,
        test,
        len(train),
        float(gained.mean() / np.log(2)),
    )


def fall_back_to_text(posterior: np.ndarray, asked: ProbeTarget, rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The posterior, or what the text says if on validation it gains no more than one standard error.

    Without this a probe of nothing would be a little worse than the text, and surely so (the rule of one
    standard error: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3).

    Args:
        posterior: float[N, C], natural logarithms.
        asked: the target.
        rows: int64[n], the validation samples.
        cluster: int64[N], samples that are not independent.
    """
    rows = rows[asked.labels[rows] >= 0]
    gained = (posterior - asked.text)[rows, asked.labels[rows]]
    number = np.unique(cluster[rows], return_inverse=True)[1]
    count = np.bincount(number).astype(float)
    if len(count) < 2:
        return asked.text
    found = ratio_estimate(np.bincount(number, gained), count)
    error = (found.high - found.value) / stats.t.ppf(0.975, max(1, len(count) - 1))
    return asked.text if found.value <= error else posterior


def record(scores: Scores, **site: Any) -> dict[str, Any]:
    """A row of `PROBE_RECORDS`; `site` holds condition, carrier, hop, layer, kv, head and probe."""
    lists = {name: getattr(scores, name).tolist() for name in ("sample", "log2p", "text_log2p", "hit")}
    plain = {"target": scores.target, "n_train": scores.n_train, "validation_bits": scores.validation_bits}
    return {**site, **plain, **lists}


def summarise(rows: Iterable[Mapping[str, Any]], task: Task, split: Split) -> pd.DataFrame:
    """One row a cell and target, and one for the mean of targets that share a name (`note-*`).

    Args:
        rows: of `PROBE_RECORDS`.
        task, split: what they were measured on.

    Returns:
        The columns of `KEY_COLUMNS`, and n_train, n_test, n_clusters, chance, unknown (bits that the text
        leaves), accuracy, bits (both with `_low` and `_high`), selectivity (open rows:
        accuracy less that on the control task), p and p_holm (bits above 0), significant (p_holm at most
        `ALPHA` and more than `NEGLIGIBLE_BITS` bits), headline (a target to show: of targets that share a name their
        mean alone), valid (every control held).
    """
    cells = [dict(row) for row in rows]
    chances = {target.name: _chance(task.labels(number), split) for number, target in enumerate(task.targets)}
    found = pd.DataFrame([_row(cell, split, chances[cell["target"]]) for cell in cells + _grouped(cells, chances)])
    control = found[found["condition"] == "control-task"].set_index([*SITE_COLUMNS, "probe", "target"])["accuracy"]
    index = pd.MultiIndex.from_frame(found[[*SITE_COLUMNS, "probe", "target"]])
    found["selectivity"] = np.where(
        found["condition"] == "open", found["accuracy"] - control.reindex(index).to_numpy(), np.nan
    )
    found["p_holm"] = np.nan
    for family in (("open",), CONTROLS):
        here = found["condition"].isin(family)
        if here.any():
            found.loc[here, "p_holm"] = holm(found.loc[here, "p"].to_list())
    found["significant"] = (found["p_holm"] <= ALPHA) & (found["bits"] > NEGLIGIBLE_BITS)
    found["headline"] = _headline(found["target"])
    found["valid"] = not failed_controls(found)
    return found


def _chance(labels: np.ndarray, split: Split) -> float:
    """How often the commonest class of the training set is right on the test."""
    train, test = (labels[part][labels[part] >= 0] for part in (split.train, split.test))
    return float(np.mean(test == np.bincount(train).argmax())) if len(test) else float("nan")


def target_family(target: str) -> str:
    """`note-3` belongs to `note-*`."""
    stem, dash, number = target.rpartition("-")
    return f"{stem}-*" if dash and number.isdigit() else target


def _headline(targets: pd.Series) -> pd.Series:
    """Whether a target is one to show: those of one name as their mean, others as they are."""
    known = set(targets)
    return targets.map(lambda name: target_family(name) == name or target_family(name) not in known)


def _grouped(cells: list[dict[str, Any]], chances: dict[str, float]) -> list[dict[str, Any]]:
    """Cells of the mean over targets of one family, on the samples that all of them apply to."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        key = tuple(cell[name] for name in KEY_COLUMNS[:-1])
        groups.setdefault((*key, target_family(cell["target"])), []).append(cell)
    merged = []
    for key, members in groups.items():
        if len(members) == 1:
            continue
        name = key[-1]
        chances[name] = float(np.mean([chances[cell["target"]] for cell in members]))
        common = sorted(set.intersection(*(set(cell["sample"]) for cell in members)))
        rows = [np.searchsorted(cell["sample"], common) for cell in members]
        means = {
            column: np.mean([np.asarray(c[column], float)[r] for c, r in zip(members, rows, strict=True)], axis=0)
            for column in ("log2p", "text_log2p", "hit")
        }
        plain = {"n_train": min(cell["n_train"] for cell in members)}
        plain["validation_bits"] = float(np.mean([cell["validation_bits"] for cell in members]))
        merged.append(members[0] | means | plain | {"target": name, "sample": common})
    return merged


def _row(cell: Mapping[str, Any], split: Split, chance: float) -> dict[str, Any]:
    """The statistics of one cell."""
    cluster = np.unique(split.cluster[np.asarray(cell["sample"], dtype=np.int64)], return_inverse=True)[1]
    count = np.bincount(cluster).astype(float)
    gained = np.asarray(cell["log2p"], dtype=float) - np.asarray(cell["text_log2p"], dtype=float)
    bits = ratio_estimate(np.bincount(cluster, gained), count)
    hits = ratio_estimate(np.bincount(cluster, np.asarray(cell["hit"], dtype=float)), count)
    slack = unseen_share_bound(len(count))  # of clusters that all agree, resampling says nothing
    half = bits.high - bits.value
    if half > 0:
        quantile = stats.t.ppf(0.975, len(count) - 1)
        p = float(stats.t.sf(bits.value * quantile / half, len(count) - 1))
    else:  # all clusters agree, or there is one alone: as a test of signs has it
        p = 0.5 ** len(count) if bits.value > 0 else 1.0
    return {name: cell[name] for name in KEY_COLUMNS} | {
        "n_train": cell["n_train"],
        "n_test": len(gained),
        "n_clusters": len(count),
        "chance": chance,
        "unknown": -float(np.mean(cell["text_log2p"])),
        "accuracy": hits.value,
        "accuracy_low": max(0.0, min(hits.low, hits.value * (1 - slack))),
        "accuracy_high": min(1.0, max(hits.high, hits.value + (1 - hits.value) * slack)),
        "bits": bits.value,
        "bits_low": bits.low,
        "bits_high": bits.high,
        "p": p,
    }


def failed_controls(results: pd.DataFrame) -> tuple[str, ...]:
    """The controls that did not hold, in words.

    Sealed, causal and shuffled rows must show nothing beyond the text. The secret's own tokens, before
    they are erased, must show the secret, or the probe is blind. And where the posterior given the text
    is known, no text baseline can beat it.
    """
    failures = []
    clusters = int(results["n_clusters"].min())
    if clusters < MIN_TEST_CLUSTERS:
        failures.append(f"controls: {clusters} independent traces on test are too few for a control to fail")
    bad = results[results["condition"].isin(CONTROLS) & results["significant"]]
    for condition in dict.fromkeys(bad["condition"]):
        rows = bad[bad["condition"] == condition]
        worst = rows.nlargest(1, "bits").to_dict("records")[0]
        failures.append(
            f"{condition}: {worst['target']} in {worst['kv']} of layer {worst['layer']}, {worst['carrier']} at hop "
            f"{worst['hop']}: {worst['bits']:+.3f} bits where nothing beyond the text can be ({len(rows)} such rows)"
        )
    told = {
        condition: results[results["condition"] == condition].set_index("target") for condition in ("text", "exact")
    }
    above = told["text"]["bits_low"] - told["exact"]["bits_high"]
    for target in above.index[above > NEGLIGIBLE_BITS]:
        failures.append(f"text: {target} is told by the text better than its exact posterior says: that is wrong")
    own = results[results["condition"] == "unerased"]
    for target in dict.fromkeys(own["target"]):
        rows = own[own["target"] == target]
        blind = (rows["p"] > ALPHA).all() or rows["bits"].max() <= NEGLIGIBLE_BITS
        if blind and rows["unknown"].max() > MIN_UNKNOWN_BITS:
            failures.append(f"unerased: {target} cannot be read from the secret's own tokens: give more samples")
    return tuple(failures)
