"""Evidence: the bits beyond the text of every probe on the test set, and the controls that must hold.

Bits are the mean over test samples of log2 p(label | text, features) - log2 p(label | text). This reduction of
held-out cross-entropy is a lower bound on the usable information that the features add to the text (Xu et al.
2020, arXiv 2002.10689). Intervals use Student's t over clusters (base traces). P-values are one-sided, from the
same distribution, and adjusted by Holm's method over all open rows of the sweep. The rows of the controls are
adjusted in a family of their own, so that at most 5 % of runs without a leak are called invalid.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from ghosttrace.data.task import Task
from ghosttrace.probing.split import MIN_SPLIT_GROUPS, SPLIT_FRACTIONS, Split
from ghosttrace.probing.target_families import family_means, is_headline
from ghosttrace.runs.records import RecordLayout
from ghosttrace.stats import ALPHA, holm, ratio_estimate, unseen_share_bound

CONTROLS = ("sealed", "swapped", "causal", "shuffled")
CONDITIONS = ("open", *CONTROLS, "earlier", "decoder", "half-decoder", "control-task", "unerased", "text", "exact")
BEYOND_DECODER = ("open", "swapped", "earlier")  # rows that a paired sweep measures against a decoder of the text
NEGLIGIBLE_BITS = 0.01  # bits; a smaller value in a control is rounding of the baseline, not a leak
MIN_UNKNOWN_BITS = 0.1  # bits; with less entropy given a fitted text baseline, a probe may find nothing to read
MIN_TEST_CLUSTERS = 5  # on test; with fewer, no control could reach significance in a sweep
ROUNDING_NATS = 1e-5  # nats; float32 error of a probe that repeats the text baseline
SITE_COLUMNS = ("carrier", "hop", "layer", "kv", "head")
KEY_COLUMNS = ("condition", *SITE_COLUMNS, "probe", "target")
PER_SAMPLE_COLUMNS = ("sample", "log2p", "text_log2p", "guess_log2p", "guess_text_log2p", "hit")
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
            "guess_log2p": pa.list_(pa.float32()),
            "guess_text_log2p": pa.list_(pa.float32()),
            "hit": pa.list_(pa.bool_()),
        }
    ),
    KEY_COLUMNS,
)


@dataclass(frozen=True)
class ProbeTarget:
    """A target as it is passed to probes.

    Attributes:
        name: Name of the target.
        labels: int64[N]; -1 where the target does not apply.
        text: float[N, C], natural logarithms of the text baseline: the class probabilities without features.
    """

    name: str
    labels: np.ndarray
    text: np.ndarray


@dataclass(frozen=True)
class Scores:
    """The predictions of one probe for one target, on the n test samples that the target applies to.

    Attributes:
        target: Name of the target.
        log2p: float[n], base-2 log-probability of the true label from text and features.
        text_log2p: float[n], base-2 log-probability of the true label from the text alone.
        guess_log2p, guess_text_log2p: float[n], the same for the most probable label, which an attacker would guess.
        hit: bool[n], whether the most probable label is the true one.
        sample: int64[n], indices of the samples.
        n_train: Number of training samples.
        validation_bits: Bits beyond the text on validation, the criterion of model selection.
    """

    target: str
    log2p: np.ndarray
    text_log2p: np.ndarray
    guess_log2p: np.ndarray
    guess_text_log2p: np.ndarray
    hit: np.ndarray
    sample: np.ndarray
    n_train: int
    validation_bits: float


def score(target: ProbeTarget, posterior: np.ndarray, split: Split) -> Scores:
    """Score a posterior on the test samples to which the target applies.

    Args:
        target: The target.
        posterior: float[N, C], natural logarithms of the predicted class probabilities.
        split: Train, validation and test samples.
    """
    posterior = np.where(np.abs(posterior - target.text) < ROUNDING_NATS, target.text, posterior)
    test, validation, train = (part[target.labels[part] >= 0] for part in (split.test, split.validation, split.train))
    labels = target.labels[test]
    gain = (posterior - target.text)[validation, target.labels[validation]]
    guess = posterior[test].argmax(axis=1)
    return Scores(
        target.name,
        posterior[test, labels] / np.log(2),
        target.text[test, labels] / np.log(2),
        posterior[test, guess] / np.log(2),
        target.text[test, guess] / np.log(2),
        guess == labels,
        test,
        len(train),
        float(gain.mean() / np.log(2)),
    )


def fall_back_to_text(posterior: np.ndarray, target: ProbeTarget, rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Return the posterior, or the text baseline if the posterior gains at most one standard error on validation.

    Without this rule a probe of uninformative features would be significantly worse than the text baseline (the
    one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3).

    Args:
        posterior: float[N, C], natural logarithms of the predicted class probabilities.
        target: The target.
        rows: int64[n], the validation samples.
        cluster: int64[N]; samples with the same number are not independent.

    Returns:
        float[N, C], natural logarithms; `target.text` also if the validation samples form fewer than two clusters.
    """
    rows = rows[target.labels[rows] >= 0]
    gain = (posterior - target.text)[rows, target.labels[rows]]
    number = np.unique(cluster[rows], return_inverse=True)[1]
    count = np.bincount(number).astype(float)
    if len(count) < 2:
        return target.text
    mean_gain = ratio_estimate(np.bincount(number, gain), count)
    standard_error = (mean_gain.high - mean_gain.value) / stats.t.ppf(0.975, max(1, len(count) - 1))
    return target.text if mean_gain.value <= standard_error else posterior


