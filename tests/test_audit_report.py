"""The reports of an audit for each verdict: schema, SARIF, card, page and figures."""

import copy
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.audits import (
    ATTACK_CLASSES,
    CONTROL_FAILURE,
    FORBIDDEN,
    HOSTILE,
    VERDICTS,
    finding,
    results,
    row,
    run,
    schema_errors,
    sites,
    summary,
    write_audit,
)
from rich.console import Console

from ghosttrace.auditing.defences.noise import NoiseDefence
from ghosttrace.auditing.findings import Findings
from ghosttrace.auditing.result import AuditResult
from ghosttrace.auditing.settings import AuditSettings, resolve_attacks, resolve_defence
from ghosttrace.auditing.summary import result_rows
from ghosttrace.auditing.threats import INSIDER, THREATS, USER
from ghosttrace.auditing.verdict import Verdict
from ghosttrace.errors import UserError
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.report.audit import advice, wording
from ghosttrace.report.audit.card import card
from ghosttrace.report.audit.charts import MARGIN, WIDTH, bar, heat_maps, scales, ticks
from ghosttrace.report.audit.figures import (
    has_bits,
    has_sites,
    leak_figure,
    pareto_figure,
    pareto_front,
    pareto_row,
    sites_figure,
)
from ghosttrace.report.audit.page import page
from ghosttrace.report.audit.sarif import sarif
from ghosttrace.report.audit.table import audit_findings, audit_notes, audit_table


