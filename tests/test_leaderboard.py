"""The leaderboard: rows equal the runs' summaries, joining and ranking, bad folders, and equal bytes."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import ghosttrace
from helpers.leaderboards import copy_run, make_runs, record, write_audit_like

import ghosttrace as gt
from ghosttrace.errors import UserError
from ghosttrace.leaderboards.columns import SCHEMA
from ghosttrace.leaderboards.measurements import highest_finding

ENDS = ("", "_low", "_high")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def row(board: gt.Leaderboard, **values: Any) -> Any:
    """Return the only row with these values."""
    rows = [each for each in board.rows if all(each[name] == value for name, value in values.items())]
    assert len(rows) == 1
    return rows[0]


def names(row: Any) -> list[str]:
    return [run["name"] for run in row["runs"]]


def expected_numbers(folder: Path) -> dict[str, dict[str, Any]]:
    """Read by defence what a run measured, straight from its summary."""
    command, summary, found = record(folder, "run")["command"], record(folder, "summary"), {}
    for result in summary["results"]:
        if command == "ablate" and result["arm"] not in ("full", "placebo"):
            defence = {"memento": "none", "noise": "noise:0.3"}.get(result["arm"], result["arm"])
            found[defence] = {f"accuracy{end}": result[f"accuracy{end}"] for end in ENDS}
            found[defence] |= {name: result[name] for name in ("n_problems", "peak_kv_tokens", "auc_kv_bytes")}
            effects = {f"effect{end}": result[f"effect{end}"] for end in ENDS}
            found[defence] |= effects if defence != "none" else dict.fromkeys(effects)
        elif command == "bits" and result["by"] == "all" and result["arm"] != "placebo":
            found[result["arm"]] = {f"bits{end}": result[f"bits{end}"] for end in ENDS}
            found[result["arm"]] |= {"bits_per_trace": result["bits_per_trace"], "n_bits_traces": result["n_traces"]}
        elif command == "audit" and result["condition"] == "open" and result["gate"]:
            name = {"bits": "leak", "exposed share": "exposed"}[result["unit"]]
            values = found.setdefault(summary["defence"]["name"], {"verdict": summary["verdict"]})
            if name not in values or result["low"] > values[f"{name}_low"]:
                values |= {name: result["estimate"], f"{name}_low": result["low"], f"{name}_high": result["high"]}
                values |= {"leak_secret": result["secret"]} if name == "leak" else {}
    if command == "audit":
        defence = summary["defence"]
        costs = {f"utility{end}": defence[f"accuracy{end}"] for end in ENDS}
        costs |= {f"utility_effect{end}": defence[f"effect{end}"] for end in ENDS}
        costs |= {name: defence[name] for name in ("prefill_ratio", "latency_ratio", "kv_ratio")}
        found[defence["name"]] |= costs
    return found


def check_numbers(board: gt.Leaderboard, *folders: Path) -> None:
    """Check that each row with a run has its numbers, and that no number is without a run."""
    seen = 0
    for folder in folders:
        for defence, numbers in expected_numbers(folder).items():
            (found,) = [row for row in board.rows if folder.name in names(row) and row["defence"] == defence]
            assert {name: found[name] for name in numbers} == numbers
            seen += 1
    assert seen == sum(len(row["runs"]) for row in board.rows)


def test_rows_equal_the_summaries(runs: dict[str, Path], tmp_path: Path) -> None:
    audit = write_audit_like(runs["mixed"], tmp_path / "audit", "leak")
    sealed = write_audit_like(runs["mixed"], tmp_path / "sealed", "not detected", "restart")
    folders = (*runs.values(), audit, sealed)
    board = gt.leaderboard(folders)
    check_numbers(board, *folders)
    shown = {(each["model"], each["defence"]): names(each) for each in board.rows}
    assert shown == {
        ("toy-mixed", "none"): ["mixed", "audit"],
        ("toy-mixed", "restart"): ["mixed", "bits", "sealed"],
        ("toy-mixed", "swap"): ["mixed"],
        ("toy-open", "none"): ["open"],
        ("toy-open", "restart"): ["open"],
        ("toy-open", "noise:0.3"): ["open"],
    }
    assert all(each["valid"] and each["law"] == "memento (delimiters erased)" for each in board.rows)
    hashes = record(runs["open"], "run")["sha256"]
    found = row(board, model="toy-open", defence="restart")
    assert (found["model_sha256"], found["tokenizer_sha256"]) == (hashes["model"], hashes["tokenizer"])
    assert "torch 2" in found["runs"][0]["versions"]


@pytest.mark.slow
def test_real_audit_is_joined(runs: dict[str, Path], tmp_path: Path) -> None:
    more: dict[str, Any] = {"samples": 300, "layers": [3], "hops": [0], "kv": ["v"], "mlp": False}
    more |= {"attacks": ["attribute"], "utility_limit": 2, "out": tmp_path / "audit"}
    gt.audit("toy-mixed", bench="ledger-h1", **more)
    board = gt.leaderboard([tmp_path / "audit", *runs.values()])
    check_numbers(board, tmp_path / "audit", *runs.values())
    found = row(board, model="toy-mixed", defence="none")
    assert names(found) == ["mixed", "audit"] and found["verdict"] == "leak" and found["leak"] > 3
    assert found["runs"][1]["command"].startswith("ghosttrace.audit('toy-mixed', bench='ledger-h1', samples=300")


def test_ranks_count_better_rows_measured_alike(runs: dict[str, Path], tmp_path: Path) -> None:
    """Compared with a count of all pairs; other problems, other benchmarks and invalid runs take no part."""
    results = record(runs["open"], "summary")["results"]
    benches = record(runs["open"], "run")["benches"]
    other = [{**result, "bench": "ledger-h2"} for result in results]
    hard = copy_run(runs["open"], tmp_path / "hard", {"results": other}, benches={"ledger-h2": benches["ledger-h1"]})
    fewer = {"ledger-h1": benches["ledger-h1"] | {"sha256": "0" * 64}}
    weights = {"model": "1" * 64, "tokenizer": "2" * 64}
    small = copy_run(runs["open"], tmp_path / "small", benches=fewer, sha256=weights)
    broken = copy_run(
        runs["mixed"], tmp_path / "broken", {"valid": False, "failures": ["a <b>control</b> failed"]}, sha256=weights
    )
    folders = (runs["mixed"], runs["open"], hard, small, broken)
    board = gt.leaderboard(folders)
    groups = {"mixed": "same", "open": "same", "hard": "hard", "small": "small", "broken": None}
    for one in board.rows:
        group = groups[names(one)[0]]
        alike = [each for each in board.rows if groups[names(each)[0]] == group]
        better = sum(each["accuracy_low"] > one["accuracy_high"] for each in alike)
        ranks = (None, None) if group is None else (1 + better, len(alike))
        assert (one["accuracy_rank"], one["accuracy_ranked"]) == ranks
    assert row(board, model="toy-open", defence="restart", model_sha256="1" * 64)["accuracy_rank"] == 2
    assert {each["accuracy_ranked"] for each in board.rows} == {3, 6, None}


def test_leaks_are_ranked_among_audits_with_the_same_settings(runs: dict[str, Path], tmp_path: Path) -> None:
    audits = [write_audit_like(runs["mixed"], tmp_path / "leak", "leak")]
    audits.append(write_audit_like(runs["mixed"], tmp_path / "sealed", "not detected", "restart"))
    audits.append(write_audit_like(runs["open"], tmp_path / "open", "not enough data"))
    audits.append(write_audit_like(runs["open"], tmp_path / "few", "leak", "restart", sha256="0" * 64))
    board = gt.leaderboard(audits)
    ranks = {names(each)[0]: (each["leak_rank"], each["leak_ranked"]) for each in board.rows}
    assert ranks == {"leak": (3, 3), "sealed": (1, 3), "open": (1, 3), "few": (1, 1)}
    assert row(board, defence="none", model="toy-open")["verdict"] == "not enough data"


def test_leak_is_the_gated_finding_with_the_highest_low_end() -> None:
    def finding(low: float | None, estimate: float, **more: Any) -> dict[str, Any]:
        return {"condition": "open", "gate": True, "unit": "bits", "low": low, "estimate": estimate} | more

    rows = [finding(None, 9.0), finding(0.1, 2.0), finding(0.5, 1.0), finding(0.5, 0.9)]
    rows += [finding(3.0, 4.0, gate=False), finding(3.0, 4.0, condition="unerased"), finding(1.0, 1.0, unit="rate")]
    assert highest_finding(rows, "bits") is rows[2] and highest_finding(rows[:1], "bits") is rows[0]
    assert highest_finding(rows, "exposed share") is None


def test_invalid_run_is_shown_and_joined_with_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    failed = {"valid": False, "failures": ["first", "second"]}
    broken = copy_run(runs["mixed"], tmp_path / "broken", failed)
    board = gt.leaderboard([broken, runs["bits"], write_audit_like(runs["mixed"], tmp_path / "audit", "invalid")])
    invalid = [each for each in board.rows if not each["valid"]]
    assert names(board.rows[0]) == ["bits"] and board.rows[0]["valid"]
    assert sorted(names(each) for each in invalid) == [["audit"], ["broken"], ["broken"], ["broken"]]
    assert {each["failures"] for each in invalid if names(each) == ["broken"]} == {"first; second"}
    assert all(each["accuracy_rank"] is None and each["leak_rank"] is None for each in board.rows)
    assert "Do not rely on broken, because a control failed: first; second." in board.findings
    page = board.page()
    assert page.count("<strong>INVALID</strong>, not ranked: first; second") == 3 and "100.0" not in page


def test_repeated_run_confirms_a_row_and_another_result_has_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    again = copy_run(runs["mixed"], tmp_path / "again", model="elsewhere/toy-mixed")
    board = gt.leaderboard([runs["mixed"], runs["bits"], again])
    assert [names(each) for each in board.rows] == [["again", "mixed"], ["again", "mixed", "bits"], ["again", "mixed"]]
    assert {each["model"] for each in board.rows} == {"elsewhere/toy-mixed, toy-mixed"}
    results = [dict(each) for each in record(runs["mixed"], "summary")["results"]]
    next(each for each in results if each["arm"] == "restart")["accuracy"] = 0.25
    other = copy_run(runs["mixed"], tmp_path / "other", {"results": results})
    board = gt.leaderboard([runs["mixed"], runs["bits"], other])
    alone = sorted(names(each) for each in board.rows if each["defence"] == "restart")
    assert alone == [["bits"], ["mixed"], ["other"]]
    assert names(row(board, defence="swap")) == ["mixed", "other"]


def test_laws_and_parts_of_the_cache_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    policy = record(runs["mixed"], "run")["policy"] | {"keep_last_n_blocks": 1}
    kept = copy_run(runs["mixed"], tmp_path / "kept", policy=policy)
    windowed = copy_run(runs["mixed"], tmp_path / "window", law={"spec": "window:64,16", "chat": {}})
    gt.ablate("toy-mixed", "ledger-h1", "restart", limit=2, part=gt.Part((1,), kv=("v",)), out=tmp_path / "part")
    board = gt.leaderboard([runs["bits"], kept, windowed, tmp_path / "part"])
    laws = {"memento (delimiters erased)", "memento (delimiters erased, keep_last_n_blocks 1)", "window:64,16"}
    assert {each["law"] for each in board.rows} == laws
    assert names(row(board, defence="restart (layers 1; kv v)")) == ["part"]
    assert all(len(each["runs"]) == 1 for each in board.rows)


def test_same_folders_give_the_same_bytes_in_any_order(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [*runs.values(), write_audit_like(runs["mixed"], tmp_path / "audit", "leak")]
    written = set()
    for number, order in enumerate(permutations(folders)):
        out = tmp_path / f"board-{number % 2}"  # each folder is written to again and again
        board = gt.leaderboard(order, out=out)
        assert sorted(path.name for path in out.iterdir()) == ["leaderboard.html", "leaderboard.parquet"]
        written.add(((out / "leaderboard.html").read_bytes(), (out / "leaderboard.parquet").read_bytes()))
    assert len(written) == 1
    assert board.folder == out and board == gt.leaderboard(folders)
    assert str(tmp_path) not in (out / "leaderboard.html").read_text()
    stored = pd.read_parquet(out / "leaderboard.parquet")
    pd.testing.assert_frame_equal(stored, board.table)
    assert list(stored) == SCHEMA.names and len(stored) == len(board.rows)


def test_command_prints_the_rows(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [str(folder) for folder in runs.values()]
    done = ghosttrace("leaderboard", *folders, "--out", str(tmp_path / "board"))
    assert done.returncode == 0 and "3 runs, 2 models, 1 benchmark: 6 rows." in done.stdout
    assert "noise:0.3" in done.stdout and f"Written to {tmp_path}/board/leaderboard.html" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    printed = ghosttrace("leaderboard", *folders, "--out", str(tmp_path / "board"), "--format", "json").stdout
    assert json.loads(printed)["results"] == [dict(each) for each in gt.leaderboard(folders).rows]


def test_bad_folders_get_one_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = copy_run(runs["bits"], tmp_path / "unfinished")
    (unfinished / "samples.jsonl").touch()
    patched = copy_run(runs["bits"], tmp_path / "patched", {"site_sets": [], "results": []}, command="patch")
    trained = copy_run(runs["bits"], tmp_path / "trained", {"steps": 2}, command="sft")
    other = copy_run(runs["bits"], tmp_path / "other", command="data build")
    controls = [each for each in record(runs["bits"], "summary")["results"] if each["arm"] == "placebo"]
    empty = copy_run(runs["bits"], tmp_path / "empty", {"results": controls})
    old = copy_run(runs["mixed"], tmp_path / "old", arms={name: {"control": False} for name in ("memento", "restart")})
    board = tmp_path / "board"
    gt.leaderboard([runs["bits"]], out=board)
    refused = {
        tmp_path / "nothing": "nothing is not a run: give a folder that a ghosttrace command wrote",
        unfinished: "is unfinished: continue with ghosttrace bits --resume",
        patched: "is a run of patch, which a leaderboard does not show: give runs of ablate, bits or audit",
        trained: "is a run of sft, which a leaderboard does not show: give runs of ablate, bits or audit",
        other: "is a run of 'data build', which has no result",
        empty: "measured control arms alone: leave it out",
        old: "is not what this version writes",
        board: "is a leaderboard and no run: leave it out",
        runs["bits"].parent: "holds runs and is none itself: give ",
        runs["bits"] / ".." / "bits": "is given twice: give each run once",
    }
    for folder, message in refused.items():
        done = ghosttrace("leaderboard", str(runs["bits"]), str(folder), "--out", str(tmp_path / "out"))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no run given"):
        gt.leaderboard([])


def test_bad_output_folders_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, message in ((runs["mixed"], "holds other files"), (tmp_path / "file", "is not a folder")):
        with pytest.raises(UserError, match=message):
            gt.leaderboard(runs["bits"], out=out)
    board = gt.leaderboard(str(runs["bits"]))
    with pytest.raises(UserError, match="was kept in memory: give report a path"):
        board.report()
    assert board.report(tmp_path / "page.html").read_text() == board.page()
    assert repr(board) == "<Leaderboard: 1 rows>" and "<table" in board._repr_html_()
