"""Interrupted runs: resumed, they end with the same files."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import QUICK_ABLATION as OPTIONS
from helpers.commands import command, resume

from ghosttrace.ablation.backend import HuggingFaceBackend, write_samples
from ghosttrace.ablation.run import ablate, run_ablation
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.model.checkpoint import load, resolve_pretrained_path
from ghosttrace.model.generate import generate
from ghosttrace.runs.folder import is_finished, lock_folder
from ghosttrace.runs.record_log import RecordLog
from ghosttrace.runs.records import Records

SETTINGS = AblationSettings(
    arms=("restart", "swap"), limit=4, repetitions=2, batch_size=5, sampling={"temperature": 1.0, "max_new_tokens": 110}
)
KILLS = 20


def work(out: str | None, resume: str | None) -> None:
    """Run or resume a small ablation, as the work of one process."""
    import torch

    torch.set_num_threads(1)
    run_ablation(load("toy-mixed"), load_bench("ledger-h1", SETTINGS.limit), SETTINGS, out=out, resume=resume)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("samples.parquet", "summary.json")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., Any]]:
    """Return the folder of an uninterrupted run, and a function that starts such a run in a process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ghosttrace.ablation.run"])
    folder = tmp_path_factory.mktemp("runs") / "left-alone"
    child = context.Process(target=work, args=(str(folder), None))
    child.start()
    child.join()
    assert child.exitcode == 0
    return folder, context.Process


def kill_after(child: Any, log: Path, records: int, seconds: float) -> None:
    """Send SIGKILL `seconds` after `records` samples are recorded."""
    while child.is_alive() and not (records == 0 or (log.exists() and log.read_bytes().count(b"\n") >= records)):
        time.sleep(0.002)
    child.join(timeout=seconds)
    child.kill()
    child.join()


@pytest.mark.long
@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_run(
    undisturbed: tuple[Path, Callable[..., Any]], tmp_path: Path
) -> None:
    """After SIGKILL at 20 random moments and resuming, samples and summary are bytewise equal."""
    reference, process = undisturbed
    total, draw, unfinished = len(pd.read_parquet(reference / "samples.parquet")), random.Random(0), 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        child = process(target=work, args=(str(folder), None))
        child.start()
        kill_after(child, folder / "samples.jsonl", draw.randrange(total + 1), draw.uniform(0, 0.2))
        unfinished += not is_finished(folder)
        begun = (folder / "run.json").exists()
        if not is_finished(folder):
            child = process(target=work, args=(None, str(folder)) if begun else (str(folder), None))
            child.start()
            child.join()
            assert child.exitcode == 0
        assert contents(folder) == contents(reference), kill
        assert not (folder / "samples.jsonl").exists()
    assert unfinished >= KILLS // 2  # otherwise the kills came too late to test anything


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert command("ablate", *OPTIONS, "--out", str(folder)) == 0
    return folder


