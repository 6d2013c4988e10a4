"""SARIF 2.1.0 log of a privacy audit, for code scanning.

A leak is an error, an undecided row a warning, and a row within the limit a note; a row that was not detected has no
result. A run with a failed control has only notes, because its rows are not evidence. A cache has no source file, so
the location of a result is the model, with carrier and layer as its logical location.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from ghosttrace.report.audit.wording import (
    LEAK,
    UNDECIDED,
    WITHIN_LIMIT,
    finding_sentence,
    judged_rows,
    limits_text,
    location_text,
)
from ghosttrace.report.command import repeat_command

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
CONTROL = "control"
LEVELS = {LEAK: "error", UNDECIDED: "warning", WITHIN_LIMIT: "note"}
STATE_LABELS = {LEAK: "Leak.", UNDECIDED: "Not enough data.", WITHIN_LIMIT: "Within the limit."}
IDENTITY = ("attack", "threat", "secret", "carrier", "hop", "layer", "kv", "probe", "unit")
EXIT_CODE_DESCRIPTIONS = {
    10: "a leak was found",
    0: "no leak above the limit was found by this suite",
    11: "there were too few traces to decide",
    12: "a control failed",
}


def sarif(summary: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the audit as a SARIF log with one run.

    Args:
        summary: Content of summary.json.
        run: Content of run.json.
    """
    used = {row["attack"] for row in summary["results"]}
    rules = [rule(name, kind["title"], kind["summary"]) for name, kind in summary["attacks"].items() if name in used]
    rules.append(
        rule(CONTROL, "Control of the audit", "A control shows whether the results of the audit can be trusted.")
    )
    index = {entry["id"]: number for number, entry in enumerate(rules)}
    results = control_notes(summary, index) if not summary["valid"] else leak_results(summary, index)
    command_line = repeat_command(run) if run.get("options") else None
    invocation = {"executionSuccessful": summary["valid"], "exitCode": summary["exit_code"]}
    invocation |= {"exitCodeDescription": EXIT_CODE_DESCRIPTIONS[summary["exit_code"]]}
    properties = (
        *("verdict", "sentence", "max_leak_bits", "max_exposed", "ceiling_bits", "detectable_bits"),
        *("detectable_exposed", "detectable_pad_bits", "traces", "traces_needed"),
    )
    driver = {"name": "ghosttrace", "version": run["versions"]["ghosttrace"], "rules": rules}
    sarif_run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"ghosttrace/{summary['model']}/{summary['defence']['name']}/"},
        "invocations": [invocation | ({"commandLine": command_line} if command_line else {})],
        "results": results,
        "properties": {name: summary[name] for name in properties} | {"sha256": run["sha256"]},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [sarif_run]}


def rule(name: str, title: str, summary: str) -> dict[str, Any]:
    """Return the SARIF rule (`reportingDescriptor`) of an attack or of the controls."""
    gate = (
        "An error is a leak whose whole interval is above the limit; a warning is a row that this run cannot decide. "
    )
    help_text = (
        f"{summary} {gate}The run's report.html says what to do."
        if name != CONTROL
        else (f"{summary} If one fails, no conclusion may be drawn: find the cause and repeat the audit.")
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
    """Return one result per row that is a leak, undecided or within the limit."""
    limit = f" {limits_text(summary)}"
    results = []
    for state, row in judged_rows(summary):
        if state in LEVELS:
            text = f"{STATE_LABELS[state]} {finding_sentence(row, summary)}{limit}"
            results.append(
                result(summary, index, row["attack"], LEVELS[state], text, location_text(row), _identity(row))
            )
            measures = ("threat", "secret", "defence", "estimate", "low", "high", "unit", "p_holm", "n")
            results[-1]["properties"] = {name: row[name] for name in measures}
    return results


def control_notes(summary: Mapping[str, Any], index: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return one note per failed control."""
    text = "A control failed, so no conclusion may be drawn from this run: "
    return [
        result(summary, index, CONTROL, "note", text + failure, "", failure.partition(":")[0])
        for failure in summary["failures"]
    ]


def result(
    summary: Mapping[str, Any],
    index: Mapping[str, int],
    rule_id: str,
    level: str,
    text: str,
    location: str,
    identity: str,
) -> dict[str, Any]:
    """Return one result; `identity` must stay the same from run to run, so that code scanning can match results."""
    model = summary["model"]
    name = f"{model}: {location}" if location else model
    return {
        "ruleId": rule_id,
        "ruleIndex": index[rule_id],
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": quote(model)}, "region": {"startLine": 1}},
                "logicalLocations": [{"name": location or model, "fullyQualifiedName": name, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {
            "primaryLocationLineHash": sha256(f"{rule_id} {summary['defence']['name']} {identity}".encode()).hexdigest()
        },
    }


def _identity(row: Mapping[str, Any]) -> str:
    """Return a key that identifies a row across runs, independent of its measures."""
    return " ".join(str(row[name]) for name in IDENTITY)
