"""What to do after a privacy audit, and what it does not say, in words."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.report.audit.wording import LEAK, bits, by_threat

Row = Mapping[str, Any]


def next_steps(summary: Row) -> list[str]:
    """What to do, which depends on the verdict and on whom the secrets leak to."""
    verdict, defence = summary["verdict"], summary["defence"]["name"]
    if verdict == "invalid":
        return [
            "Draw no conclusion from this run, neither a leak nor its absence.",
            "Find out why the control failed: too few traces for a positive control, or a model, cache or trace file "
            "that is not what it is said to be.",
            "Then audit again. A gate must treat this run as failed.",
        ]
    if verdict == "not enough data":
        needed = summary["traces_needed"]
        few = f"This run had {summary['traces']:,} traces. "
        how = (
            f"About {needed:,} would do." if needed else "How many would do cannot be told from so few: give ten times."
        )
        return [few + how, "Until then treat the retained cache as if it held the secrets."]
    if verdict in ("not detected", "within the limit"):
        allowed = ["Something leaks, if less than the limit: decide whether that much was meant to be allowed."]
        return [
            *(allowed if verdict == "within the limit" else []),
            f"Record the ceiling of {bits(summary['ceiling_bits'])} a secret with the release; it is no clean bill.",
            "Audit again whenever the model, the policy, the defence or the serving engine changes.",
            "Audit traces and secrets of your own, with --traces and --secrets, before relying on this for them.",
        ]
    leaking = [threat for threat in by_threat(summary) if threat["state"] == LEAK]
    steps = [threat["advice"] for threat in leaking]
    if [threat["name"] for threat in leaking] != ["reader"]:
        other = "another defence" if defence != "none" else "a defence, restart first"
        steps.append(
            f"Try {other} (--defence), and weigh what it costs in accuracy and prefill against what it leaves."
        )
    return [*steps, "Audit again, on new traces, before the release."]


def limitations(summary: Row) -> list[str]:
    """What the audit does not say."""
    open_rows = [row for row in summary["sites"] if row["condition"] == "open"]
    carriers, hops = (sorted({row[name] for row in open_rows}) for name in ("carrier", "hop"))
    limits = [
        "Attacks outside this suite may find more, and so may these elsewhere in the cache, or of another kind of leak "
        "than the linear codes at one place on which the probes were tried.",
        f"Probes looked at {' and '.join(carriers) or 'nothing'}, at hops {', '.join(map(str, hops)) or 'none'} alone.",
        *summary["left_out"],
        "It holds for this model, policy, defence and these kinds of secrets and traces, not for others.",
        "It looked at the retained cache and text alone, not at logs, memory that was freed, or the weights.",
        "It is a measurement, and no legal assessment.",
    ]
    caveat = summary["defence"]["caveat"]
    return [*limits, caveat] if caveat else limits
