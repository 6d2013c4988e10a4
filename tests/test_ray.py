"""A Ray cluster of two nodes: what prevents a connection, workers that die, and `data build --ray`."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from helpers.annotator import annotate_badly
from helpers.commands import ghosttrace as run_command
from helpers.pipeline import SMALL, TWO_BLOCKS, build_at, endpoint_of, seed, seed_file, stored_keys, written
from helpers.ray_cluster import two_nodes, worker_processes
from helpers.scripted_endpoint import KEY, ScriptedEndpoint, scripted_endpoint

import ghosttrace
from ghosttrace.cluster.connect import Machine, connected
from ghosttrace.errors import UserError
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.leak_check import LeakCheck
from ghosttrace.pipeline.rows import Memento, Row
from ghosttrace.pipeline.run import build

ray = pytest.importorskip("ray", reason="ray is not installed")

from ghosttrace.cluster import workers as workers_module  # noqa: E402
from ghosttrace.cluster.workers import Workers, _own_methods  # noqa: E402
from ghosttrace.pipeline.on_cluster import PipelineWorker, _spread  # noqa: E402

ROOT = Path(__file__).parent.parent
CONCURRENCY = 4
OPTIONS = (
    *("--min-tokens", "50", "--windows", "8,5", "--min-block-tokens", "60", "--min-blocks", "2"),
    *("--concurrency", str(CONCURRENCY)),
)
DRIVER = """
import sys
from helpers.pipeline import TWO_BLOCKS
from helpers.scripted_endpoint import KEY
from ghosttrace.pipeline import Endpoint, build

source, out, url, address = sys.argv[1:]
build(source, out, Endpoint(url, "scripted", KEY, concurrency=4), TWO_BLOCKS, ray=address)
"""


def test_functions_that_a_library_adds_to_all_objects_are_no_methods_of_a_worker() -> None:
    pytest.importorskip("nnsight", reason="nnsight is not installed")
    if not hasattr(object, "save"):
        pytest.skip("this nnsight was built without the extension that adds `save` to all objects")
    sent = [
        ray.cloudpickle.dumps(ray.remote(kind).__ray_metadata__.modified_class)
        for kind in (PipelineWorker, _own_methods(PipelineWorker))
    ]
    assert [b"nnsight" in each for each in sent] == [True, False]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint(annotate_badly) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("one", "two", "three", "four", "five", "six")
    return seed_file(
        tmp_path_factory.mktemp("source"), *map(seed, names), {"problem": "x"}, seed("one"), seed("short", 6)
    )


@pytest.fixture(scope="module")
def expected(running: ScriptedEndpoint, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a build in one process."""
    folder = tmp_path_factory.mktemp("expected")
    build_at(running, source, folder, TWO_BLOCKS)
    return folder


@pytest.fixture
def server(running: ScriptedEndpoint, expected: Path) -> ScriptedEndpoint:
    running.received.clear()
    running.respond, running.delay = annotate_badly, 0.02
    return running


