"""Terms and sentences that the page, the card and the SARIF log of a privacy audit share.

The gate computes the `state` of each row; this module only formats it. Negative findings read "not detected by this
suite" and state the detectable leak, because no audit can prove that a secret is absent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttrace.report.findings import KV_NAMES

Row = Mapping[str, Any]

LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED = "leak", "undecided", "within the limit", "not detected"
STATE_ORDER = (LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED)
BIT_UNITS = ("bits", "exposure bits")
EXPOSED = "exposed share"
RATE_UNITS = ("AUC", "TPR", "rate", EXPOSED)

CONTROL_EXPECTATIONS = {
    "text": "what the text alone predicts: the baseline of every attack",
    "causal": "states from before the secret: there is nothing to find",
    "shuffled": "secrets shuffled between traces: there is nothing to find",
    "sealed": "a cache computed from the retained text alone: there is nothing to find",
    "unerased": "the secret's own tokens, still in the cache: the attack must find it",
}
"""The controls that every audit needs, with the expected result of each."""


def judged_rows(summary: Row) -> list[tuple[str, Row]]:
    """Return state and row of each row that decides the verdict, leaks with the highest lower bound first."""
    pairs = [(row["state"], row) for row in summary["results"] if row["state"] is not None]
    return sorted(pairs, key=lambda pair: (STATE_ORDER.index(pair[0]), -_or_zero(pair[1]["low"])))


def format_number(value: float | None) -> str:
    """Format a number with about three significant digits, or as a dash if it is missing."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0"


def bits(value: float | None) -> str:
    """Format an amount of information in bits."""
    return "– bits" if value is None else f"{value:.3g} bits".replace("-", "−")


def interval_text(row: Row) -> str:
    """Format the interval of a row in brackets; empty if it has none."""
    return (
        ""
        if row["low"] is None and row["high"] is None
        else f"[{format_number(row['low'])}, {format_number(row['high'])}]"
    )


def estimate_text(row: Row) -> str:
    """Format the estimate of a row with its interval and unit.

    An estimate of 0 from a probe that fell back to the text is that decision, and is called so.
    """
    if row["fell_back"]:
        return f"nothing beyond the text {interval_text(row)} {row['unit']}"
    value = f"{format_number(row['estimate'])} {interval_text(row)}".strip()
    return f"{value} {row['unit']}" if row["unit"] in BIT_UNITS else f"{row['unit']} {value}"


def location_text(row: Row) -> str:
    """Describe the site at which a row was measured; empty for attacks without a site."""
    parts = [row["carrier"]]
    if row["layer"]:
        layer = {"all": "all layers", "joint": "all layers jointly"}.get(row["layer"], f"layer {row['layer']}")
        parts += [f"hop {row['hop']}", layer, KV_NAMES.get(row["kv"], row["kv"])]
    return ", ".join(part for part in parts if part)


def title(attack: str, summary: Row) -> str:
    """Return the display name of an attack."""
    return str(summary["attacks"][attack]["title"])


def finding_sentence(row: Row, summary: Row) -> str:
    """Describe one row in a sentence."""
    details = "; ".join(part for part in (location_text(row), row["note"]) if part)
    return (
        f"{title(row['attack'], summary)}: {estimate_text(row)} of {row['secret']}{f' ({details})' if details else ''}."
    )


def by_threat(summary: Row) -> list[dict[str, Any]]:
    """Describe the outcome for each threat model.

    Args:
        summary: Content of summary.json.

    Returns:
        The entries of `threats` with two more keys: `state`, None if the threat is not part of the verdict, and
        `found`, a sentence.
    """
    rows = judged_rows(summary)
    return [
        {**threat, **_outcome(threat["name"], [pair for pair in rows if pair[1]["threat"] == threat["name"]], summary)}
        for threat in summary["threats"]
    ]


def _outcome(threat: str, rows: Sequence[tuple[str, Row]], summary: Row) -> dict[str, Any]:
    """Return state and sentence for the rows of one threat, sorted by state."""
    if not summary["valid"]:
        return {"state": None, "found": "A control failed: no conclusion may be drawn."}
    if not rows:
        return {"state": None, "found": _unjudged(threat, summary)}
    worst = rows[0][0]
    same = [row for state, row in rows if state == worst]
    if worst == LEAK:
        n_more = len({(row["attack"], row["secret"]) for row in same}) - 1
        more = {0: "", 1: " One more leak is listed below."}.get(n_more, f" {n_more} more leaks are listed below.")
        return {"state": LEAK, "found": finding_sentence(same[0], summary) + more}
    in_same_unit = [row for row in same if row["unit"] == same[0]["unit"]]
    widest = max(in_same_unit, key=lambda row: float("inf") if row["high"] is None else row["high"])
    if worst in (WITHIN_LIMIT, NOT_DETECTED):
        in_bits = [row for _, row in rows if row["unit"] != EXPOSED]
        ends = [row[name] for row in in_bits for name in ("high", "detectable") if row[name] is not None]
        bound = f"at most {bits(max(ends, default=None))} per secret"
        if worst == NOT_DETECTED:
            return {"state": NOT_DETECTED, "found": f"Not detected by this suite: {bound}."}
        return {"state": WITHIN_LIMIT, "found": f"{_amount(same[0], summary)}, within the limit; {bound}."}
    amount = (
        f"The whole secret of {100 * (widest['high'] or 0):.2g} % of traces"
        if widest["unit"] == EXPOSED
        else f"Up to {bits(widest['high'])}"
    )
    bound = "No bound was reached" if widest["high"] is None else f"{amount} cannot be ruled out"
    return {"state": UNDECIDED, "found": f"{bound} ({title(widest['attack'], summary).lower()}, {widest['secret']})."}


