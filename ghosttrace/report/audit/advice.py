"""Next steps after a privacy audit and limitations of its result, as sentences."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.report.audit.wording import LEAK, bits, by_threat

Row = Mapping[str, Any]


def next_steps(summary: Row) -> list[str]:
    """Return the recommended steps, which depend on the verdict and on the threats that found a leak.

    Args:
        summary: Content of summary.json.
    """
    verdict, defence = summary["verdict"], summary["defence"]["name"]
    if verdict == "invalid":
        return [
            "Draw no conclusion from this run, neither a leak nor its absence.",
            "Find out why the control failed. Common causes are too few traces for a positive control, or a wrong "
            "model, cache or trace file.",
            "Then repeat the audit. A gate must treat this run as failed.",
        ]
    if verdict == "not enough data":
        needed = summary["traces_needed"]
        used = f"This run had {summary['traces']:,} traces. "
        advice = (
            f"About {needed:,} traces are needed."
            if needed
            else "The number needed cannot be estimated from so few; use ten times as many."
        )
        return [used + advice, "Until then, treat the retained cache as if it contained the secrets."]
    if verdict in ("not detected", "within the limit"):
        allowed = ["Something leaks, though less than the limit: decide whether that much is acceptable."]
        return [
            *(allowed if verdict == "within the limit" else []),
            f"State the ceiling of {bits(summary['ceiling_bits'])} per secret in the release; "
            "leaks up to it, and those to which the probes are blind, are possible.",
            "Repeat the audit whenever the model, the policy, the defence or the serving engine changes.",
            "Before relying on this result for your own data, audit your own traces and secrets (--traces, --secrets).",
        ]
    leaking = [threat for threat in by_threat(summary) if threat["state"] == LEAK]
    steps = [threat["advice"] for threat in leaking]
    if [threat["name"] for threat in leaking] != ["reader"]:
        other = "another defence" if defence != "none" else "a defence, starting with restart"
        steps.append(f"Try {other} (--defence), and weigh its cost in accuracy and prefill against the remaining leak.")
    return [*steps, "Repeat the audit on new traces before the release."]


def limitations(summary: Row) -> list[str]:
    """Return the limitations of the audit's result.

    Args:
        summary: Content of summary.json.
    """
    open_rows = [row for row in summary["sites"] if row["condition"] == "open"]
    carriers, hops = (sorted({row[name] for row in open_rows}) for name in ("carrier", "hop"))
    limits = [
        "Attacks outside this suite may find more. So may these attacks at other sites, or for leaks of other forms "
        "than those on which the probes were tested: a linear code in one token, the whole secret in a few traces, and "
        "a one-time pad over two tokens.",
        f"Probes read only these carriers: {', '.join(carriers) or 'none'}; "
        f"hops: {', '.join(map(str, hops)) or 'none'}.",
        *summary["left_out"],
        "The result holds for this model, policy, defence and kind of secrets and traces, not for others.",
        "The audit examined only the retained cache and text, not logs, freed memory or the weights.",
        "It is a measurement, not a legal assessment.",
    ]
    caveat = summary["defence"]["caveat"]
    return [*limits, caveat] if caveat else limits
