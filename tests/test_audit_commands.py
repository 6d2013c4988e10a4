"""The command `ghosttrace audit`: invalid input, secrets from every source, and each exit code."""

import json
import shutil
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from helpers.audits import schema_errors, toy
from helpers.families import FAMILIES
from transformers import AutoModelForCausalLM

from ghosttrace.auditing.defences import parse_defence
from ghosttrace.auditing.marked_secrets import marked_task, read_marks
from ghosttrace.auditing.settings import retained_carriers
from ghosttrace.auditing.subject import SecretSource, make_subject
from ghosttrace.cli import audit as cli
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.checkpoint import resolve_pretrained_path
from ghosttrace.report.audit.page import write_reports
from ghosttrace.results import open_run


def marks(folder: Path, *rows: object) -> Path:
    path = folder / "secrets.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def token_trace(name: str, *blocks: str, memento: str = "abc") -> TokenTrace:
    text = "".join(f"<|block_start|>{b}<|block_end|><|summary_start|>{memento}<|summary_end|>" for b in blocks)
    response = toy().tokenizer.encode(f"<think>{text}</think>", add_special_tokens=False)
    return TokenTrace("file", name, toy().prompt_ids("x179"), response)


def test_marked_secrets_in_the_retained_text_are_excluded(tmp_path: Path) -> None:
    traces = [token_trace(f"t{k}", "abc", "dghe" if k % 2 else "jfhe", "cde", "abc") for k in range(8)]
    traces.append(token_trace("revealed", "abc", "dghe", "cde", "abc", memento="dgh"))
    rows = [{"trace": f"t{k}", "block": 1, "text": "dgh" if k % 2 else "jfh"} for k in range(8)]
    rows += [{"trace": "revealed", "block": 1, "text": "dgh"}, {"trace": "none", "block": 1, "text": "dgh"}]
    rows += [{"trace": "t1", "block": 3, "text": "dgh"}, {"trace": "t1", "block": 1, "text": "zzz"}]
    traces.append(token_trace("twice", "jdgh", "dghe", "cde", "abc"))
    rows.append({"trace": "twice", "block": 1, "text": "dgh"})
    task, excluded = marked_task(traces, toy(), read_marks(marks(tmp_path, *rows)), 1)
    assert len(task.samples) == 8 and task.targets[0].classes == ("dgh", "jfh")
    assert [exclusion.trace for exclusion in excluded] == ["revealed", "none", "t1", "t1", "twice"]
    assert (
        "retained text contains the secret" in excluded[0].reason
        and "also occurs in an earlier block" in excluded[-1].reason
    )
    for sample in task.samples:
        spelled = toy().tokenizer.convert_ids_to_tokens([sample.ids[index] for index in sample.secret_indices])
        assert "".join(spelled) == task.targets[0].classes[sample.labels[0]]
    with pytest.raises(UserError, match="none of 1 marked secrets"):
        marked_task(traces, toy(), rows[-2:-1], 1)
    for wrong in ("{", '{"trace": "t"}', '{"trace": "t", "text": "x", "block": -1}', "[]"):
        with pytest.raises(UserError, match="line 1"):
            read_marks(marks(tmp_path, wrong))
    with pytest.raises(UserError, match="marks no secrets"):
        read_marks(marks(tmp_path, " "))


QUICK = ["--hops", "0", "--layers", "3", "--kv", "v", "--no-mlp", "--utility-limit", "10", "--attacks"]


def command(*arguments: str) -> int:
    """Run `ghosttrace audit` and return its exit code."""
    app = typer.Typer()
    app.command()(cli.audit)
    return int(app(list(arguments), standalone_mode=False) or 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--attacks", "guessing"], "--attacks is a list of"),
        (["--attacks", "ranking"], "--attacks needs an attack that counts bits"),
        (["--defence", "prayer"], "no defence 'prayer'"),
        (["--defence", "drop-delimiters"], "delimiters"),
        (["--kv", "hidden"], "remove hidden from --kv"),
        (["--max-leak-bits", "0"], "--max-leak-bits must be above 0"),
        (["--prompt", "well?"], "put parts of the secret in braces"),
        (["--secrets", "x.jsonl"], "give the traces with --traces"),
        (["--targets", "notes"], "ledger-h3 has no target 'notes': it has note-0, note-1"),
        (["--fpr", "0.001"], r"30 independent traces on validation cannot set a threshold .*: give 6,667"),
        (["--fpr", "0"], "--fpr must be between 0 and 1"),
        (["--samples", "8"], "8 samples for 10 classes"),
    ],
)
def test_invalid_input_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        command("--samples", "200", *options, "--out", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("bench", "targets", "expected"),
    [
        ("ledger-h3", None, {"note-*": [f"note-{k}" for k in range(5)], "hidden-*": [f"hidden-{k}" for k in range(3)]}),
        ("ledger-h3", "note-0", {"note-*": ["note-0", *[None] * 4]}),
        ("ledger-h2", "hidden-*", {"hidden-*": [None, "hidden-0", "hidden-1"]}),
    ],
)
def test_built_in_prompts_keep_positions_of_other_targets(
    bench: str, targets: str | None, expected: dict[str, list[str | None]]
) -> None:
    chosen = None if targets is None else [targets]
    prompts = make_subject(toy(), SecretSource(bench, samples=100), chosen).prompts
    assert {secret: list(prompt.targets) for secret, prompt in prompts.items()} == expected
    assert all(len(options) == 10 for prompt in prompts.values() for options in prompt.answer_tokens)


