"""`ghosttrace data`: each stage as a command, the cost table, and bad input in one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.annotator import annotate
from helpers.commands import ghosttrace
from helpers.pipeline import seed, seed_file
from helpers.scripted_endpoint import KEY, ScriptedEndpoint, scripted_endpoint

from ghosttrace.pipeline.check import check_dataset
from ghosttrace.report.pipeline import next_step

SMALL = ("--min-tokens", "50", "--windows", "8,5", "--min-block-tokens", "60")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEndpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with scripted_endpoint(annotate) as running:
        yield running


def at(server: ScriptedEndpoint) -> tuple[str, ...]:
    return "--endpoint", server.url, "--model", "scripted", "--concurrency", "4"


def done(*arguments: Any) -> str:
    finished = ghosttrace("data", *map(str, arguments))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def refused(*arguments: Any) -> str:
    finished = ghosttrace("data", *map(str, arguments))
    assert finished.returncode == 2, finished.stdout
    assert finished.stderr.count("\n") == 1 and finished.stderr.startswith("ghosttrace: ")
    return finished.stderr


def test_stages_one_by_one_give_the_rows_of_a_build(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source, rows = seed_file(tmp_path), [tmp_path / f"{number}.jsonl" for number in range(8)]
    printed = done("select", source, "--out", rows[0], "--min-tokens", 50)
    assert "3 written, 2 set aside" in printed and "no think tags" in printed
    done("split", rows[0], "--out", rows[1])
    assert "score" in done("score", rows[1], "--out", rows[2], "--windows", "8,5", *at(server))
    done("segment", rows[2], "--out", rows[3], "--min-block-tokens", 60)
    for number in (3, 5):
        done("compress", rows[number], "--out", rows[number + 1], *at(server))
        done("judge", rows[number + 1], "--out", rows[number + 2], *at(server))
    printed = done("assemble", rows[7], "--out", tmp_path / "stages")
    assert "ghosttrace sft --model MODEL --data" in printed
    done("build", source, "--out", tmp_path / "build", *SMALL, *at(server), "--rounds", 1)
    for name in ("full", "rejected"):
        files = [(tmp_path / folder / name / "train.jsonl").read_text() for folder in ("stages", "build")]
        assert files[0] == files[1]
    assert "Rows without problems: " in done("check", tmp_path / "build/full/train.parquet")


def test_build_prints_rows_reasons_cost_and_the_next_command(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source = seed_file(tmp_path)
    printed = done("build", source, "--out", tmp_path / "out", *SMALL, *at(server), "--price-in", 1)
    assert "3 accepted, 0 with a memento below the threshold, 2 set aside" in printed
    assert "no response" in printed and "compress" in printed and "sft --model MODEL --data" in printed
    assert check_dataset(tmp_path / "out/default/train.parquet").valid


def test_dry_run_asks_nothing_and_prints_the_cost(server: ScriptedEndpoint, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", *SMALL, *at(server), "--price-in", 100, "--price-out", 100)
    printed = done("build", seed_file(tmp_path), *options, "--dry-run")
    assert "3 selected, 2 dropped. Nothing was asked." in printed and "with all rewrites" in printed
    assert not server.received and not (tmp_path / "out").exists()
    done("build", seed_file(tmp_path), *options)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    calls = {cost["stage"]: cost["calls"] for cost in summary["costs"]}
    line = next(line.split() for line in printed.splitlines() if line.startswith("score"))
    assert int(line[1]) == calls["score"]
    actual = next(cost["prompt_tokens"] for cost in summary["costs"] if cost["stage"] == "score")
    assert int(line[2].replace(",", "")) == pytest.approx(actual, rel=0.4)


def test_check_lists_problems_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "p", "response": "x"}\n{"problem": "p"}\n')
    finished = ghosttrace("data", "check", str(tmp_path / "rows.jsonl"))
    assert finished.returncode == 1 and "2 of 2 rows have problems" in finished.stdout
    assert "does not begin with <think>" in finished.stdout


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", *SMALL, "--endpoint", "http://127.0.0.1:9/v1", "--retries", 0)
    message = refused("build", seed_file(tmp_path), *options)
    assert "the endpoint http://127.0.0.1:9/v1 cannot be reached" in message and "start the server" in message


def test_a_key_that_is_refused(server: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "wrong")
    options = ("--out", tmp_path / "out", *SMALL, *at(server), "--key-variable", "OTHER_KEY")
    message = refused("build", seed_file(tmp_path), *options)
    assert "refuses the key: set the variable that --key-variable names" in message


def test_a_model_that_answers_prose_sets_every_row_aside(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.respond = lambda _: "I would say that it is about numbers."
    printed = done("build", seed_file(tmp_path), "--out", tmp_path / "out", *SMALL, *at(server))
    assert "Rows: 0 accepted" in printed and "unusable answer" in printed and "set_aside.jsonl" in printed


def test_traces_in_chinese_and_unclosed_think_are_dropped_with_their_reason(
    server: ScriptedEndpoint, tmp_path: Path
) -> None:
    chinese, unclosed = seed("chinese"), seed("unclosed")
    chinese["response"] = chinese["response"].replace("We look", "我们看看")
    unclosed["response"] = unclosed["response"].replace("</think>", "")
    source = seed_file(tmp_path, chinese, unclosed, seed("one"))
    printed = done("select", source, "--out", tmp_path / "rows.jsonl", "--min-tokens", 50)
    assert "Chinese" in printed and "unclosed <think>" in printed and "1 written, 2 set aside" in printed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(server: ScriptedEndpoint, tmp_path: Path) -> None:
    (tmp_path / "out/full").mkdir(parents=True)
    (tmp_path / "out/full/train.jsonl.part").symlink_to("/dev/full")
    options = ("--out", tmp_path / "out", *SMALL, *at(server))
    message = refused("build", seed_file(tmp_path), *options)
    assert "cannot be written (No space left on device): free disk space" in message
    (tmp_path / "out/full/train.jsonl.part").unlink()
    asked = len(server.received)
    assert "3 accepted" in done("build", seed_file(tmp_path), *options) and len(server.received) == asked


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("build", "missing.jsonl", "--out", "out"), "there is no file missing.jsonl"),
        (("build", "{source}", "--out", "{source}/x", "--min-tokens", "1"), "cannot be written"),
        (("build", "{source}", "--out", "out", "--windows", "16,8"), "--windows must be positive sizes"),
        (("build", "{source}", "--out", "out", "--windows", "x"), "--windows must be a comma-separated list"),
        (("build", "{source}", "--out", "out", "--request", "[1]"), "--request must be a JSON object"),
        (("build", "{source}", "--out", "out", "--threshold", "11"), "--threshold must be from 0 to 10"),
        (("build", "{source}", "--out", "out", "--max-cost", "1"), "--max-cost needs prices"),
        (("build", "{source}", "--out", "out", "--min-block-tokens", "0"), "--min-block-tokens must be"),
        (("build", "{source}", "--out", "out", "--min-blocks", "3", "--max-blocks", "2"), "--max-blocks must be"),
        (("build", "{source}", "--out", "out", "--tokenizer", "nowhere/none"), "there is no tokenizer"),
        (("build", "{source}", "--out", "out", "--seal-check", "nowhere/none"), "there is no model"),
        (("select", "{source}", "--out", "{source}"), "would overwrite its own source"),
        (("split", "{source}", "--out", "out.jsonl"), "is no row of ghosttrace data"),
        (("check", "missing.parquet"), "there is no file missing.parquet"),
    ],
)
def test_bad_input_gives_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(seed_file(tmp_path))
    assert message in refused(*(part.replace("{source}", source) for part in command))


def test_the_next_step_names_the_file_that_says_why_there_are_no_rows() -> None:
    assert "default/train.parquet" in next_step("out", 1, 1)
    assert "rejected/train.jsonl" in next_step("out", 0, 1)
    assert "out/set_aside.jsonl" in next_step("out", 0, 0)