@pytest.fixture
def half_done(finished_run: Path, tmp_path: Path) -> Path:
    """Return the folder of an interrupted run: some records, the last one incomplete."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    frame = pd.read_parquet(folder / "samples.parquet").head(7)
    rows = json.loads(frame.to_json(orient="records"))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text[:-40])
    (folder / "samples.parquet").rename(tmp_path / "expected.parquet")
    return folder


def test_incomplete_last_record_is_dropped_with_a_warning(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("ablate", "--resume", str(half_done)) == 0
    assert "samples.jsonl, byte" in capsys.readouterr().err
    expected = pd.read_parquet(half_done.parent / "expected.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(half_done / "samples.parquet"), expected)


def test_samples_of_an_interrupted_run_are_all_kept(tmp_path: Path) -> None:
    """What a run itself has recorded is read back, so that nothing is computed twice."""
    log = RecordLog(tmp_path / "samples.jsonl", SAMPLE_TABLE)
    from ghosttrace.ablation.collect import collect
    from ghosttrace.ablation.run import plan_bench_arms

    settings = AblationSettings(arms=("memento",), limit=2, sampling={"max_new_tokens": 8})
    collect(plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", 2), settings), log, 2, write_samples)
    log.close()
    again = RecordLog(tmp_path / "samples.jsonl", SAMPLE_TABLE)
    assert again.keys() == log.keys() and len(again) == 2
    again.close()


def test_damaged_record_is_dropped_alone(half_done: Path) -> None:
    path = half_done / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00" * 40 + b"\n", *lines[2:]]))
    with pytest.warns(RunWarning) as dropped:
        log = RecordLog(path, SAMPLE_TABLE)
    assert len(log) == 5
    assert len(dropped) == 2
    log.close()
    assert command("ablate", "--resume", str(half_done)) == 0
    expected = pd.read_parquet(half_done.parent / "expected.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(half_done / "samples.parquet"), expected)


CHANGES = {
    "bench": (("--bench", "ledger-h2"), "options.bench is 'ledger-h2' now and 'ledger-h1' in the run"),
    "seed": (("--seed", "3"), "3 now and 0 in the run"),
    "policy": (("--keep-last-n-blocks", "1"), "keep_last_n_blocks is 1 now and None in the run"),
    "model": (("--model", "toy-open"), "model is 'toy-open' now and 'toy-mixed' in the run"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_configuration_is_refused(change: str, half_done: Path) -> None:
    options, message = CHANGES[change]
    with pytest.raises(UserError, match="cannot be resumed") as refused:
        resume(half_done, *options)
    assert message in str(refused.value)


def test_changed_weights_or_policy_under_the_same_name_are_refused(tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "run"
    shutil.copytree(resolve_pretrained_path("toy-mixed"), model)
    assert command("ablate", *OPTIONS, "--model", str(model), "--out", str(folder)) == 0
    (folder / "samples.parquet").unlink()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"keep_last_n_blocks": 0', '"keep_last_n_blocks": 1'))
    with pytest.raises(UserError, match=r"policy\.keep_last_n_blocks is 1 now and 0 in the run"):
        resume(folder)
    (model / "config.json").write_text(config)
    shutil.copy(Path(resolve_pretrained_path("toy-open")) / "model.safetensors", model)
    with pytest.raises(UserError, match=r"sha256\.model is"):
        resume(folder)


def test_changed_problems_under_the_same_name_are_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.jsonl", tmp_path / "run"
    file.write_text(json.dumps({"id": "a", "problem": "x042", "answer": "1"}) + "\n")
    options = ("--bench", str(file), "--repetitions", "1", "--max-new-tokens", "4", "--arms", "restart")
    assert command("ablate", *options, "--out", str(folder)) == 0
    (folder / "samples.parquet").unlink()
    file.write_text(json.dumps({"id": "a", "problem": "x043", "answer": "1"}) + "\n")
    with pytest.raises(UserError, match=r"benches\.mine\.(origin|sha256) is"):
        resume(folder)


def test_smaller_batch_size_is_allowed_with_a_note(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("ablate", "--resume", str(half_done), "--batch-size", "2") == 0
    assert "settings.batch_size is 2 now and 3 in the run: results agree up to rounding" in capsys.readouterr().err
    expected = pd.read_parquet(half_done.parent / "expected.parquet")
    assert pd.read_parquet(half_done / "samples.parquet")["response"].tolist() == expected["response"].tolist()


def test_resumed_run_keeps_its_batch_size(half_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the batch size depends on free memory, which may differ when the run is resumed."""
    config = json.loads((half_done / "run.json").read_text())
    config["options"]["batch_size"] = None
    (half_done / "run.json").write_text(json.dumps(config))
    monkeypatch.setattr(
        "ghosttrace.ablation.run.largest_batch_size", lambda _: pytest.fail("batch size computed again")
    )
    resume(half_done)
    assert json.loads((half_done / "run.json").read_text())["settings"]["batch_size"] == 3


