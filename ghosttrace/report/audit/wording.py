"""What a privacy audit found, in words: the terms and sentences that its page, card and SARIF share.

What a row says against the limit is its `state`, which the gate computed; here it is only put into words. A finding
is "not detected by this suite", with the leak that this run could have seen; nothing here says that a secret is gone.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED = "leak", "undecided", "within the limit", "not detected"
STATE_ORDER = (LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED)
BIT_UNITS = ("bits", "exposure bits")
RATE_UNITS = ("AUC", "TPR", "rate")
KV = {"k": "keys", "v": "values", "kv": "keys and values", "hidden": "hidden states"}


CONTROL_EXPECTATIONS = {
    "text": "what the text alone tells: the baseline of every attack",
    "causal": "states from before the secret: nothing can be found",
    "shuffled": "secrets dealt out again at random: nothing can be found",
    "sealed": "a cache computed from the retained text alone: nothing can be found",
    "unerased": "the secret's own tokens, still in the cache: it must be found",
}
"""The controls that every audit needs, and what each of them must show."""


def judged_rows(summary: Row) -> list[tuple[str, Row]]:
    """The rows that decide the verdict, each with its state as the gate recorded it, surest leaks first."""
    found = [(row["state"], row) for row in summary["results"] if row["state"] is not None]
    return sorted(found, key=lambda pair: (STATE_ORDER.index(pair[0]), -_or_zero(pair[1]["low"])))


def format_number(value: float | None) -> str:
    """A measure with about three digits."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0"


def bits(value: float | None) -> str:
    """An amount of information."""
    return "– bits" if value is None else f"{value:.3g} bits".replace("-", "−")


def interval_text(row: Row) -> str:
    """The interval of a row, in brackets."""
    return (
        ""
        if row["low"] is None and row["high"] is None
        else f"[{format_number(row['low'])}, {format_number(row['high'])}]"
    )


def estimate_text(row: Row) -> str:
    """The estimate of a row with its interval and unit."""
    value = f"{format_number(row['estimate'])} {interval_text(row)}".strip()
    return f"{value} {row['unit']}" if row["unit"] in BIT_UNITS else f"{row['unit']} {value}"


def location_text(row: Row) -> str:
    """Where in the cache a row was measured; empty for what has no place there."""
    parts = [row["carrier"]]
    if row["layer"]:
        layer = {"all": "all layers", "joint": "all layers as one"}.get(row["layer"], f"layer {row['layer']}")
        parts += [f"hop {row['hop']}", layer, KV.get(row["kv"], row["kv"])]
    return ", ".join(part for part in parts if part)


def title(attack: str, summary: Row) -> str:
    """The name of an attack, for people."""
    return str(summary["attacks"][attack]["title"])


def finding_sentence(row: Row, summary: Row) -> str:
    """One row as a sentence."""
    aside = "; ".join(part for part in (location_text(row), row["note"]) if part)
    return f"{title(row['attack'], summary)}: {estimate_text(row)} of {row['secret']}{f' ({aside})' if aside else ''}."


def by_threat(summary: Row) -> list[dict[str, Any]]:
    """For each threat model: name, summary, attacks, state (None: not judged) and what was found, a sentence."""
    rows = judged_rows(summary)
    return [
        {**threat, **_outcome(threat["name"], [pair for pair in rows if pair[1]["threat"] == threat["name"]], summary)}
        for threat in summary["threats"]
    ]


