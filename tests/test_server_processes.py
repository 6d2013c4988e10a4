"""The end of a server: open requests, processes, the metrics folder; and its start on an address in use. No model."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.asgi import CHAT

from ghosttrace.cli import serve
from ghosttrace.errors import UserError
from ghosttrace.serving.address import check_address
from ghosttrace.serving.open_requests import OpenRequests
from ghosttrace.serving.vllm import processes, server_command


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Return whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("started", [True, False], ids=["streaming", "waiting"])
def test_open_requests_end_with_the_server(started: bool) -> None:
    """One that waits for a token that never comes, and one that ends by itself within the grace time."""
    server, sent = SimpleNamespace(should_exit=False), {"stuck": list[Any](), "quick": list[Any]()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3600 if scope["name"] == "stuck" else 0.3)
        await send({"type": "http.response.body", "body": b"done"})

    async def scenario() -> None:
        requests = OpenRequests(app, grace_seconds=0.3)

        def request(name: str) -> asyncio.Task[None]:
            async def send(message: Any) -> None:
                sent[name].append(message)

            scope = {
                "type": "http",
                "path": CHAT,
                "name": name,
                "app": SimpleNamespace(state=SimpleNamespace(server=server)),
            }
            return asyncio.create_task(requests(scope, None, send))  # type: ignore[arg-type]

        tasks = [request(name) for name in sent]
        await asyncio.sleep(0.05)
        server.should_exit = True
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    asyncio.run(scenario())
    assert sent["quick"][-1]["body"] == b"done"
    assert b"shutting down" in sent["stuck"][-1]["body"] and sent["stuck"][0]["status"] == (200 if started else 503)


def test_a_request_that_its_client_cancels_stays_cancelled() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    async def scenario() -> None:
        state = SimpleNamespace(server=SimpleNamespace(should_exit=False))
        scope = {"type": "http", "path": CHAT, "app": SimpleNamespace(state=state)}
        task = asyncio.create_task(OpenRequests(app)(scope, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


ENGINE = """
import multiprocessing, runpy, sys, time
def engine(queue):
    runpy.run_path(sys.argv[1])["end_with_parent"]()
    queue.put(multiprocessing.current_process().pid)
    time.sleep(600)
if __name__ == "__main__":
    runpy.run_path(sys.argv[1])["end_with_parent"]()  # does nothing here
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=engine, args=(queue,)).start()
    print(queue.get(), flush=True)
    time.sleep(600)
"""


def test_an_engine_process_ends_with_a_killed_server(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(ENGINE)
    command = [sys.executable, str(script), processes.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        assert is_alive(engine) and server.poll() is None
        server.kill()
    try:
        assert wait_for(lambda: not is_alive(engine))
    finally:
        if is_alive(engine):
            os.kill(engine, signal.SIGKILL)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_metrics_folder_is_removed_with_the_server(end: signal.Signals) -> None:
    """The server executes another program, as `ghosttrace serve` executes vLLM's."""
    script = "import os, runpy, sys; folder = runpy.run_path(sys.argv[1])['make_metrics_folder']()"
    script += "; print(folder, flush=True); os.execvp('sleep', ['sleep', '600'])"
    with subprocess.Popen(
        [sys.executable, "-c", script, processes.__file__], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        folder = Path(server.stdout.readline().strip())
        assert wait_for(lambda: Path(f"/proc/{server.pid}/comm").read_text() == "sleep\n") and folder.is_dir()
        (folder / "metrics.db").write_text("x")
        server.send_signal(end)
    assert wait_for(lambda: not folder.exists())


def test_a_port_in_use_is_one_sentence_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    monkeypatch.setattr(server_command, "server_command", lambda *arguments, **options: (["x"], {}))
    names = (*serve.SHARED_OPTIONS, *serve.POLICY_OPTIONS, "device", "map_delimiters", "arm", "max_block_tokens")
    options = dict.fromkeys((*names, "law", "async_scheduling", "allow_request_arms", "model"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address: dict[str, Any] = {"host": "127.0.0.1", "port": taken.getsockname()[1]}
        with pytest.raises(UserError, match=r"cannot listen on --host 127\.0\.0\.1 --port"):
            serve.exec_vllm_server({**options, **address, "dry_run": False}, [])
    check_address(**address)
