"""What commands print: whole tables, JSON and CSV, progress without a terminal, one policy, and messages with a fix."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import ghosttrace
from helpers.training import blank_model
from rich.console import Console
from rich.table import Table

import ghosttrace as gt
from ghosttrace.ablation.arms import PlaceboArm, Restart
from ghosttrace.bench import load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.cli import progress
from ghosttrace.cli.output import print_tables
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits import measure as measuring
from ghosttrace.ghost_bits.measure import BITS_TABLE, measure
from ghosttrace.model.checkpoint import load
from ghosttrace.report.ghost_bits import bits_table
from ghosttrace.report.probing.table import probe_table
from ghosttrace.runs.records import Records

TRACE = "<think>" + "<|block_start|>123<|block_end|><|summary_start|>4<|summary_end|>" * 2 + "</think>123"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of `bits`."""
    folder = tmp_path_factory.mktemp("bits") / "run"
    gt.bits("toy-mixed", bench="ledger-h1", limit=2, out=folder)
    return folder


def printed(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def bits_rows(source: str) -> pd.DataFrame:
    numbers = {"bits": -12.345, "bits_low": -12.345, "bits_high": -12.345, "bits_per_trace": -12345.67}
    row = {"source": source, "arm": "restart-renumbered", "by": "kind", "group": "delimiter", "n_traces": 1000}
    return pd.DataFrame([row | numbers | {"n_tokens": 12_345_678}])


def probe_rows() -> pd.DataFrame:
    site = {"carrier": "delimiters/mean", "hop": 1, "layer": "joint", "kv": "hidden", "head": "all"}
    shares = {"accuracy": 1.0, "accuracy_low": 1.0, "accuracy_high": 1.0, "chance": 0.1, "unknown": 3.32}
    bits = {"bits": -12.345, "bits_low": -12.345, "bits_high": -12.345, "significant": True, "headline": True}
    row = site | shares | bits | {"target": "hidden-*", "n_test": 900, "n_clusters": 60}
    open_rows = [row | {"condition": "open", "probe": name} for name in ("online", "linear")]
    return pd.DataFrame([*open_rows, row | {"condition": "sealed", "probe": "linear"}])


def test_tables_are_whole_at_80_columns() -> None:
    configuration = {"arms": {"restart-renumbered": {"control": False}}}
    bits = printed(bits_table(bits_rows("folder/a-long-name-of-a-file-of-traces.jsonl"), configuration))
    probes = printed(probe_table(probe_rows(), {"split": {"shares no": "secrets"}}))
    for lines, number in ((bits, "-12.345 [-12.345, -12.345]"), (probes, "-12.345 [-12.345,-12.345]*")):
        assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
        assert any(number in line for line in lines)


def test_probe_caption_names_its_clusters_test_set_and_references() -> None:
    for shared, clusters in (("secrets", "secrets"), ("base traces and secrets", "base traces")):
        text = " ".join(" ".join(printed(probe_table(probe_rows(), {"split": {"shares no": shared}}))).split())
        assert f"on 900 test samples with 95 % intervals over their 60 {clusters}" in text
        assert "text and exact: bits beyond the class frequencies" in text


def test_table_is_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_row("a" * 60, "b" * 60, "c" * 60)
    print_tables([], [table])
    out = capsys.readouterr().out
    assert all(letter * 60 in out for letter in "abc") and "…" not in out


def test_measuring_commands_print_json_and_csv(run: Path) -> None:
    done = ghosttrace("bits", "--resume", str(run), "--format", "json")
    refused = "was not started from the command line"
    assert done.returncode == 2 and refused in done.stderr
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"options": {"model": "toy-mixed"}}))
    summary = json.loads((run / "summary.json").read_text())
    found = json.loads(ghosttrace("bits", "--resume", str(run), "--format", "json").stdout)
    assert found["results"] == summary["results"] and found["valid"] and len(found["findings"]) == 2
    rows = list(csv.DictReader(io.StringIO(ghosttrace("bits", "--resume", str(run), "--format", "csv").stdout)))
    assert [row["arm"] for row in rows] == [row["arm"] for row in summary["results"]]
    assert [float(row["bits"]) for row in rows] == [row["bits"] for row in summary["results"]]
    assert "bits per token" in ghosttrace("bits", "--resume", str(run)).stdout


