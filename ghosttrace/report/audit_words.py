"""What a privacy audit found, in words: the terms and sentences that its page, card and SARIF share.

The words are chosen with care. A finding is "not detected by this suite", with the leak that this run
could have seen; nothing here says that a secret is gone.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

LEAK, UNDECIDED, CLEAR = "leak", "undecided", "not detected"
BITS = ("bits", "exposure bits")
SHARES = ("AUC", "TPR", "rate")
KV = {"k": "keys", "v": "values", "kv": "keys and values", "hidden": "hidden states"}


@dataclass(frozen=True)
class Attack:
    """An attack in words.

    Attributes:
        title: its name for people.
        summary: what it does and what it measures, in one sentence.
    """

    title: str
    summary: str


ATTACKS = {
    "attribute": Attack(
        "Attribute inference",
        "Probes fitted on other traces read parts of the secret off the retained keys and values; the leak is what "
        "they add to the text, in bits.",
    ),
    "ranking": Attack(
        "Candidate ranking",
        "All candidates for the secret are ranked by what the retained cache says; the exposure of the true one is "
        "its gain in rank, in bits.",
    ),
    "tenant": Attack(
        "Stray cache",
        "Probes read the secret off keys and values without the text; the bits include what the text would tell.",
    ),
    "membership": Attack(
        "Membership inference",
        "A likelihood ratio tells true claims of what the secret is from false ones.",
    ),
    "behavioural": Attack(
        "Behavioural extraction",
        "The session is prompted further, and the model's own answers are used to name the secret.",
    ),
    "collision": Attack(
        "Collision",
        "Candidate blocks are computed anew and their keys and values matched with the retained ones: the upper "
        "bound for a reader of the cache.",
    ),
    "text": Attack("Text alone", "What can be guessed from the retained text, without any cache: the baseline."),
}

CONDITIONS = {
    "text": "what the text alone tells: the baseline of every attack",
    "causal": "states from before the secret: nothing can be found",
    "shuffled": "secrets dealt out anew: nothing can be found",
    "sealed": "a cache computed from the retained text alone: nothing can be found",
    "unerased": "the secret's own tokens, still in the cache: it must be found",
}
"""The controls that every audit needs, and what each of them must show."""

ADVICE = {
    "insider": "Whoever can read the retained cache can read the secret. Give the cache the access rights, and the "
    "time to live, of the text that was dropped from it.",
    "tenant": "Do not pass this cache on: no prefix caching and no reuse across tenants, and clear it when its "
    "session ends.",
    "user": "A user who goes on prompting can draw the secret out. End the session, or recompute its cache from the "
    "retained text, where the secret must not be known any more.",
    "reader": "The retained text gives the secret away, and no defence of the cache helps: change what mementos say.",
}
"""What to do about a leak to somebody."""


def state(row: Row, summary: Row) -> str | None:
    """What a judged row says against the limit; None for controls and rows that the gate does not look at.

    Nothing is "not detected" in a run that could not have seen a leak as large as the limit.

    Args:
        row: of `results`.
        summary: summary.json of the audit.
    """
    if row["condition"] != "open" or not row["gate"]:
        return None
    limit, detectable = summary["max_leak_bits"], summary["detectable_bits"]
    if row["low"] is not None and row["low"] > limit:
        return LEAK
    seeing = detectable is not None and detectable <= limit
    return CLEAR if seeing and row["high"] is not None and row["high"] <= limit else UNDECIDED


def judged(summary: Row) -> list[tuple[str, Row]]:
    """The rows that decide the verdict, each with its state, surest leaks first."""
    states = [(state(row, summary), row) for row in summary["results"]]
    found = [(said, row) for said, row in states if said is not None]
    order = (LEAK, UNDECIDED, CLEAR)
    return sorted(found, key=lambda pair: (order.index(pair[0]), -_or_zero(pair[1]["low"])))


def number(value: float | None) -> str:
    """A measure with about three digits."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0"


def bits(value: float | None) -> str:
    """An amount of information."""
    return "– bits" if value is None else f"{value:.3g} bits".replace("-", "−")


def span(row: Row) -> str:
    """The interval of a row, in brackets."""
    return "" if row["low"] is None and row["high"] is None else f"[{number(row['low'])}, {number(row['high'])}]"


def measured(row: Row) -> str:
    """The estimate of a row with its interval and unit."""
    value = f"{number(row['estimate'])} {span(row)}".strip()
    return f"{value} {row['unit']}" if row["unit"] in BITS else f"{row['unit']} {value}"


def place(row: Row) -> str:
    """Where in the cache a row was measured; empty for what has no place there."""
    parts = [row["carrier"]]
    if row["layer"]:
        layer = {"all": "all layers", "joint": "all layers as one"}.get(row["layer"], f"layer {row['layer']}")
        parts += [f"hop {row['hop']}", layer, KV.get(row["kv"], row["kv"])]
    return ", ".join(part for part in parts if part)


def title(attack: str) -> str:
    """The name of an attack, for people."""
    return ATTACKS[attack].title if attack in ATTACKS else attack


