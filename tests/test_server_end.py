"""The end of a uvicorn server in a thread while clients do not read, or do not send the rest of a body. No model."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from helpers.asgi import CHAT

from ghosttrace.serving import open_requests
from ghosttrace.serving.http import app as small_server
from ghosttrace.serving.prompt_guard import GuardSettings
from ghosttrace.serving.request_permissions import RequestPermissions

SETTINGS = GuardSettings(("<eos>",), RequestPermissions("restart", 0, False, None))
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n".encode()


async def stream_forever() -> AsyncIterator[bytes]:
    while True:
        yield b"data: " + b"x" * 20_000 + b"\n\n"
        await asyncio.sleep(0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[uvicorn.Server, threading.Thread, int]]:
    """Yield a running server that answers with an endless stream, its thread and its port."""
    for name, seconds in (("GRACE_SECONDS", 0.3), ("CLOSE_SECONDS", 0.5), ("END_SECONDS", 0.2)):
        monkeypatch.setattr(open_requests, name, seconds)
    monkeypatch.setattr(open_requests.OpenRequests.__init__, "__defaults__", (0.3,))
    app = FastAPI()
    app.add_api_route(
        CHAT, lambda: StreamingResponse(stream_forever(), media_type="text/event-stream"), methods=["POST"]
    )
    small_server.protect(app, SETTINGS)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app.state.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=app.state.server.run, args=([listening],))
        thread.start()
        while not app.state.server.started:
            time.sleep(0.01)
        yield app.state.server, thread, listening.getsockname()[1]
        app.state.server.force_exit = True
        thread.join(10)


@pytest.mark.parametrize("body, read", [(b"{}", False), (b"{}", True), (b"{", True)], ids=["deaf", "reading", "half"])
def test_a_server_ends_whatever_its_clients_do(
    server: tuple[uvicorn.Server, threading.Thread, int], body: bytes, read: bool
) -> None:
    running, thread, port = server
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(HEAD + body)
        time.sleep(0.5)  # the buffers of a client that does not read are full by now
        running.should_exit = True
        received = b"".join(iter(lambda: client.recv(65_536), b"")) if read else b""
        thread.join(5)
        assert not thread.is_alive()
        assert not read or b"shutting down" in received