def test_info_and_plan_print_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text(TRACE)
    arguments = ("info", "toy-mixed", "--trace", str(tmp_path / "trace.txt"), "--format")
    found = json.loads(ghosttrace(*arguments, "json").stdout)
    assert found["model"]["policy"]["mask_delimiters"] is True and found["model"]["bytes_per_token"] == 4096
    assert [(row["trace"], row["block"]) for row in found["results"]] == [(0, 0), (0, 1)]
    assert len(ghosttrace(*arguments, "csv").stdout.splitlines()) == 3
    plan = ("plan", "toy-mixed", "--bench", "ledger-h1", "--repetitions", "2", "--format")
    assert json.loads(ghosttrace(*plan, "json").stdout)["results"][0]["name"] == "memento"
    assert ghosttrace(*plan, "csv").stdout.startswith("name,")


def test_info_shows_the_policy_in_effect(tmp_path: Path) -> None:
    found = json.loads(ghosttrace("info", "toy-mixed", "--keep-last-n-blocks", "1", "--format", "json").stdout)
    assert found["model"]["policy"]["keep_last_n_blocks"] == 1
    nothing = ghosttrace("info", "toy-mixed", "--keep-last-n-blocks", "-1").stdout
    assert nothing.startswith("The policy erases nothing") and "--keep-last-n-blocks 0" in nothing


def test_progress_without_a_terminal_is_printed_in_lines() -> None:
    console, now = Console(file=io.StringIO()), iter([0.0, 1.0, 2.0, 40.0, 41.0, 42.0, 43.0])
    with progress._lines(console, lambda: next(now)) as show:
        for done in range(5):
            show("traces", done, 4)
        show("figures", 0, 2)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        *("traces: 0 of 4 after 1 s", "traces: 2 of 4 after 40 s", "traces: 4 of 4 after 42 s"),
        "figures: 0 of 2 after 43 s",
    ]


def test_run_in_a_pipe_prints_progress_to_stderr(tmp_path: Path) -> None:
    done = ghosttrace("bits", "--bench", "ledger-h1", "--limit", "1", "--out", str(tmp_path / "run"))
    assert "traces: 1 of 1 after" in done.stderr and "traces: 1 of 1" not in done.stdout


def test_killed_bits_loses_no_finished_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, (bench,) = load("toy-mixed"), load_bench("ledger-h1", 2)
    traces, arms, records = reference_traces(checkpoint, bench), [Restart(), PlaceboArm()], Records(BITS_TABLE)
    ran: list[str] = []
    original = measuring.log2_probabilities

    def recorded(checkpoint: Any, arm: Any, *rest: Any) -> Any:
        ran.append(arm.name)
        if len(ran) == 6:
            raise KeyboardInterrupt
        return original(checkpoint, arm, *rest)

    monkeypatch.setattr(measuring, "log2_probabilities", recorded)
    with pytest.raises(KeyboardInterrupt):
        measure(checkpoint, traces, arms, records, batch_tokens=1)
    assert len(records) == 3  # both arms of the first trace, restart of the second
    measure(checkpoint, traces, arms, records, batch_tokens=1)
    assert ran[6:] == ["memento", "placebo"] and len(records) == 4 and not records.changed_on_resume


def test_bits_saves_often_on_a_cpu(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["settings"]["batch_tokens"] == 4096


def test_delimiters_against_the_recorded_policy_are_refused() -> None:
    with pytest.raises(UserError, match=r"was trained with --mask-delimiters, .*: leave out --keep-delimiters"):
        gt.load("toy-mixed", mask_delimiters=False)
    assert gt.load("toy-mixed", mask_delimiters=True).policy.mask_delimiters
    for arguments in (["info", "toy-mixed"], ["plan", "toy-mixed"], ["bits"]):
        assert "leave out --keep-delimiters" in ghosttrace(*arguments, "--keep-delimiters").stderr


def test_init_tokens_says_what_it_records_and_every_refusal_names_the_fix(tmp_path: Path) -> None:
    blank = blank_model(tmp_path / "blank")
    done = ghosttrace("init-tokens", str(blank), str(tmp_path / "new"), "--keep-delimiters")
    assert "keep_last_n_blocks=-1" in done.stdout and "--keep-last-n-blocks 0" in done.stdout
    refused = ghosttrace("bits", "--model", str(tmp_path / "new"), "--bench", "ledger-h1", "--limit", "1")
    assert refused.returncode == 2 and "give --keep-last-n-blocks 0" in refused.stderr
    shutil.copytree(blank, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    done = ghosttrace("init-tokens", str(tmp_path / "plain"), str(tmp_path / "none"), "--keep-delimiters")
    assert done.returncode == 2 and "has no chat template" in done.stderr and not (tmp_path / "none").exists()


def test_missing_delimiters_name_init_tokens() -> None:
    class Plain:
        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(UserError, match="or add them with ghosttrace init-tokens"):
        gt.Markup.from_tokenizer(Plain())
