"""Measurements on a Ray cluster of two nodes: the results of one process, whatever dies on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.commands import ghosttrace as run_command
from helpers.ray_cluster import two_nodes, worker_processes

import ghosttrace as gt
from ghosttrace.cluster.connect import Machine
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load
from ghosttrace.model.pool import place_workers
from ghosttrace.model.pool_worker import CheckpointSource, pickle_without_model, unpickle_with_model
from ghosttrace.runs.result import RunResult

ray = pytest.importorskip("ray", reason="ray is not installed")

ABLATION: dict[str, Any] = {"arms": "restart,swap,placebo", "limit": 12, "batch_size": 5, "repetitions": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, as each worker does: sums depend on the number in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def ablation() -> RunResult:
    return gt.ablate("toy-mixed", "ledger-h1", sampling={"temperature": 1.0}, **ABLATION)


def assert_same(actual: RunResult, expected: RunResult) -> None:
    """Check that two runs have the same samples and the same results, bit for bit."""
    pd.testing.assert_frame_equal(actual.samples, expected.samples, check_exact=True)
    pd.testing.assert_frame_equal(actual.results, expected.results, check_exact=True)
    timed = {"defence"}  # which includes the seconds that a defence takes
    assert {**actual.summary, **dict.fromkeys(timed)} == {**expected.summary, **dict.fromkeys(timed)}


@pytest.mark.slow
def test_an_ablation_gives_the_samples_of_one_process(address: str, ablation: RunResult) -> None:
    actual = gt.ablate("toy-mixed", "ledger-h1", sampling={"temperature": 1.0}, ray=address, **ABLATION)
    assert_same(actual, ablation)
    assert actual.configuration == ablation.configuration, "where a run is computed is no part of it"
    assert not worker_processes("ModelWorker"), "the workers end with the run"


@pytest.mark.long
def test_bits_are_those_of_one_process(address: str) -> None:
    options: dict[str, Any] = {"bench": "ledger-h1", "limit": 20, "batch_tokens": 256}
    assert_same(gt.bits("toy-mixed", ray=address, **options), gt.bits("toy-mixed", **options))


@pytest.mark.slow
def test_a_probe_finds_what_one_process_finds(address: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 700, "hops": (0,), "layers": (1,), "kv": ("v",), "targets": ["note-0"]}
    expected = gt.probe("toy-open", "ledger-h1", **options)
    assert_same(gt.probe("toy-open", "ledger-h1", ray=address, out=tmp_path / "run", **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("defence", ["none", pytest.param("noise:0.5", marks=pytest.mark.long)])
def test_an_audit_finds_what_one_process_finds(address: str, defence: str) -> None:
    options: dict[str, Any] = {"samples": 600, "hops": (0,), "layers": (2,), "mlp": False, "utility_limit": 2}
    options |= {"attacks": "attribute", "defence": defence, "targets": ["note-0"]}
    expected = gt.audit("toy-open", "ledger-h1", **options)
    assert_same(gt.audit("toy-open", "ledger-h1", ray=address, **options), expected)


@pytest.mark.slow
def test_a_killed_worker_costs_the_batches_that_it_was_given(address: str, ablation: RunResult) -> None:
    killed = list[int]()

    def kill_one(step: str, done: int, total: int) -> None:
        if not killed:
            (process, *_) = worker_processes("ModelWorker")
            killed.append(process.pid)
            process.kill()

    actual = gt.ablate(
        "toy-mixed", "ledger-h1", sampling={"temperature": 1.0}, ray=address, progress=kill_one, **ABLATION
    )
    assert killed
    assert_same(actual, ablation)


@pytest.mark.slow
def test_a_killed_command_goes_on_with_or_without_the_cluster(
    address: str, ablation: RunResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ("--arms", "restart,swap,placebo", "--limit", "12", "--batch-size", "5", "--repetitions", "2")
    options += ("--temperature", "1.0", "--bench", "ledger-h1", "--model", "toy-mixed")
    command = [sys.executable, "-m", "ghosttrace", "ablate", *options, "--ray", address, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    wait_for(lambda: recorded(out) >= 5 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = recorded(out)
    assert 5 <= kept < len(ablation.samples)
    wait_for(lambda: not worker_processes("ModelWorker"))
    result = run_command("ablate", "--resume", str(out))
    assert result.returncode in (0, 12), result.stderr
    resumed = gt.open_run(out)
    pd.testing.assert_frame_equal(resumed.samples, ablation.samples, check_exact=True)
    assert resumed.summary["changed_on_resume"] == []


def recorded(folder: Path) -> int:
    """Return the number of samples on record."""
    path = folder / "samples.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", pytest.param("gone", marks=pytest.mark.long)])
def test_a_model_that_workers_cannot_see(address: str, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    checkpoint = load("toy-open", device="cpu")
    checkpoint.model.config.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    checkpoint.model.save_pretrained(folder)
    loaded = load(folder, device="cpu")
    if change == "gone":
        folder.rename(tmp_path / "elsewhere")
        message = f"on the machine .* there is no tokenizer in '{folder}'.*; every machine must see the model"
    else:
        checkpoint.model.get_input_embeddings().weight.mul_(2)
        checkpoint.model.save_pretrained(folder)
        message = f"on the machine .* {folder} differs in model from the checkpoint of the process that started the run"
    with pytest.raises(UserError, match=message):
        gt.bits(loaded, bench="ledger-h1", limit=4, ray=address, workers=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers needs --ray: add --ray local"),
        (["--workers", "0", "--ray", "local"], "--workers must be at least 1, not 0"),
        (["--ray", "nowhere"], "'nowhere' is no address of a Ray cluster: give auto, local or HOST:PORT"),
    ],
)
def test_what_is_refused_before_anything_runs(options: list[str], message: str, tmp_path: Path) -> None:
    result = run_command("bits", "--bench", "ledger-h1", "--limit", "2", "--out", str(tmp_path / "run"), *options)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_function_travels_without_the_model() -> None:
    checkpoint, other = load("toy-open", device="cpu"), load("toy-open", device="cpu")
    reference = ray.ObjectRef.nil()
    data, references = pickle_without_model((checkpoint, [reference]), checkpoint)
    assert len(data) < 20_000 < sum(weight.numel() for weight in checkpoint.model.parameters())
    (received, (found,)) = unpickle_with_model(data, other, references)
    assert received.model is other.model
    assert received.tokenizer is other.tokenizer
    assert (received.law, received.name) == (checkpoint.law, checkpoint.name)
    assert found is reference


def test_what_cannot_be_sent_is_said_in_one_sentence() -> None:
    checkpoint, lock = load("toy-open", device="cpu"), Lock()
    with pytest.raises(UserError, match=r"cannot be sent to workers .*: run it without --ray"):
        pickle_without_model(lambda: lock, checkpoint)


def test_a_changed_chat_template_is_refused() -> None:
    checkpoint = load("toy-open", device="cpu")
    checkpoint.tokenizer.chat_template += " "
    with pytest.raises(UserError, match="toy-open differs in chat template from the checkpoint"):
        CheckpointSource.of(checkpoint).load("cpu")


def test_a_source_loads_the_same_checkpoint_under_its_law() -> None:
    checkpoint = load("toy-open", device="cpu").with_law("window:64,16")
    loaded = CheckpointSource.of(checkpoint).load("cpu")
    assert loaded.law == checkpoint.law
    for a, b in zip(loaded.model.parameters(), checkpoint.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_workers_are_placed_one_on_each_machine_first() -> None:
    a, b = Machine("a", "1", 4, 2), Machine("b", "2", 8, 4)
    assert place_workers([a, b], None, 1) == ([a, b, a, b, b, b], 1)
    assert place_workers([a, b], 3, 2) == ([a, b, b], 2)
    assert place_workers([Machine("a", "1", 2, 0)], None, 1)[1] == 0
    with pytest.raises(UserError, match="has room for 0 workers with 8 GPU"):
        place_workers([a, b], None, 8)
    with pytest.raises(UserError, match=r"room for 3 workers .* and --workers asks for 4"):
        place_workers([a, b], 4, 2)