def record(scores: Scores, **site: Any) -> dict[str, Any]:
    """Return a row of `PROBE_RECORDS`; `site` holds condition, carrier, hop, layer, kv, head and probe."""
    lists = {name: getattr(scores, name).tolist() for name in PER_SAMPLE_COLUMNS}
    scalars = {"target": scores.target, "n_train": scores.n_train, "validation_bits": scores.validation_bits}
    return {**site, **scalars, **lists}


def summarise(rows: Iterable[Mapping[str, Any]], task: Task, split: Split) -> pd.DataFrame:
    """Compute the results table of a sweep.

    Args:
        rows: Rows of `PROBE_RECORDS`.
        task: The task that they were measured on.
        split: The split of its samples.

    Returns:
        One row per record, and one for the mean over each family of targets (`note-*` for `note-0`, `note-1`, ...).
        Columns are `KEY_COLUMNS`, n_train, n_test, n_clusters (on test) and:

        - chance: accuracy of the most frequent class
        - unknown: bits of the label's entropy that the text leaves
        - accuracy, bits: each with the bounds `_low` and `_high` of its 95 % interval
        - reserve: bits that the decoder of the text might still be short of, for rows that are measured against one:
          what it gained from the second half of its traces (see `ghosttrace.probing.paired_sweep`)
        - selectivity: accuracy minus accuracy on the control task, for open rows
        - p, p_holm: p-value of bits > reserve, and the same adjusted by Holm's method
        - significant: whether p_holm is at most `ALPHA` and bits exceed `NEGLIGIBLE_BITS`
        - headline: whether to show the row; False for the members of a family, whose mean is shown instead
        - valid: whether every control of the run held
    """
    records = [dict(row) for row in rows]
    chances = {target.name: _chance(task.labels(number), split) for number, target in enumerate(task.targets)}
    records += family_means(records, chances, KEY_COLUMNS[:-1])
    reserves = {row["target"]: max(0.0, _mean_gain(row)) for row in records if row["condition"] == "half-decoder"}
    results = pd.DataFrame(
        [_result_row(row, split, chances[row["target"]], _reserve(row, reserves)) for row in records]
    )
    control = results[results["condition"] == "control-task"].set_index([*SITE_COLUMNS, "probe", "target"])["accuracy"]
    index = pd.MultiIndex.from_frame(results[[*SITE_COLUMNS, "probe", "target"]])
    results["selectivity"] = np.where(
        results["condition"] == "open", results["accuracy"] - control.reindex(index).to_numpy(), np.nan
    )
    results["p_holm"] = np.nan
    for family in (("open",), CONTROLS):
        members = results["condition"].isin(family)
        if members.any():
            results.loc[members, "p_holm"] = holm(results.loc[members, "p"].to_list())
    results["significant"] = (results["p_holm"] <= ALPHA) & (results["bits"] > NEGLIGIBLE_BITS)
    results["headline"] = is_headline(results["target"])
    results["valid"] = not failed_controls(results)
    return results


def _chance(labels: np.ndarray, split: Split) -> float:
    """Return the test accuracy of the most frequent training class."""
    train, test = (labels[part][labels[part] >= 0] for part in (split.train, split.test))
    return float(np.mean(test == np.bincount(train).argmax())) if len(test) else float("nan")


