"""The reports of an audit: schema, SARIF, card, page and figures, of each verdict; and the gate."""

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
    errors,
    finding,
    results,
    row,
    run,
    sites,
    summary,
    write_audit,
)
from rich.console import Console

from ghosttrace.auditing.defences.noise import NoiseDefence
from ghosttrace.auditing.result import AuditResult
from ghosttrace.auditing.threats import INSIDER, THREATS, USER
from ghosttrace.errors import UserError
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
from ghosttrace.report.audit.table import audit_lines, audit_table


def shown(text: str) -> str:
    """The words of a page, without markup."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", text))).split())


def plain(text: str) -> str:
    """The words of a card, without its escapes."""
    return " ".join(re.sub(r"\\(.)", r"\1", text).split())


@pytest.fixture(params=VERDICTS)
def verdict(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_schema_takes_every_verdict(verdict: str) -> None:
    assert errors(summary(verdict)) == []


def test_the_schema_is_closed_and_wants_every_key() -> None:
    for key in summary():
        assert errors({name: value for name, value in summary().items() if name != key}), key
    assert errors(summary() | {"more": 1})
    for part in ("defence", "secrets", "excluded", "threats", "results", "sites"):
        for change in ("more", None):
            bad = copy.deepcopy(summary())
            inner = bad[part] if part == "defence" else bad[part][0]
            inner.update({"more": 1}) if change else inner.popitem()
            assert errors(bad), part


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
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    assert errors(summary() | change)


def test_what_was_not_looked_at_is_said() -> None:
    said = advice.limitations(summary())
    assert "Probes looked at memento, at hops 0, 1, 2 alone." in said
    assert summary()["left_out"][0] in said
    assert any("of another kind of leak than the linear codes at one place" in one for one in said)


def test_a_row_without_a_lower_end_is_printed() -> None:
    found = summary(evidence=[finding("attribute", 0.5, 0.1, gate=True, low=-np.inf)])
    text = io.StringIO()
    console = Console(file=text, width=200)
    console.print(audit_table(found["results"]))
    for line in audit_lines(found):
        console.print(line)
    assert "0.500 [–, 0.600]*" in text.getvalue() and found["left_out"][0] in text.getvalue()
    assert "left out: t17: its memento text contains the secret" in text.getvalue()
    assert f"{found['verdict']}: {found['sentence']}" in text.getvalue()


def without_probes(found: dict[str, Any]) -> dict[str, Any]:
    """The summary of an audit that ran no probes of one place."""
    kept = {name: one for name, one in found["attacks"].items() if not one["probes_single_site"]}
    return found | {"attacks": kept}


def test_what_probes_could_see_is_no_concern_of_other_attacks() -> None:
    asked = finding("behavioural", 0.0, 0.05, gate=True)
    alone = without_probes(summary(evidence=[asked], seen=None))
    assert alone["verdict"] == "not detected" and alone["results"][0]["state"] == "not detected"
    assert "No probe decides" in wording.bounds_text(alone) and "linear code" not in wording.bounds_text(alone)
    blind = summary("not enough data", seen=None)
    assert "None of the codes" in wording.bounds_text(blind)


def test_at_most_is_not_less_than_the_probes_could_see() -> None:
    found = [finding("attribute", 0.0, 0.05, gate=True), finding("collision", 0.0, 0.08, gate=True)]
    (insider, *_) = wording.by_threat(summary(evidence=found))
    assert insider["found"] == "Not detected: at most 0.1 bits a secret by this suite."
    (insider, *_) = wording.by_threat(summary(evidence=found[1:]))
    assert insider["found"] == "Not detected: at most 0.08 bits a secret by this suite."


def test_what_was_found_within_the_limit_is_said() -> None:
    found = summary("within the limit")
    (insider, *_) = wording.by_threat(found)
    assert insider["state"] == "within the limit"
    assert insider["found"].startswith("Attribute inference found 0.06 bits of note-*, within the 0.1 bits allowed; at")
    assert advice.next_steps(found)[0].startswith("Something leaks")
    assert sarif(found, run())["runs"][0]["results"][0]["message"]["text"].startswith("Within the limit.")


def test_sarif_has_the_shape_that_2_1_0_asks_for(verdict: str) -> None:
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
        (place,) = result["locations"]
        assert (
            place["physicalLocation"]["artifactLocation"]["uri"] == "toy-open" and place["logicalLocations"][0]["name"]
        )
        assert place["physicalLocation"]["region"]["startLine"] == 1
        fingerprints.add(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(fingerprints) == len(log["runs"][0]["results"])


def test_sarif_says_what_the_verdict_says(verdict: str) -> None:
    found = [(one["ruleId"], one["level"]) for one in sarif(summary(verdict), run())["runs"][0]["results"]]
    assert (
        found
        == {
            "leak": [("attribute", "error"), ("collision", "error"), ("behavioural", "error")],
            "not detected": [],
            "within the limit": [("attribute", "note")],
            "not enough data": [("attribute", "warning"), ("collision", "warning"), ("behavioural", "warning")],
            "invalid": [("control", "note")],
        }[verdict]
    )


def test_card_and_page_say_the_verdict_and_promise_nothing(verdict: str) -> None:
    found = summary(verdict)
    for said in (plain(card(found, run())), shown(page(found, run()))):
        assert found["sentence"] + "." in said and not FORBIDDEN.search(said)
        assert all(step in said for step in advice.next_steps(found) + advice.limitations(found))
        assert all(threat["found"] in said for threat in wording.by_threat(found))
        assert ("no conclusion may be drawn" in said.lower()) is (verdict == "invalid")
        assert (CONTROL_FAILURE in said) is (verdict == "invalid")
        needed = f"About {found['traces_needed']:,} would do" if verdict == "not enough data" else "would do"
        assert (needed in said) is (verdict == "not enough data")
        assert "A linear code of 0.1 bits at one place of the cache would have been seen in 8 of 10 runs." in said


def test_advice_follows_whom_it_leaks_to() -> None:
    found = [finding(attack, 1.0 if attack == "behavioural" else 0.0, 0.05, gate=True) for attack in ATTACK_CLASSES]
    steps = advice.next_steps(summary(evidence=found))
    assert USER.advice in steps and INSIDER.advice not in steps and "restart" in steps[1]
    assert not {threat.advice for threat in THREATS} & set(advice.next_steps(summary("invalid")))


def test_the_caveat_of_a_defence_is_said() -> None:
    found, caveat = summary(), NoiseDefence.caveat
    assert caveat not in advice.limitations(found)
    noisy = found | {"defence": found["defence"] | {"caveat": caveat}}
    assert (
        caveat in advice.limitations(noisy)
        and caveat in plain(card(noisy, run()))
        and caveat in shown(page(noisy, run()))
    )


def test_controls_that_were_not_run_are_named() -> None:
    found = {
        entry["condition"]: wording.control_status(entry) for entry in wording.controls(summary("invalid", results=[]))
    }
    assert found == dict.fromkeys(("text", "causal", "shuffled", "sealed", "unerased"), "not run") | {
        "text": "baseline"
    }
    held = {entry["condition"]: wording.control_status(entry) for entry in wording.controls(summary("invalid"))}
    assert held == {"text": "baseline", "causal": "held", "shuffled": "held", "sealed": "FAILED", "unerased": "held"}


def test_hostile_names_are_text() -> None:
    found, ran = summary(name=HOSTILE), run(HOSTILE)
    found["secrets"][0]["name"] = found["excluded"][0]["trace"] = found["defence"]["summary"] = HOSTILE
    found["results"] = [one | {"secret": HOSTILE} for one in found["results"]]
    text, said = page(found, ran), card(found, ran)
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;window.pwned" in text
    body = re.sub(r"(?m)^    .*$", "", said)  # but for the command, which stands in an indented block
    assert not re.search(r"(?<!\\)<(script|img)", body) and "\n# x" not in said
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in said.splitlines() if line.startswith("| attribute")}
    assert len(widths) <= 1
    uri = sarif(found, ran)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert not re.search(r"[<>\s|]", uri)


def test_bars_keep_the_order_of_what_they_show() -> None:
    rows, limit = summary()["results"], 0.1
    at = scales(rows, limit)
    values = np.linspace(-0.09, 16.4, 60)
    drawn = [at["bits"](value) for value in values]
    assert drawn == sorted(drawn) and (drawn[0], drawn[-1]) == (MARGIN, WIDTH - MARGIN)
    assert [label for label, _ in ticks(rows, limit)] == ["0", "0.1", "1", "10"]
    marks = bar(rows[0], limit, at)
    assert marks["base"] < marks["limit"] < marks["low"] < marks["value"] < marks["high"]
    share = bar(row("membership", 0.5, 0.25, unit="AUC", baseline=0.5), limit, at)
    assert share["limit"] is None and share["base"] == share["value"] == WIDTH / 2
    assert bar(row("behavioural", None, unit="rate") | {"baseline": None}, limit, at)["value"] is None


def test_heat_maps_hold_every_site_once() -> None:
    (heat,) = heat_maps(sites())
    assert [(one["kv"], one["condition"]) for one in heat["maps"]] == [
        (kv, c) for kv in "kv" for c in ("open", "sealed")
    ]
    values = heat["maps"][2]
    assert values["hops"] == [-1, 0, 1, 2] and [line["layer"] for line in values["lines"]] == [3, 2, 1, 0]
    top = values["lines"][0]["cells"][1]
    assert top["share"] == 100 and top["bits"] == heat["highest"] == pytest.approx(1.4) and top["sure"]
    assert heat_maps([]) == [] and heat_maps([one | {"probe": "mlp"} for one in sites()]) == []


def test_figures_are_drawn(tmp_path: Path) -> None:
    """Before summary.json has its `valid`, too: they are drawn beside it."""
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


def test_the_pareto_front_is_what_no_other_beats(tmp_path: Path) -> None:
    rows = [point("none", 1.6, 0.0), point("restart", 0.0, 0.1), point("worse", 1.6, 0.1), point("between", 0.5, 0.05)]
    assert rows[1]["lost_low"] == pytest.approx(0.09) and rows[1]["lost_high"] == pytest.approx(0.12)
    assert [one["defence"] for one in pareto_front(rows)] == ["none", "between", "restart"]
    figure = pareto_figure(rows)
    figure.savefig(tmp_path / "pareto.png")
    assert {text.get_text() for text in figure.axes[0].texts} == {"none", "restart", "worse", "between"}


def test_the_reports_are_written(tmp_path: Path) -> None:
    folder = write_audit(tmp_path, summary(), run())
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "summary.json", "audit.sarif", "card.md", "report.html")
    }
    assert json.loads((folder / "audit.sarif").read_text())["version"] == "2.1.0"
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)


@pytest.mark.parametrize("name", ["audit.sarif", "card.md", "report.html"])
def test_an_unwritable_report_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} cannot be written .*: make room or rights"):
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