def _amount(row: Row, summary: Row) -> str:
    """Return what an attack found, without its interval."""
    found = (
        f"guessed the whole of {row['secret']} in {100 * row['estimate']:.2g} % of traces"
        if row["unit"] == EXPOSED
        else f"found {bits(row['estimate'])} of {row['secret']}"
    )
    return f"{title(row['attack'], summary)} {found}"


def _unjudged(threat: str, summary: Row) -> str:
    """Describe the outcome for a threat that is not part of the verdict."""
    if threat == "reader":
        sentences = (
            f"The text alone reveals {bits(secret['text_bits'])} of {secret['name']}." for secret in summary["secrets"]
        )
        return " ".join(sentences)
    rows = [row for row in summary["results"] if row["threat"] == threat and row["condition"] == "open"]
    return " ".join(finding_sentence(row, summary) for row in rows) if rows else "None of its attacks was run."


def verdict_sentence(summary: Row) -> str:
    """Return the verdict as a sentence that ends with a full stop."""
    return f"{summary['sentence'].rstrip('.')}."


def bounds_text(summary: Row) -> str:
    """Describe the limit, the smallest detectable leak and the ceiling in sentences."""
    ceiling, detectable = summary["ceiling_bits"], summary["detectable_bits"]
    upper_bound = (
        f"This run cannot rule out leaks of up to {bits(ceiling)}."
        if ceiling is not None
        else "No upper bound on a leak was reached."
    )
    power = "No probe enters the verdict, so none was tested on leaks of known size."
    if detectable is not None:
        power = f"A linear code of {bits(detectable)} in one token would have been detected in 8 of 10 runs."
    elif any(attack["probes_single_site"] for attack in summary["attacks"].values()):
        power = "The probes detected none of the codes planted in the sealed cache, so it is unknown what they miss."
    return f"{limits_text(summary)} {power} {_few_and_split(summary)}{upper_bound if summary['valid'] else ''}".rstrip()


def limits_text(summary: Row) -> str:
    """Return the limits of the gate as a sentence."""
    exposed = f"the whole secret of {100 * summary['max_exposed']:g} % of traces"
    return f"The limits are {bits(summary['max_leak_bits'])} per secret and {exposed}."


def _few_and_split(summary: Row) -> str:
    """Say which leaks in few traces, and which one-time pads, the probes would have detected; empty without probes."""
    if not any(attack["probes_single_site"] for attack in summary["attacks"].values()):
        return ""
    share, pad = summary["detectable_exposed"], summary["detectable_pad_bits"]
    few = "in no share of traces that was tried" if share is None else f"from {100 * share:g} % of traces on"
    pads = "none was detected" if pad is None else f"from {bits(pad)} on"
    return f"Whole secrets in a few traces: {few}. One-time pads over two tokens: {pads}. "


def controls(summary: Row) -> list[dict[str, Any]]:
    """Summarise the controls, one entry per control, attack and unit.

    Args:
        summary: Content of summary.json.

    Returns:
        Entries with `condition`; `shows`, the expected result; `row`, the row with the largest estimate, None if the
        control was not run; `rows`, their number; `held`, None if the control is a baseline or was not run.
    """
    failed = {failure.partition(":")[0] for failure in summary["failures"]}
    entries = []
    for condition, shows in CONTROL_EXPECTATIONS.items():
        rows = [row for row in summary["results"] if row["condition"] == condition]
        held = condition not in failed if rows and (condition != "text" or condition in failed) else None
        kinds: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            kinds.setdefault((row["attack"], row["unit"]), []).append(row)
        for same in kinds.values() or [[]]:
            largest = max(same, key=lambda row: _or_zero(row["estimate"]), default=None)
            entries.append({"condition": condition, "shows": shows, "row": largest, "rows": len(same), "held": held})
    return entries


def control_status(control: Row) -> str:
    """Return the status of an entry of `controls`: baseline, not run, held or FAILED."""
    if control["held"] is None:
        return "baseline" if control["condition"] == "text" else "not run"
    return "held" if control["held"] else "FAILED"


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value
