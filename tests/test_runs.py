"""Run folders and records: new and resumed runs, permitted changes, damage, and disk writes."""

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import QUICK_ABLATION as OPTIONS
from helpers.commands import command, resume
from rich.console import Console

from ghosttrace.ablation.backend import HuggingFaceBackend
from ghosttrace.ablation.run import configuration, plan_bench_arms
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.cli.progress import show_progress
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.model.checkpoint import load
from ghosttrace.runs.folder import check_resumable, is_finished, lock_folder, new_run_folder
from ghosttrace.runs.record_log import RecordLog


def test_changed_versions_are_allowed_with_a_note() -> None:
    recorded = {"versions": {"torch": "1"}, "policy": {"a": 1}}
    assert check_resumable(recorded, {"versions": {"torch": "2"}, "policy": {"a": 1}}, Path("run")) == [
        "versions.torch is '2' now and '1' in the run: results may differ"
    ]
    (note,) = check_resumable({}, {"versions": {"sympy": "1"}}, Path("run"))
    assert note.endswith("results may differ")


SOFT = {"device", *(f"{a}.{b}" for a in ("options", "settings") for b in ("batch_size", "batch_tokens"))}


SOFT |= {"options.device"}


def leaves(value: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every leaf of a JSON object."""
    if not isinstance(value, dict) or not value:
        yield path
        return
    for key, part in value.items():
        yield from leaves(part, *path, key)


def changed(value: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the object with another value at a path."""
    key, *rest = path
    return {**value, key: changed(value[key], tuple(rest)) if rest else "another"}


CONFIGURATION = "command model options sha256 policy arms markup delimiters benches settings versions device dtype"


def test_other_recorded_values_must_not_change() -> None:
    settings = AblationSettings(arms=("restart",), limit=2, batch_size=3)
    bench_arms = plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", 2), settings)
    given = {"seed": 0, "batch_size": 3, "batch_tokens": 9, "device": "cpu", "arms": "restart"}
    config = json.loads(json.dumps(configuration(bench_arms, settings, HuggingFaceBackend(), given)))
    assert set(config) == set(CONFIGURATION.split())
    names = "origin sha256 problems ceiling condition template prompt_sha256 sampling repetitions"
    assert set(config["benches"]["ledger-h1"]) == set(names.split())
    assert list(config["arms"]) == ["memento", "restart"]
    assert {"math-verify", "sympy", "tokenizers", "datasets", "scikit-learn"} <= config["versions"].keys()
    recorded = [path for path in leaves(config) if path[0] != "versions"]
    assert len(recorded) > 50
    for path in recorded:
        if ".".join(path) in SOFT:
            assert "up to rounding" in check_resumable(config, changed(config, path), Path("run"))[0]
        else:
            with pytest.raises(UserError, match="cannot be resumed"):
                check_resumable(config, changed(config, path), Path("run"))


@pytest.mark.parametrize("name", ["versions.jsonl", "device.jsonl", "batch_size"])
def test_benchmark_named_like_a_changeable_key_must_not_change(name: str) -> None:
    recorded = {"benches": {name: {"sha256": "a", "device": "x"}}}
    for key in ("sha256", "device"):
        with pytest.raises(UserError, match="cannot be resumed"):
            check_resumable(recorded, changed(recorded, ("benches", name, key)), Path("run"))


def test_folder_without_run_json_counts_as_new(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "run.part").write_text('{"command": ')
    assert command("ablate", *OPTIONS, "--out", str(folder)) == 0
    assert is_finished(folder) and not (folder / "run.part").exists()
    other = tmp_path / "other"
    (other / "figures").mkdir(parents=True)
    (other / "figures" / "mine.png").touch()
    with pytest.raises(UserError, match="holds other files"), new_run_folder(other):
        pass
    assert (other / "figures" / "mine.png").exists()


def test_second_run_in_one_folder_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with new_run_folder(out):
        with (
            pytest.raises(UserError, match="another process is using"),
            new_run_folder(out),
        ):
            pytest.fail("two runs started in one folder")
        assert (out / "figures").is_dir()
        (out / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds another run"), new_run_folder(out):
        pass


def test_run_finished_while_waiting_for_the_lock_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is checked again after the lock is acquired."""
    out, made = tmp_path / "run", Path.mkdir

    def slow(self: Path, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        (out / "run.json").write_text("{}")  # the other process, in the meantime

    monkeypatch.setattr(Path, "mkdir", slow)
    with pytest.raises(UserError, match="holds another run"), new_run_folder(out):
        pytest.fail("the finished run was overwritten")
    assert (out / "run.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\xff"])
def test_damaged_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"run\.json is (missing or damaged|not what .* writes): restore"):
        resume(tmp_path)


ERRORS = {errno.ENOSPC: True, errno.EDQUOT: True, errno.EROFS: True, errno.EACCES: True, errno.EIO: False}


@pytest.mark.parametrize("number", ERRORS)
def test_only_space_and_permission_errors_are_translated(number: int, tmp_path: Path) -> None:
    with pytest.raises(UserError if ERRORS[number] else OSError) as raised, lock_folder(tmp_path):
        raise OSError(number, os.strerror(number))
    assert ("free disk space or change the permissions" in str(raised.value)) == ERRORS[number]


def test_paths_are_printed_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would interpret brackets as markup."""
    folder = tmp_path / "[red]" / "x[" / "]"
    assert command("ablate", *OPTIONS, "--out", str(folder)) == 0
    assert f"Written to {folder}" in capsys.readouterr().out
    assert command("ablate", "--resume", str(folder)) == 0
    assert f"{folder} is finished" in capsys.readouterr().err
    with show_progress(Console(), "ablate", folder):
        warnings.warn("[red]x[/y]", RunWarning, stacklevel=1)
    assert "[red]x[/y]\n" in capsys.readouterr().out


def row(number: int) -> dict[str, Any]:
    """Return a row of samples.jsonl."""
    empty = dict.fromkeys(SAMPLE_TABLE.schema.names)
    return empty | {"bench": "b", "arm": "restart", "problem": "p", "repetition": number, "response_ids": [1]}


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Return the path of a log with three samples."""
    path = tmp_path / "run" / "samples.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(3)))
    return path


def test_log_is_removed_only_after_samples_are_synced(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced and renamed, then the folder is synced, and then the log is removed."""
    done: list[str] = []
    sync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def syncing(number: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{number}').readlink().name}")
        sync(number)

    def replacing(self: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return replace(self, target)

    def unlinking(self: Path, missing_ok: bool = False) -> None:
        done.append(f"remove {self.name}")
        unlink(self, missing_ok)

    log = RecordLog(log_path, SAMPLE_TABLE)
    keys = [log.key_of(row(number)) for number in (2, 0, 1)]
    for owner, name, other in ((os, "fsync", syncing), (Path, "replace", replacing), (Path, "unlink", unlinking)):
        monkeypatch.setattr(owner, name, other)
    log.finish(keys, log_path.with_suffix(".parquet"))
    assert done == ["sync samples.part", "name samples.parquet", "sync run", "remove samples.jsonl"]


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list for a key": lambda row: row | {"problem": [1]},
    "a field is missing": lambda row: {name: value for name, value in row.items() if name != "finish"},
    "a field too many": lambda row: row | {"more": 1},
    "a word for a number": lambda row: row | {"blocks": "two"},
    "no object": lambda row: [row],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_invalid_line_is_dropped(damage: str, log_path: Path) -> None:
    lines = log_path.read_text().splitlines(keepends=True)
    log_path.write_text("".join([lines[0], json.dumps(DAMAGE[damage](row(1))) + "\n", lines[2]]))
    with pytest.warns(RunWarning, match="dropped a damaged record") as warned:
        log = RecordLog(log_path, SAMPLE_TABLE)
    assert len(log) == 2 and len(warned) == 1
    log.close()


def test_deeply_nested_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.warns(RunWarning, match="dropped a damaged record"):
        assert len(RecordLog(path, SAMPLE_TABLE)) == 0