def test_default_probes_cover_all_retained_tokens() -> None:
    keeping = replace(toy(), policy=replace(toy().policy, mask_delimiters=False))
    assert retained_carriers(toy(), parse_defence("none")) == ("memento",)
    assert retained_carriers(keeping, parse_defence("none")) == ("memento", "delimiters")
    assert retained_carriers(keeping, parse_defence("drop-delimiters")) == ("memento",)


@pytest.mark.slow
def test_leak_fails_the_gate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command("--samples", "400", *QUICK, "attribute,ranking,behavioural", "--out", str(out)) == 10
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["verdict"], summary["exit_code"], summary["valid"]) == ("leak", 10, True)
    rows = {(r["attack"], r["secret"], r["condition"], r["unit"]): r for r in summary["results"]}
    assert rows["attribute", "hidden-*", "open", "bits"]["low"] > 5
    assert rows["behavioural", "hidden-*", "open", "rate"]["estimate"] == 1.0
    assert rows["behavioural", "hidden-*", "sealed", "rate"]["estimate"] < 0.05
    assert rows["ranking", "hidden-*", "open", "exposure bits"]["estimate"] > 5
    assert summary["defence"]["accuracy"] == 1.0
    open_rows = [row for row in summary["results"] if row["condition"] == "open"]
    assert all(row["detectable"] is None for row in open_rows if row["attack"] == "behavioural")
    for name in ("report.html", "card.md", "audit.sarif", "samples.parquet", "traces.parquet", "run.json"):
        assert (out / name).stat().st_size > 500
    assert not (out / "features").exists()
    assert schema_errors(summary) == []  # valid under the published schema
    assert command("--resume", str(out)) == 10
    (out / "card.md").unlink()
    reopened = open_run(out)
    assert reopened.report() == out / "report.html" and (out / "card.md").exists()
    assert set(reopened.figures()) == {"leak", "sites"} and (out / "figures" / "leak.svg").exists()