def test_interrupted_batch_is_decoded_completely(half_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the remaining rows would be decoded in another batch, with other rounding."""
    sizes: list[int] = []

    def counting(model: Any, requests: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(requests))
        return generate(model, requests, *rest, **more)

    monkeypatch.setattr("ghosttrace.ablation.backend.generate", counting)
    resume(half_done)  # two arms of four samples in one group each; six are recorded
    assert sizes == [4]


def test_run_from_before_groups_is_resumed_batch_by_batch(half_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run.json without `batches_per_group` was written when every batch was decoded by itself."""
    config = json.loads((half_done / "run.json").read_text())
    assert config["settings"].pop("batches_per_group") == HuggingFaceBackend.batches_per_group
    (half_done / "run.json").write_text(json.dumps(config))
    sizes: list[int] = []

    def counting(model: Any, requests: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(requests))
        return generate(model, requests, *rest, **more)

    monkeypatch.setattr("ghosttrace.ablation.backend.generate", counting)
    resume(half_done)  # eight samples in batches of 3 and 1; six are recorded
    assert sizes == [3, 1]
    assert "batches_per_group" not in json.loads((half_done / "run.json").read_text())["settings"]


def test_a_second_process_is_refused(half_done: Path) -> None:
    with lock_folder(half_done), pytest.raises(UserError, match="another process is using"):
        resume(half_done)
    assert command("ablate", "--resume", str(half_done)) == 0


def test_finished_run_cannot_be_resumed(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("ablate", "--resume", str(half_done)) == 0
    capsys.readouterr()
    assert command("ablate", "--resume", str(half_done)) == 0
    assert "is finished" in capsys.readouterr().err


def test_a_configuration_without_settings_is_refused(half_done: Path) -> None:
    config = json.loads((half_done / "run.json").read_text())
    del config["settings"], config["options"]["noise"]  # the latter is replaced by its default
    (half_done / "run.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cannot be resumed: options\.noise is 0\.5 now and None in the run"):
        resume(half_done)


def test_folder_that_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"command": "probe"}))
    with pytest.raises(UserError, match="is a run of ghosttrace probe"):
        resume(tmp_path)
    with pytest.raises(UserError, match="leave out --out"):
        resume(tmp_path, "--out", str(tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_gives_one_sentence_and_the_run_can_be_resumed(
    half_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to the log fails as on a full disk; resumed with free space, the run finishes."""
    begin = RecordLog.__init__

    def begin_on_a_full_disk(self: RecordLog, *args: Any) -> None:
        begin(self, *args)
        os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())

    with monkeypatch.context() as patch:
        patch.setattr(RecordLog, "__init__", begin_on_a_full_disk)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): .*--resume"):
            resume(half_done)
    resume(half_done)
    expected = (half_done.parent / "expected.parquet").read_bytes()
    assert (half_done / "samples.parquet").read_bytes() == expected


@pytest.mark.slow
def test_refused_run_leaves_no_folder_and_started_run_keeps_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, benches, taken = load("toy-mixed"), load_bench("ledger-h1", 4), []

    def fail_after(count: int) -> None:
        keep = RecordLog._keep

        def counting(self: RecordLog, key: Any, row: dict[str, Any]) -> None:
            if len(taken) == count:
                raise UserError("out of memory")
            taken.append(key)
            keep(self, key, row)

        monkeypatch.setattr(RecordLog, "_keep", counting)

    with monkeypatch.context() as patch:
        fail_after(0)
        with pytest.raises(UserError, match=r"^out of memory$"):
            run_ablation(checkpoint, benches, SETTINGS, out=tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        patch.undo()
    monkeypatch.undo()
    with monkeypatch.context():
        fail_after(3)
        with pytest.raises(UserError, match=r"out of memory; finished samples are kept: continue with --resume"):
            run_ablation(checkpoint, benches, SETTINGS, out=tmp_path / "begun")
    monkeypatch.undo()
    run_ablation(checkpoint, benches, SETTINGS, resume=tmp_path / "begun")
    assert is_finished(tmp_path / "begun")


def test_sample_is_recorded_as_soon_as_it_is_finished(tmp_path: Path) -> None:
    """Rows of one batch are recorded at different steps, not at its end."""
    log = RecordLog(tmp_path / "samples.jsonl", SAMPLE_TABLE)
    sizes, keep = [], RecordLog._keep

    class Watching(RecordLog):
        def _keep(self, key: Any, row: dict[str, Any]) -> None:
            keep(self, key, row)
            sizes.append((self.path.stat().st_size, row["response_tokens"]))

    log.__class__ = Watching
    from ghosttrace.ablation.collect import collect
    from ghosttrace.ablation.run import plan_bench_arms

    settings = AblationSettings(arms=("memento",), limit=8, sampling={"temperature": 3.0, "max_new_tokens": 110})
    collect(plan_bench_arms(load("toy-mixed"), load_bench("ledger-h1", 8), settings), log, 8, write_samples)
    assert len({size for size, _ in sizes}) == 8
    assert [length for _, length in sizes] == sorted(length for _, length in sizes)


def test_differences_are_recorded_in_the_summary(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((half_done / "summary.json").read_text())["changed_on_resume"] == []
    path = half_done / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[4])
    lines[4] = json.dumps(row | {"response": "otherwise"}) + "\n"
    path.write_text("".join(lines))
    resume(half_done)
    changed = json.loads((half_done / "summary.json").read_text())["changed_on_resume"]
    assert changed == [["ledger-h1", "restart", row["problem"], 0]]
    assert "1 sample(s) differ" in capsys.readouterr().err


def test_differences_on_repetition_are_noted() -> None:
    records = Records(SAMPLE_TABLE)
    row = {"bench": "b", "arm": "a", "problem": "p", "repetition": 0, "response_ids": [1]}
    records.add(row)
    records.add(dict(row))
    assert not records.changed_on_resume
    records.add(row | {"response_ids": [2]})
    assert records.changed_on_resume == [("b", "a", "p", 0)]
    assert records.get(("b", "a", "p", 0)) == row


@pytest.mark.slow
def test_in_memory_and_in_a_folder_the_samples_are_the_same(tmp_path: Path) -> None:
    run_ablation(load("toy-mixed"), load_bench("ledger-h1", SETTINGS.limit), SETTINGS, out=tmp_path / "run")
    memory = ablate("toy-mixed", "ledger-h1", **vars(SETTINGS)).samples
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "samples.parquet"), memory)