def page_text(text: str) -> str:
    """Return the text of a page without markup."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", text))).split())


def card_text_of(text: str) -> str:
    """Return the text of a card without Markdown escapes."""
    return " ".join(re.sub(r"\\(.)", r"\1", text).split())


@pytest.fixture(params=VERDICTS)
def verdict(request: pytest.FixtureRequest) -> str:
    return request.param


def test_schema_accepts_every_verdict(verdict: str) -> None:
    assert schema_errors(summary(verdict)) == []


def test_schema_requires_all_keys_and_no_others() -> None:
    for key in summary():
        assert schema_errors({name: value for name, value in summary().items() if name != key}), key
    assert schema_errors(summary() | {"more": 1})
    for part in ("defence", "secrets", "excluded", "threats", "results", "sites"):
        for change in ("more", None):
            bad = copy.deepcopy(summary())
            inner = bad[part] if part == "defence" else bad[part][0]
            inner.update({"more": 1}) if change else inner.popitem()
            assert schema_errors(bad), part


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "safe"},
        {"verdict": "leak", "exit_code": 0},
        {"valid": False},
        {"failures": ["sealed: found"]},
        {"max_leak_bits": 0},
        {"traces": -1},
        {"results": [row("attribute", 1.0, 0.1) | {"condition": "closed"}]},
        {"results": [row("attribute", 1.0, 0.1) | {"unit": "nats"}]},
        {"results": [row("attribute", 1.0, 0.1) | {"state": "safe"}]},
    ],
)
def test_schema_refuses_invalid_values(change: dict[str, Any]) -> None:
    assert schema_errors(summary() | change)


def test_limitations_name_what_was_not_measured() -> None:
    limitations = advice.limitations(summary())
    assert "Probes read only these carriers: memento; hops: 0, 1, 2." in limitations
    assert summary()["left_out"][0] in limitations
    assert any("a one-time pad over two tokens" in limitation for limitation in limitations)


def test_row_without_a_lower_bound_is_printed() -> None:
    audit = summary(evidence=[finding("attribute", 0.5, 0.1, gate=True, low=-np.inf)])
    console = Console(file=io.StringIO(), width=200)
    console.print(audit_table(audit["results"]))
    assert "0.500 [–, 0.600]*" in console.file.getvalue()


def test_findings_and_notes_say_verdict_exclusions_and_skipped_attacks() -> None:
    audit = summary()
    notes = list(audit_notes(audit))
    assert audit["left_out"][0] in notes
    assert "Excluded: t17: its memento text contains the secret" in notes
    assert audit_findings(audit)[0].startswith(audit["sentence"].rstrip("."))
    (failed,) = audit_findings(audit | {"failures": ["sealed: 0.3 bits"]})
    assert failed == "Do not rely on these numbers, because a control failed: sealed: 0.3 bits."


def without_probes(audit: dict[str, Any]) -> dict[str, Any]:
    """Return the summary without the attacks that probe a single site."""
    kept = {name: attack for name, attack in audit["attacks"].items() if not attack["probes_single_site"]}
    return audit | {"attacks": kept}


def test_detectable_leak_applies_only_to_probing_attacks() -> None:
    behavioural = finding("behavioural", 0.0, 0.05, gate=True)
    audit = without_probes(summary(evidence=[behavioural], detectable=None))
    assert audit["verdict"] == "not detected" and audit["results"][0]["state"] == "not detected"
    assert "No probe enters the verdict" in wording.bounds_text(audit) and "linear code" not in wording.bounds_text(
        audit
    )
    blind = summary("not enough data", detectable=None)
    assert "detected none of the codes" in wording.bounds_text(blind)


def test_upper_bound_is_at_least_the_detectable_leak() -> None:
    findings = [finding("attribute", 0.0, 0.05, gate=True), finding("collision", 0.0, 0.08, gate=True)]
    (insider, *_) = wording.by_threat(summary(evidence=findings))
    assert insider["found"] == "Not detected by this suite: at most 0.1 bits per secret."
    (insider, *_) = wording.by_threat(summary(evidence=findings[1:]))
    assert insider["found"] == "Not detected by this suite: at most 0.08 bits per secret."


def test_leak_within_the_limit_is_reported() -> None:
    audit = summary("within the limit")
    (insider, *_) = wording.by_threat(audit)
    assert insider["state"] == "within the limit"
    assert insider["found"].startswith("Attribute inference found 0.06 bits of note-*, within the limit; at")
    assert advice.next_steps(audit)[0].startswith("Something leaks")
    assert sarif(audit, run())["runs"][0]["results"][0]["message"]["text"].startswith("Within the limit.")


def test_sarif_follows_version_2_1_0(verdict: str) -> None:
    log = json.loads(json.dumps(sarif(summary(verdict), run()), allow_nan=False))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json") and len(log["runs"]) == 1
    driver, (invocation,) = log["runs"][0]["tool"]["driver"], log["runs"][0]["invocations"]
    assert (driver["name"], driver["version"]) == ("ghosttrace", "0.1.0")
    assert [rule["id"] for rule in driver["rules"]] == [
        *("attribute", "tenant", "ranking", "membership", "behavioural", "collision", "text", "control")
    ]
    for rule in driver["rules"]:
        assert all(rule[part]["text"] for part in ("shortDescription", "fullDescription", "help"))
    assert invocation["exitCode"] == VERDICTS[verdict] and invocation["executionSuccessful"] is (verdict != "invalid")
    assert log["runs"][0]["properties"]["verdict"] == verdict
    fingerprints = set()
    for result in log["runs"][0]["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note") and result["message"]["text"]
        (location,) = result["locations"]
        assert (
            location["physicalLocation"]["artifactLocation"]["uri"] == "toy-open"
            and location["logicalLocations"][0]["name"]
        )
        assert location["physicalLocation"]["region"]["startLine"] == 1
        fingerprints.add(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(fingerprints) == len(log["runs"][0]["results"])


def test_sarif_levels_follow_the_verdict(verdict: str) -> None:
    levels = [(result["ruleId"], result["level"]) for result in sarif(summary(verdict), run())["runs"][0]["results"]]
    assert (
        levels
        == {
            "leak": [("attribute", "error"), ("collision", "error"), ("behavioural", "error")],
            "not detected": [],
            "within the limit": [("attribute", "note")],
            "not enough data": [("attribute", "warning"), ("collision", "warning"), ("behavioural", "warning")],
            "invalid": [("control", "note")],
        }[verdict]
    )


def test_card_and_page_state_the_verdict_without_promises(verdict: str) -> None:
    audit = summary(verdict)
    for text in (card_text_of(card(audit, run())), page_text(page(audit, run()))):
        assert audit["sentence"] + "." in text and not FORBIDDEN.search(text)
        assert all(step in text for step in advice.next_steps(audit) + advice.limitations(audit))
        assert all(threat["found"] in text for threat in wording.by_threat(audit))
        assert ("no conclusion may be drawn" in text.lower()) is (verdict == "invalid")
        assert (CONTROL_FAILURE in text) is (verdict == "invalid")
        needed = f"About {audit['traces_needed']:,} traces are" if verdict == "not enough data" else "traces are needed"
        assert (needed in text) is (verdict == "not enough data")
        assert "A linear code of 0.1 bits in one token would have been detected in 8 of 10 runs." in text


def test_advice_follows_the_threat() -> None:
    findings = [finding(attack, 1.0 if attack == "behavioural" else 0.0, 0.05, gate=True) for attack in ATTACK_CLASSES]
    steps = advice.next_steps(summary(evidence=findings))
    assert USER.advice in steps and INSIDER.advice not in steps and "restart" in steps[1]
    assert not {threat.advice for threat in THREATS} & set(advice.next_steps(summary("invalid")))


def test_caveat_of_a_defence_is_reported() -> None:
    audit, caveat = summary(), NoiseDefence.caveat
    assert caveat not in advice.limitations(audit)
    noisy = audit | {"defence": audit["defence"] | {"caveat": caveat}}
    assert (
        caveat in advice.limitations(noisy)
        and caveat in card_text_of(card(noisy, run()))
        and caveat in page_text(page(noisy, run()))
    )


def test_missing_controls_are_reported_as_not_run() -> None:
    states = {
        entry["condition"]: wording.control_status(entry) for entry in wording.controls(summary("invalid", results=[]))
    }
    assert states == dict.fromkeys(("text", "causal", "shuffled", "sealed", "unerased"), "not run") | {
        "text": "baseline"
    }
    held = {entry["condition"]: wording.control_status(entry) for entry in wording.controls(summary("invalid"))}
    assert held == {"text": "baseline", "causal": "held", "shuffled": "held", "sealed": "FAILED", "unerased": "held"}


def test_hostile_names_are_escaped() -> None:
    audit, ran = summary(name=HOSTILE), run(HOSTILE)
    audit["secrets"][0]["name"] = audit["excluded"][0]["trace"] = audit["defence"]["summary"] = HOSTILE
    audit["results"] = [entry | {"secret": HOSTILE} for entry in audit["results"]]
    text, card_text = page(audit, ran), card(audit, ran)
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;window.pwned" in text
    body = re.sub(r"(?m)^    .*$", "", card_text)  # without the command, which is an indented block
    assert not re.search(r"(?<!\\)<(script|img)", body) and "\n# x" not in card_text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in card_text.splitlines() if line.startswith("| attribute")}
    assert len(widths) <= 1
    uri = sarif(audit, ran)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert not re.search(r"[<>\s|]", uri)


def test_bars_keep_the_order_of_their_values() -> None:
    rows, limit = summary()["results"], 0.1
    scale = scales(rows, limit)
    values = np.linspace(-0.09, 16.4, 60)
    drawn = [scale["bits"](value) for value in values]
    assert drawn == sorted(drawn) and (drawn[0], drawn[-1]) == (MARGIN, WIDTH - MARGIN)
    assert [label for label, _ in ticks(rows, limit)] == ["0", "0.1", "1", "10"]
    marks = bar(rows[0], limit, scale)
    assert marks["base"] < marks["limit"] < marks["low"] < marks["value"] < marks["high"]
    share = bar(row("membership", 0.5, 0.25, unit="AUC", baseline=0.5), limit, scale)
    assert share["limit"] is None and share["base"] == share["value"] == WIDTH / 2
    assert bar(row("behavioural", None, unit="rate") | {"baseline": None}, limit, scale)["value"] is None


def test_heat_maps_have_every_site_once() -> None:
    (heat,) = heat_maps(sites())
    assert [(heat_map["kv"], heat_map["condition"]) for heat_map in heat["maps"]] == [
        (kv, c) for kv in "kv" for c in ("open", "sealed")
    ]
    values = heat["maps"][2]
    assert values["hops"] == [-1, 0, 1, 2] and [line["layer"] for line in values["lines"]] == [3, 2, 1, 0]
    top = values["lines"][0]["cells"][1]
    assert top["share"] == 100 and top["bits"] == heat["highest"] == pytest.approx(1.4) and top["sure"]
    assert heat_maps([]) == [] and heat_maps([entry | {"probe": "mlp"} for entry in sites()]) == []


def test_figures_are_drawn(tmp_path: Path) -> None:
    """Figures are drawn even if summary.json has no `valid` yet."""
    drawn = {name: value for name, value in summary("invalid").items() if name != "valid"}
    for number, figure in enumerate((leak_figure(drawn), sites_figure(drawn))):
        figure.savefig(tmp_path / f"{number}.png")
    assert "INVALID" in [text.get_text() for text in leak_figure(summary("invalid")).texts]
    assert (
        has_bits(drawn) and not has_bits(summary(results=[])) and has_sites(drawn) and not has_sites(summary(sites=[]))
    )


def point(defence: str, leak: float, lost: float) -> dict[str, Any]:
    effect = {"effect": -lost, "effect_low": -lost - 0.02, "effect_high": -lost + 0.01}
    kept = summary(evidence=results(leak, 0.05))
    return pareto_row(kept | {"defence": kept["defence"] | {"name": defence} | effect})


def test_pareto_front_has_no_dominated_point(tmp_path: Path) -> None:
    rows = [point("none", 1.6, 0.0), point("restart", 0.0, 0.1), point("worse", 1.6, 0.1), point("between", 0.5, 0.05)]
    assert rows[1]["lost_low"] == pytest.approx(0.09) and rows[1]["lost_high"] == pytest.approx(0.12)
    assert [entry["defence"] for entry in pareto_front(rows)] == ["none", "between", "restart"]
    figure = pareto_figure(rows)
    figure.savefig(tmp_path / "pareto.png")
    assert {text.get_text() for text in figure.axes[0].texts} == {"none", "restart", "worse", "between"}


def test_reports_are_written(tmp_path: Path) -> None:
    folder = write_audit(tmp_path, summary(), run())
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "summary.json", "audit.sarif", "card.md", "report.html")
    }
    assert json.loads((folder / "audit.sarif").read_text())["version"] == "2.1.0"
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)


@pytest.mark.parametrize("name", ["audit.sarif", "card.md", "report.html"])
def test_unwritable_report_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} cannot be written .*: free disk space"):
        write_audit(tmp_path, summary(), run())


def test_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    write_audit(tmp_path, summary(), run())
    (tmp_path / "run.json").write_text(json.dumps(run() | {"command": "probe"}))
    with pytest.raises(UserError, match="not of ghosttrace audit"):
        AuditResult.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(run()))
    (tmp_path / "summary.json").write_text(json.dumps({"verdict": "leak"}))
    (tmp_path / "samples.parquet").touch()
    with pytest.raises(UserError, match="is not what this version writes"):
        AuditResult.open(tmp_path)


def test_zero_of_a_probe_that_fell_back_is_printed_as_a_decision() -> None:
    """The table, the notes and the sentence do not present the fallback as a measured 0."""
    nothing = finding("attribute", 0.0, gate=True, low=0.0, high=0.03, fell_back=True)
    audit = summary(evidence=[nothing])
    console = Console(file=io.StringIO(), width=200)
    console.print(audit_table(audit["results"]))
    assert "text only [0, 0.030]*" in console.file.getvalue()
    assert any("predicts what the text predicts" in note for note in audit_notes(audit))
    assert wording.estimate_text(audit["results"][0]) == "nothing beyond the text [0, 0.030] bits"
    measured = summary(evidence=[finding("attribute", 0.0, gate=True, low=-0.01, high=0.03)])
    assert not any("predicts what the text predicts" in note for note in audit_notes(measured))


def test_verdict_names_what_the_probes_are_blind_to() -> None:
    text = wording.bounds_text(summary("not detected"))
    assert (
        "Whole secrets in a few traces: from 1 % of traces on. One-time pads over two tokens: from 3.3 bits on" in text
    )
    assert "to one-time pads over two tokens of less than 3.3 bits" in summary("not detected")["sentence"]
    few = finding("attribute", 0.02, unit="exposed share", low=0.016, high=0.03, gate=True)
    audit = summary(evidence=[finding("attribute", 0.05, 0.03, gate=True), few])
    assert (audit["verdict"], audit["exit_code"]) == ("leak", 10)
    assert "guesses the whole of note-* in 2 % of traces [1.6, 3], more than the 1 % allowed" in audit["sentence"]


def test_secret_that_the_text_determines_has_no_share() -> None:
    """Nothing is unknown of it, so that no share of it can be computed."""
    settings = AuditSettings(resolve_attacks(None), resolve_defence("none"), ProbeSettings())
    item = finding("attribute", 0.0, gate=True, low=0.0, high=0.03)
    found = Findings((item,), (1.0,), (), Verdict("not detected", "", None, states=("not detected",)), {})
    assert [row["share"] for row in result_rows(found, settings, {"note-*": 0.0})] == [None]
    assert [row["share"] for row in result_rows(found, settings, {"note-*": 2.0})] == [0.0]