def _mean_gain(row: Mapping[str, Any]) -> float:
    return float(np.mean(np.asarray(row["log2p"], dtype=float) - np.asarray(row["text_log2p"], dtype=float)))


def _reserve(row: Mapping[str, Any], reserves: Mapping[str, float]) -> float:
    """Return the bits of a row that a decoder of the text might read with more traces; 0 without a decoder."""
    return reserves.get(row["target"], 0.0) if row["condition"] in BEYOND_DECODER else 0.0


def _result_row(row: Mapping[str, Any], split: Split, chance: float, reserve: float) -> dict[str, Any]:
    """Return the statistics of one record."""
    cluster = np.unique(split.cluster[np.asarray(row["sample"], dtype=np.int64)], return_inverse=True)[1]
    count = np.bincount(cluster).astype(float)
    gain = np.asarray(row["log2p"], dtype=float) - np.asarray(row["text_log2p"], dtype=float)
    bits = ratio_estimate(np.bincount(cluster, gain), count)
    hits = ratio_estimate(np.bincount(cluster, np.asarray(row["hit"], dtype=float)), count)
    slack = unseen_share_bound(len(count))  # the t interval has no width if all clusters agree
    half = bits.high - bits.value
    if half > 0:
        quantile = stats.t.ppf(0.975, len(count) - 1)
        p = float(stats.t.sf((bits.value - reserve) * quantile / half, len(count) - 1))
    else:  # all clusters agree, or there is only one: p-value of a sign test
        p = 0.5 ** len(count) if bits.value > reserve else 1.0
    return {name: row[name] for name in KEY_COLUMNS} | {
        "n_train": row["n_train"],
        "n_test": len(gain),
        "n_clusters": len(count),
        "chance": chance,
        "unknown": -float(np.mean(row["text_log2p"])),
        "accuracy": hits.value,
        "accuracy_low": max(0.0, min(hits.low, hits.value * (1 - slack))),
        "accuracy_high": min(1.0, max(hits.high, hits.value + (1 - hits.value) * slack)),
        "bits": bits.value,
        "bits_low": bits.low,
        "bits_high": bits.high,
        "reserve": reserve,
        "p": p,
    }


def failed_controls(results: pd.DataFrame) -> tuple[str, ...]:
    """Return one sentence per failed control of a table of `summarise`; empty if all hold.

    Rows of the negative controls (`CONTROLS`) must not be significant. The secret must be readable from its own tokens
    before they are erased, unless the text leaves less than `MIN_UNKNOWN_BITS` of it unknown. The text baseline must
    not beat the exact posterior given the text, where that is known.
    """
    failures = []
    clusters = int(results["n_clusters"].min())
    if clusters < MIN_TEST_CLUSTERS:
        failures.append(
            f"controls: {clusters} independent traces on test are too few to detect a failed control: "
            f"give at least {MIN_SPLIT_GROUPS} traces, or samples that share no secret"
        )
    bad = results[results["condition"].isin(CONTROLS) & results["significant"]]
    for condition in dict.fromkeys(bad["condition"]):
        rows = bad[bad["condition"] == condition]
        worst = rows.nlargest(1, "bits").to_dict("records")[0]
        failures.append(
            f"{condition}: {worst['target']} in {worst['kv']} of layer {worst['layer']}, {worst['carrier']} at hop "
            f"{worst['hop']}: {worst['bits']:+.3f} bits beyond the text, where 0 is expected ({len(rows)} such rows)"
        )
    by_target = {
        condition: results[results["condition"] == condition].set_index("target") for condition in ("text", "exact")
    }
    excess = by_target["text"]["bits_low"] - by_target["exact"]["bits_high"]
    for target in excess.index[excess > NEGLIGIBLE_BITS]:
        failures.append(
            f"text: the text baseline predicts {target} better than the exact posterior: correct exact_log_posteriors"
        )
    own = results[results["condition"] == "unerased"]
    for target in dict.fromkeys(own["target"]):
        rows = own[own["target"] == target]
        blind = (rows["p"] > ALPHA).all() or rows["bits"].max() <= NEGLIGIBLE_BITS
        if blind and rows["unknown"].max() > MIN_UNKNOWN_BITS:
            samples = round(rows["n_train"].max() / SPLIT_FRACTIONS[0])
            failures.append(
                f"unerased: {target} cannot be read from the secret's own tokens: give twice as many samples, "
                f"{2 * samples:,}, and again if that does not suffice"
            )
    return tuple(failures)