def _outcome(threat: str, rows: Sequence[tuple[str, Row]], summary: Row) -> dict[str, Any]:
    """What was found of one threat."""
    if not summary["valid"]:
        return {"state": None, "found": "A control failed: no conclusion may be drawn."}
    if not rows:
        return {"state": None, "found": _unjudged(threat, summary)}
    first = rows[0][0]
    same = [row for said, row in rows if said == first]
    if first == LEAK:
        more = {1: "", 2: " One more such row is below."}.get(len(same), f" {len(same) - 1} more such rows are below.")
        return {"state": LEAK, "found": finding_sentence(same[0], summary) + more}
    widest = max(same, key=lambda row: float("inf") if row["high"] is None else row["high"])
    if first in (WITHIN_LIMIT, NOT_DETECTED):
        ends = [row[name] for _, row in rows for name in ("high", "detectable") if row[name] is not None]
        most = f"at most {bits(max(ends))} a secret by this suite"
        if first == NOT_DETECTED:
            return {"state": NOT_DETECTED, "found": f"Not detected: {most}."}
        row, limit = same[0], bits(summary["max_leak_bits"])
        what = f"{title(row['attack'], summary)} found {bits(row['estimate'])} of {row['secret']}"
        found = f"{what}, within the {limit} allowed"
        return {"state": WITHIN_LIMIT, "found": f"{found}; {most}."}
    most = "No bound was reached" if widest["high"] is None else f"Up to {bits(widest['high'])} cannot be ruled out"
    return {"state": UNDECIDED, "found": f"{most} ({title(widest['attack'], summary).lower()}, {widest['secret']})."}


def _unjudged(threat: str, summary: Row) -> str:
    """What was found of a threat that the gate does not look at."""
    if threat == "reader":
        told = (f"The text alone tells {bits(one['text_bits'])} of {one['name']}." for one in summary["secrets"])
        return " ".join(told)
    rows = [row for row in summary["results"] if row["threat"] == threat and row["condition"] == "open"]
    return " ".join(finding_sentence(row, summary) for row in rows) if rows else "None of its attacks was run."


def verdict_sentence(summary: Row) -> str:
    """The verdict in a sentence, with its full stop."""
    return f"{summary['sentence'].rstrip('.')}."


def bounds_text(summary: Row) -> str:
    """The limit, the ceiling and the smallest leak that the run could have seen, in sentences."""
    limit, ceiling, least = (summary[name] for name in ("max_leak_bits", "ceiling_bits", "detectable_bits"))
    above = (
        f"This run cannot rule out leaks of up to {bits(ceiling)}."
        if ceiling is not None
        else "This run rules out no leak."
    )
    seen = "No probe decides, so none was tried on leaks of known size."
    if least is not None:
        seen = f"A linear code of {bits(least)} at one place of the cache would have been seen in 8 of 10 runs."
    elif any(attack["probes_single_site"] for attack in summary["attacks"].values()):
        seen = "None of the codes put into the sealed cache to try the probes was seen: what they miss is unknown."
    return f"The limit is {bits(limit)} a secret. {seen} {above if summary['valid'] else ''}".rstrip()


def controls(summary: Row) -> list[dict[str, Any]]:
    """One entry a control, attack and unit: condition, shows, row (the most it showed), rows, held.

    `held` is None where a control is a baseline or was not run; `row` is None where it was not.
    """
    failed = {failure.partition(":")[0] for failure in summary["failures"]}
    found = []
    for condition, shows in CONTROL_EXPECTATIONS.items():
        rows = [row for row in summary["results"] if row["condition"] == condition]
        held = condition not in failed if rows and (condition != "text" or condition in failed) else None
        kinds: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            kinds.setdefault((row["attack"], row["unit"]), []).append(row)
        for same in kinds.values() or [[]]:
            most = max(same, key=lambda row: _or_zero(row["estimate"]), default=None)
            found.append({"condition": condition, "shows": shows, "row": most, "rows": len(same), "held": held})
    return found


def control_status(control: Row) -> str:
    """Whether an entry of `controls` held, in a word or two."""
    if control["held"] is None:
        return "baseline" if control["condition"] == "text" else "not run"
    return "held" if control["held"] else "FAILED"


def command(run: Row) -> str | None:
    """The command line that makes the same run, None where none was recorded (a run from Python)."""
    words = ["ghosttrace", "audit"]
    for name, value in run.get("options", {}).items():
        flag = name.replace("_", "-")
        if name == "mask_delimiters" and value is False:
            words.append("--keep-delimiters")
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", shlex.quote(str(one))]
    return " ".join(words) if len(words) > 2 else None


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value