def assert_same(folder: Path, expected: Path) -> None:
    """Check that two builds have the same rows, set-aside traces, costs and card."""
    assert written(folder) == written(expected)
    for name in ("default/train.parquet", "full/train.parquet", "rejected/train.parquet", "README.md", "summary.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


def at_request(server: ScriptedEndpoint, number: int, act: Callable[[], object]) -> None:
    """Call a function when the server has received so many requests, before it answers any more."""
    lock, done = Lock(), list[bool]()

    def respond(body: dict[str, Any]) -> str:
        with lock:
            if len(server.received) >= number and not done:
                done.append(True)
                act()
        return annotate_badly(body)

    server.respond = respond


def wait_for_the_end_of_workers() -> None:
    while worker_processes("PipelineWorker"):
        time.sleep(0.05)


@pytest.mark.slow
def test_the_command_gives_the_result_of_one_process(
    address: str,
    server: ScriptedEndpoint,
    source: Path,
    expected: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering, most = set[int](), list[int]()

    def respond(body: dict[str, Any]) -> str:
        answering.add(id(body))
        most.append(len(answering))
        time.sleep(0.02)
        answering.discard(id(body))
        return annotate_badly(body)

    server.respond = respond
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    options = (*OPTIONS, "--endpoint", server.url, "--model", "scripted", "--ray", address)
    finished = run_command("data", "build", str(source), "--out", str(tmp_path / "out"), *options)
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "out", expected)
    stages = [json.loads(line)["stage"] for line in (expected / "set_aside.jsonl").read_text().splitlines()]
    assert stages == ["select", "select", "segment"]
    assert sorted(server.received) == sorted(stored_keys(expected))
    assert 1 < max(most) <= CONCURRENCY
    assert not ray.is_initialized()
    wait_for_the_end_of_workers()


@pytest.mark.slow
def test_a_killed_worker_costs_at_most_the_requests_under_way(
    address: str, server: ScriptedEndpoint, source: Path, expected: Path, tmp_path: Path
) -> None:
    known, asked = set[str](), list[int]()
    total = len(stored_keys(expected))

    def kill() -> None:
        known.update(stored_keys(tmp_path / "out"))
        asked.append(len(server.received))
        first, _ = worker_processes("PipelineWorker")
        os.kill(first.pid, signal.SIGKILL)

    at_request(server, total // 2, kill)
    build(source, tmp_path / "out", endpoint_of(server), TWO_BLOCKS, ray=address)
    assert asked[0] - CONCURRENCY <= len(known) and not known & set(server.received[asked[0] :])
    assert total <= len(server.received) <= total + CONCURRENCY
    assert_same(tmp_path / "out", expected)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_asks_again_at_most_the_requests_under_way(
    address: str, server: ScriptedEndpoint, source: Path, expected: Path, tmp_path: Path
) -> None:
    total = len(stored_keys(expected))
    arguments = (str(source), str(tmp_path / "out"), server.url, address)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], env=environment)
    at_request(server, total // 2, driver.kill)
    assert driver.wait() == -signal.SIGKILL
    wait_for_the_end_of_workers()
    known, asked = stored_keys(tmp_path / "out"), len(server.received)
    assert asked - CONCURRENCY <= len(known) < total
    build(source, tmp_path / "out", endpoint_of(server), TWO_BLOCKS, ray=address)
    assert not known & set(server.received[asked:])
    assert total <= len(server.received) <= total + CONCURRENCY
    assert_same(tmp_path / "out", expected)


@pytest.mark.slow
def test_the_limit_of_the_cost_holds_for_all_workers_together(
    address: str, server: ScriptedEndpoint, source: Path, tmp_path: Path
) -> None:
    prices: dict[str, float] = {"price_in": 1.0, "price_out": 1.0, "max_cost": 0.008}
    with ray.init(address, log_to_driver=False), pytest.raises(UserError, match=r"--max-cost 0\.008 could be exceeded"):
        build(source, tmp_path / "out", endpoint_of(server, **prices), TWO_BLOCKS, ray="auto")  # uses the connection
    stored = stored_keys(tmp_path / "out")
    assert stored and sorted(server.received) == sorted(stored)


@pytest.mark.slow
def test_work_that_kills_its_workers_and_workers_that_cannot_start(
    address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Actor:
        def __init__(self, lacks: str = "") -> None:
            if lacks == "package":
                raise ModuleNotFoundError("No module named 'openai'")
            self.lacks = lacks

        async def open(self) -> None:
            if self.lacks == "model":
                raise UserError("there is no model")

        async def work(self, number: int) -> int:
            if number == 1:
                os._exit(1)
            if number == 2:
                raise ValueError("two")
            return number

    async def work(machines: tuple[Machine, ...]) -> None:
        async with Workers(Actor, (), machines) as workers:
            assert await asyncio.gather(*(workers.run("work", number) for number in (3, 4, 5))) == [3, 4, 5]
            with pytest.raises(ValueError, match="two"):
                await workers.run("work", 2)
            with pytest.raises(UserError, match="the same work has lost its worker 2 times"):
                await workers.run("work", 1)
            assert await workers.run("work", 6) == 6
        with pytest.raises(UserError, match=r"on the machine \S+ of the Ray cluster, there is no model"):
            await Workers(Actor, ("model",), machines).__aenter__()
        with pytest.raises(UserError, match=r"no worker can be started .*No module named 'openai'"):
            await Workers(Actor, ("package",), machines).__aenter__()

    monkeypatch.setattr(workers_module, "ATTEMPTS", 2)
    with connected(address) as machines:
        assert [machine.cpus for machine in machines] == [1, 1]
        asyncio.run(work(machines[:1]))
    assert not capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "message"),
    [(ghosttrace, r"has GhostTrace 0\.\S+, and this one 9\.9"), (ray, "Version mismatch: .*Ray: 9.9.*the same Ray")],
)
def test_versions_that_differ(address: str, package: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "__version__", "9.9")
    with pytest.raises(UserError, match=message), connected(address):
        pass
    assert not ray.is_initialized()


def test_workers_are_spread_over_the_machines() -> None:
    small, big = Machine("a", "10.0.0.1", 1, 0), Machine("b", "10.0.0.2", 3, 2)
    assert _spread([(small, small.cpus), (big, big.cpus)]) == [small, big, big, big]
    assert _spread([(small, small.gpus), (big, big.gpus)]) == [big, big]
    assert _spread([(small, small.gpus)]) == []


def test_a_worker_with_a_model_measures_as_one_process_does() -> None:
    row = Row("a", "p", "one two", "c", sentences=("one ", "two"), sentence_tokens=(1, 1), blocks=((0, 0), (1, 1)),
              mementos=(Memento("one", 1), Memento("two", 1)))  # fmt: skip

    async def measure() -> Row:
        worker = PipelineWorker(Endpoint("http://127.0.0.1:9/v1", "none"), SMALL, "toy-mixed")
        await worker.open()
        return await worker.compute("measure", row)

    measured = asyncio.run(measure())
    assert len(measured.ghost_bits) == 2 and measured == LeakCheck.load("toy-mixed").measure(row)


@pytest.mark.parametrize("address", ["nonsense", "host:port", ":6379", "ray://127.0.0.1:10001", "127.0.0.1:"])
def test_what_is_no_address(address: str) -> None:
    with (
        pytest.raises(UserError, match="is no address of a Ray cluster: give auto, local or HOST:PORT"),
        connected(address),
    ):
        pass


@pytest.mark.parametrize("option", ["auto", "{address}"])
def test_no_cluster_at_the_address(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        if option == "auto":
            monkeypatch.setenv("RAY_ADDRESS", address)
        message = f"no Ray cluster can be reached at {address} .*: start one with `ray start --head`"
        with pytest.raises(UserError, match=message), connected(option.format(address=address)):
            pass


def test_no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="this machine belongs to no Ray cluster"), connected("auto"):
        pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ("--out", str(tmp_path / "out"), "--ray", "auto")
    finished = run_command("data", "build", str(seed_file(tmp_path)), *options)
    assert finished.returncode == 2 and "ray is not installed: pip install -e '.[ray]'" in finished.stderr
    assert finished.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_password_in_the_address_is_not_shown_to_the_cluster(tmp_path: Path) -> None:
    endpoint = Endpoint("http://user:secret@127.0.0.1:1/v1", model="m")
    with pytest.raises(UserError, match="leave name and password out of the address"):
        build(tmp_path / "none.jsonl", tmp_path / "out", endpoint, ray="local")
