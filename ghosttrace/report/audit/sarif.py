"""A privacy audit as SARIF 2.1.0, for code scanning.

A row whose state is a leak is an error, an undecided one a warning and one within the limit a note; what was not
detected has no result. A run whose controls failed has notes alone: nothing may be concluded from its rows. A cache
has no source file, so that a result is located in the model, by name, and in it by layer and carrier.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from ghosttrace.report.audit.wording import (
    LEAK,
    UNDECIDED,
    WITHIN_LIMIT,
    bits,
    command,
    finding_sentence,
    judged_rows,
    location_text,
)

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
CONTROL = "control"
LEVELS = {LEAK: "error", UNDECIDED: "warning", WITHIN_LIMIT: "note"}
STATE_LABELS = {LEAK: "Leak.", UNDECIDED: "Not enough data.", WITHIN_LIMIT: "Within the limit."}
IDENTITY = ("attack", "threat", "secret", "carrier", "hop", "layer", "kv", "probe", "unit")
EXIT_CODE_DESCRIPTIONS = {
    10: "a leak was found",
    0: "no leak above the limit was found by this suite",
    11: "there were too few traces to tell",
    12: "a control failed",
}


def sarif(summary: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The audit as a SARIF log of one run.

    Args:
        summary: summary.json.
        run: run.json.
    """
    used = {row["attack"] for row in summary["results"]}
    rules = [rule(name, one["title"], one["summary"]) for name, one in summary["attacks"].items() if name in used]
    rules.append(rule(CONTROL, "Control of the audit", "A control shows whether the audit can be trusted at all."))
    index = {entry["id"]: number for number, entry in enumerate(rules)}
    found = control_notes(summary, index) if not summary["valid"] else leak_results(summary, index)
    called = command(run)
    invocation = {"executionSuccessful": summary["valid"], "exitCode": summary["exit_code"]}
    invocation |= {"exitCodeDescription": EXIT_CODE_DESCRIPTIONS[summary["exit_code"]]}
    told = ("verdict", "sentence", "max_leak_bits", "ceiling_bits", "detectable_bits", "traces", "traces_needed")
    driver = {"name": "ghosttrace", "version": run["versions"]["ghosttrace"], "rules": rules}
    only = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"ghosttrace/{summary['model']}/{summary['defence']['name']}/"},
        "invocations": [invocation | ({"commandLine": called} if called else {})],
        "results": found,
        "properties": {name: summary[name] for name in told} | {"sha256": run["sha256"]},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [only]}


def rule(name: str, title: str, summary: str) -> dict[str, Any]:
    """An attack as a reporting descriptor."""
    gate = "An error is a leak whose interval lies above the limit, a warning one that this run could not settle. "
    help_text = (
        f"{summary} {gate}What to do is in report.html of the run."
        if name != CONTROL
        else (f"{summary} Where one fails no conclusion may be drawn: find out why, and audit again.")
    )
    return {
        "id": name,
        "name": title.title().replace(" ", ""),
        "shortDescription": {"text": title},
        "fullDescription": {"text": summary},
        "help": {"text": help_text},
        "defaultConfiguration": {"level": "error" if name != CONTROL else "note"},
        "properties": {"tags": ["privacy"]},
    }


def leak_results(summary: Mapping[str, Any], index: Mapping[str, int]) -> list[dict[str, Any]]:
    """One result a judged row in which something was found, or may be."""
    limit = f" The limit is {bits(summary['max_leak_bits'])} a secret."
    results = []
    for said, row in judged_rows(summary):
        if said in LEVELS:
            text = f"{STATE_LABELS[said]} {finding_sentence(row, summary)}{limit}"
            results.append(
                result(summary, index, row["attack"], LEVELS[said], text, location_text(row), _identity(row))
            )
            measures = ("threat", "secret", "defence", "estimate", "low", "high", "unit", "p_holm", "n")
            results[-1]["properties"] = {name: row[name] for name in measures}
    return results


def control_notes(summary: Mapping[str, Any], index: Mapping[str, int]) -> list[dict[str, Any]]:
    """One result a failed control."""
    text = "A control failed, so that no conclusion may be drawn from this run: "
    return [
        result(summary, index, CONTROL, "note", text + failure, "", failure.partition(":")[0])
        for failure in summary["failures"]
    ]


def result(
    summary: Mapping[str, Any], index: Mapping[str, int], rule_id: str, level: str, text: str, where: str, identity: str
) -> dict[str, Any]:
    """A result, located in the model; `identity` stays the same from run to run."""
    model = summary["model"]
    name = f"{model}: {where}" if where else model
    return {
        "ruleId": rule_id,
        "ruleIndex": index[rule_id],
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": quote(model)}, "region": {"startLine": 1}},
                "logicalLocations": [{"name": where or model, "fullyQualifiedName": name, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {
            "primaryLocationLineHash": sha256(f"{rule_id} {summary['defence']['name']} {identity}".encode()).hexdigest()
        },
    }


def _identity(row: Mapping[str, Any]) -> str:
    """What tells a row from the others of its run, whatever was measured."""
    return " ".join(str(row[name]) for name in IDENTITY)