@pytest.mark.long
@pytest.mark.slow
def test_targets_select_secrets_and_unwritable_report_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "run", ["--targets", "note-*", "--samples", "400", *QUICK, "attribute,behavioural"]

    def full(folder: Path, *arguments: Any) -> None:
        (folder / "card.md").mkdir()
        write_reports(folder, *arguments)

    monkeypatch.setattr("ghosttrace.auditing.result.write_reports", full)
    with pytest.raises(UserError, match=r"card\.md cannot be written"):
        command(*options, "--out", str(out))
    monkeypatch.undo()
    (out / "card.md").rmdir()
    code = command("--resume", str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert code == summary["exit_code"] and summary["valid"]
    assert {row["secret"] for row in summary["results"]} == {"note-*"}
    assert {row["attack"] for row in summary["results"]} >= {"attribute", "behavioural"}


@pytest.mark.slow
def test_small_audit_gives_not_enough_data(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--model", "toy-mixed", "--defence", "restart", "--samples", "300"]
    assert command(*options, *QUICK, "attribute,collision", "--out", str(out)) == 11
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdict"] == "not enough data" and summary["traces_needed"] is None
    assert (
        "too few traces to estimate" in summary["sentence"] and "use ten times as many" in (out / "card.md").read_text()
    )


@pytest.mark.long
@pytest.mark.slow
def test_failed_control_makes_the_audit_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control fails because its sealed cache is replaced by an open one."""
    from ghosttrace.probing import features

    monkeypatch.setitem(features.LAYOUTS, "sealed", features.LAYOUTS["open"])
    out = tmp_path / "run"
    assert command("--samples", "400", *QUICK, "attribute", "--out", str(out)) == 12
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["valid"] and summary["failures"][0].startswith("sealed")


def response(number: int) -> str:
    pairs = "".join(
        f"<|block_start|>{i}. We think on, and {'go up' * (i > 0) if number % 2 else 'do it' * (i > 0)}.<|block_end|>"
        f"<|summary_start|>Sum {i}.<|summary_end|>"
        for i in range(3)
    )
    return f"<think>\n{pairs}</think>\nDone."


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return options with a random model, whose tokenizer has one token per letter, and 36 traces."""
    folder, toy = tmp_path_factory.mktemp("random"), Path(resolve_pretrained_path("toy-open"))
    (folder / "model").mkdir()
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(toy / name, folder / "model")
    tokenizer_json = json.loads((toy / "tokenizer.json").read_text())
    vocabulary = tokenizer_json["model"]["vocab"]
    for letter in sorted(set(string.printable) - set(vocabulary)):
        vocabulary[letter] = len(vocabulary)
    tokenizer_json["pre_tokenizer"]["pattern"]["Regex"] = r"[\s\S]"
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.ghosttrace = len(vocabulary), {"policy": Policy(mask_delimiters=False).to_dict()}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    rows = [json.dumps({"problem": f"{number:02d}?", "response": response(number)}) for number in range(36)]
    (folder / "traces.jsonl").write_text("\n".join(rows))
    return ["--model", str(folder / "model"), "--traces", str(folder / "traces.jsonl")]


def audited(out: Path, *arguments: str) -> dict[str, Any]:
    """Run an audit to its end and return the summary."""
    code = command(*arguments, *QUICK[:-1], "--out", str(out))
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert code == summary["exit_code"] and schema_errors(summary) == []
    assert "Limitations" in (out / "report.html").read_text()
    return summary


@pytest.mark.long
def test_verdict_without_probes_names_no_detectable_leak(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--targets", "note-0", "--samples", "300"]
    assert command(*options, *QUICK, "behavioural", "--out", str(out)) == 11
    summary = json.loads((out / "summary.json").read_text())
    assert summary["detectable_bits"] is None and all(row["detectable"] is None for row in summary["results"])
    assert summary["traces_needed"] > 300 and "No probe enters" in (out / "card.md").read_text()


@pytest.mark.long
def test_names_are_scored_with_all_tokens(random_model: list[str], tmp_path: Path) -> None:
    """With one token per letter, Tamara and Tanaka share their first tokens."""
    summary = audited(tmp_path / "run", *random_model, "--secret", "name", "--samples", "6")
    rows = {(row["attack"], row["condition"], row["unit"]): row for row in summary["results"]}
    assert rows["behavioural", "open", "bits"]["gate"] and rows["behavioural", "open", "rate"]["n"] in range(4, 8)
    assert rows["ranking", "open", "exposure bits"]["n"] > 20 and summary["left_out"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("key", "ranked"), [("key:4", True), pytest.param("key", False, marks=pytest.mark.long)])
def test_secrets_with_too_many_candidates_are_not_ranked(
    random_model: list[str], tmp_path: Path, key: str, ranked: bool
) -> None:
    attacks = ["--attacks", "attribute,ranking,membership"]
    summary = audited(tmp_path / "run", *random_model, "--secret", key, "--samples", "6", *attacks)
    assert ("ranking" in {row["attack"] for row in summary["results"]}) is ranked
    assert any("ranking of hex-* was skipped: it has more" in reason for reason in summary["left_out"]) is not ranked
    assert all(reason in (tmp_path / "run" / "report.html").read_text() for reason in summary["left_out"])
    (auc,) = [row for row in summary["results"] if (row["unit"], row["condition"]) == ("AUC", "open")]
    assert "cannot set a threshold for a rate of 0.01" in auc["note"]


def marked(folder: Path, traces: str, block: int) -> list[str]:
    """Return options that mark a word of block `block` in each trace."""
    texts = ["up" if number % 2 else "it" for number in range(36)]
    marks = [{"trace": f"{traces}/{number}", "block": block, "text": text} for number, text in enumerate(texts)]
    (folder / "secrets.jsonl").write_text("\n".join(map(json.dumps, marks)))
    return ["--secrets", str(folder / "secrets.jsonl")]


def test_marked_secrets(random_model: list[str], tmp_path: Path) -> None:
    summary = audited(tmp_path / "run", *random_model, *marked(tmp_path, random_model[3], 1))
    assert summary["secrets"][0]["name"] == "marked" and summary["excluded"] == []
    assert any("behavioural of marked was skipped: no prompt asks for it" in reason for reason in summary["left_out"])


def test_secret_in_an_earlier_block_is_excluded(random_model: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the secret also occurs in an earlier block"):
        audited(tmp_path / "run", *random_model, *marked(tmp_path, random_model[3], 2), "--targets", "none")


@pytest.mark.parametrize("attack", ["behavioural", "collision", "behavioural,collision"])
def test_audit_without_a_possible_verdict_is_refused_early(
    random_model: list[str], tmp_path: Path, attack: str
) -> None:
    options = [*random_model, *marked(tmp_path, random_model[3], 1), "--attacks", attack]
    with pytest.raises(UserError, match=r"no attack can count bits .* add attribute to --attacks"):
        audited(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