def finding(row: Row) -> str:
    """One row as a sentence."""
    aside = "; ".join(part for part in (place(row), row["note"]) if part)
    return f"{title(row['attack'])}: {measured(row)} of {row['secret']}{f' ({aside})' if aside else ''}."


def by_threat(summary: Row) -> list[dict[str, Any]]:
    """For each threat model: name, summary, attacks, state (None: not judged) and what was found, a sentence."""
    rows = judged(summary)
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
        return {"state": LEAK, "found": finding(same[0]) + more}
    widest = max(same, key=lambda row: float("inf") if row["high"] is None else row["high"])
    if first == CLEAR:
        return {"state": CLEAR, "found": f"Not detected by this suite: at most {bits(widest['high'])} a secret."}
    most = "No bound was reached" if widest["high"] is None else f"Up to {bits(widest['high'])} cannot be ruled out"
    return {"state": UNDECIDED, "found": f"{most} ({title(widest['attack']).lower()}, {widest['secret']})."}


def _unjudged(threat: str, summary: Row) -> str:
    """What was found of a threat that the gate does not look at."""
    if threat == "reader":
        told = (f"The text alone tells {bits(one['text_bits'])} of {one['name']}." for one in summary["secrets"])
        return " ".join(told)
    rows = [row for row in summary["results"] if row["threat"] == threat and row["condition"] == "open"]
    return " ".join(map(finding, rows)) if rows else "None of its attacks was run."


def verdict(summary: Row) -> str:
    """The verdict in a sentence, with its full stop."""
    return f"{summary['sentence'].rstrip('.')}."


def bounds(summary: Row) -> str:
    """The limit, the ceiling and the smallest leak that the run could have seen, in sentences."""
    limit, ceiling, least = (summary[name] for name in ("max_leak_bits", "ceiling_bits", "detectable_bits"))
    above = (
        f"This run cannot rule out leaks of up to {bits(ceiling)}."
        if ceiling is not None
        else "This run rules out no leak."
    )
    seen = "None of the leaks injected to try it was seen: its limit of detection is unknown."
    if least is not None:
        seen = f"Leaks above {bits(least)} a secret would have been seen."
    return f"The limit is {bits(limit)} a secret. {seen} {above if summary['valid'] else ''}".rstrip()


def next_steps(summary: Row) -> list[str]:
    """What to do, which depends on the verdict and on whom the secrets leak to."""
    verdict, defence = summary["verdict"], summary["defence"]["name"]
    if verdict == "invalid":
        return [
            "Draw no conclusion from this run, neither a leak nor its absence.",
            "Find out why the control failed: too few traces for a positive control, or a model, cache or trace file "
            "that is not what it is said to be.",
            "Then audit anew. A gate must treat this run as failed.",
        ]
    if verdict == "not enough data":
        needed = summary["traces_needed"]
        few = f"This run had {summary['traces']:,} traces. "
        how = (
            f"About {needed:,} would do." if needed else "How many would do cannot be told from so few: give ten times."
        )
        return [few + how, "Until then treat the retained cache as if it held the secrets."]
    if verdict == "not detected":
        return [
            f"Record the ceiling of {bits(summary['ceiling_bits'])} a secret with the release; it is no clean bill.",
            "Audit again whenever the model, the policy, the defence or the serving engine changes.",
            "Audit traces and secrets of your own, with --traces and --secrets, before relying on this for them.",
        ]
    leaking = [threat["name"] for threat in by_threat(summary) if threat["state"] == LEAK]
    steps = [ADVICE[name] for name in leaking if name in ADVICE]
    if leaking != ["reader"]:
        other = "another defence" if defence != "none" else "a defence, restart first"
        steps.append(
            f"Try {other} (--defence), and weigh what it costs in accuracy and prefill against what it leaves."
        )
    return [*steps, "Audit again, on new traces, before the release."]


def unsaid(summary: Row) -> list[str]:
    """What the audit does not say."""
    limits = [
        "Attacks outside this suite may find more.",
        "It holds for this model, policy, defence and these kinds of secrets and traces, not for others.",
        "It looked at the retained cache and text alone, not at logs, memory that was freed, or the weights.",
        "It is a measurement, and no legal assessment.",
    ]
    if summary["defence"]["name"].startswith("noise"):
        limits.append("Noise without clipping and accounting carries no privacy guarantee, whatever was measured.")
    return limits


def controls(summary: Row) -> list[dict[str, Any]]:
    """One entry a control, attack and unit: condition, shows, row (the most it showed), rows, held.

    `held` is None where a control is a baseline or was not run; `row` is None where it was not.
    """
    failed = {failure.partition(":")[0] for failure in summary["failures"]}
    found = []
    for condition, shows in CONDITIONS.items():
        rows = [row for row in summary["results"] if row["condition"] == condition]
        held = condition not in failed if rows and (condition != "text" or condition in failed) else None
        kinds: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            kinds.setdefault((row["attack"], row["unit"]), []).append(row)
        for same in kinds.values() or [[]]:
            most = max(same, key=lambda row: _or_zero(row["estimate"]), default=None)
            found.append({"condition": condition, "shows": shows, "row": most, "rows": len(same), "held": held})
    return found


def standing(control: Row) -> str:
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
