"""The prompt guard in front of a fake application: the key before the body, limits, and what is forwarded."""

import asyncio
import threading
from typing import Any

import pytest
from helpers.asgi import CHAT, JSON_TYPE, exchange, send_request

from ghosttrace.errors import UserError
from ghosttrace.serving.api_keys import ApiKeys
from ghosttrace.serving.prompt_guard import GUARD_VARIABLE, GuardSettings, PromptGuard
from ghosttrace.serving.request_body import BodyLimits, BodyReader
from ghosttrace.serving.request_permissions import RequestPermissions
from ghosttrace.serving.token_breaker import WORD_JOINER

TOKENS = ("<|block_start|>", "<eos>")
PERMISSIONS = RequestPermissions("restart", 0, False, None)
OPEN = GuardSettings(TOKENS, PERMISSIONS)
KEYED = GuardSettings(TOKENS, PERMISSIONS, ApiKeys.from_keys(["a-key", "another"]))
TYPED: dict[str, Any] = {"messages": [{"role": "user", "content": "<eos>"}]}


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


def test_guard_rewrites_body_and_content_length() -> None:
    seen = send_request(
        OPEN, TYPED, headers=[(b"content-length", b"1"), (b"x", b"y"), (b"Content-Type", b"text/plain")]
    )
    assert seen.json["messages"][0]["content"] == f"<{WORD_JOINER}eos>" and seen.received is not None
    assert seen.headers == [(b"x", b"y"), JSON_TYPE, (b"content-length", str(len(seen.received)).encode())]
    assert send_request(OPEN, b'{"prompt": "<eos>"}', "/v1/completions").json == {"prompt": "<eos>"}


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GUARD_VARIABLE, KEYED.to_json())
    assert GuardSettings.from_environment() == KEYED and "a-key" not in KEYED.to_json()
    monkeypatch.delenv(GUARD_VARIABLE)
    with pytest.raises(UserError, match="ghosttrace serve"):
        PromptGuard(lambda *args: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("wrong")],
        [(b"authorization", b"Basic a-key")],
        [(b"authorization", b"a-key")],
        [(b"authorization", b"\xff")],
    ],
)
def test_nothing_is_read_without_the_key(headers: list[tuple[bytes, bytes]]) -> None:
    seen = send_request(KEYED, b"[],", headers=[JSON_TYPE, *headers])
    assert (seen.status, seen.reads, seen.received) == (401, 0, None) and b"Authorization: Bearer KEY" in seen.answer


def test_every_key_is_accepted_and_health_needs_none() -> None:
    for key in ("a-key", "another"):
        assert send_request(KEYED, TYPED, headers=[JSON_TYPE, bearer(key)]).status == 200
    assert send_request(KEYED, path="/health", method="GET").status == 200
    assert send_request(KEYED, path="/tokenize", body={"prompt": "x"}).status == 401
    assert send_request(KEYED, TYPED, headers=[JSON_TYPE, bearer("wrong"), bearer("a-key")]).status == 400


@pytest.mark.parametrize(
    "kinds",
    [
        (b"application/json", b"multipart/form-data"),
        (b"multipart/form-data", b"application/json"),
        (b"application/json", b"application/json"),
    ],
)
def test_two_content_types_are_refused(kinds: tuple[bytes, ...]) -> None:
    """The guard and the application could read different ones."""
    seen = send_request(OPEN, TYPED, headers=[(b"content-type", kind) for kind in kinds])
    assert (seen.status, seen.reads, seen.received) == (400, 0, None) and b"content-type" in seen.answer


@pytest.mark.parametrize("kind", [b"multipart/form-data; boundary=x", b"text/plain", b"APPLICATION/JSON", b""])
def test_a_body_is_read_as_json_whatever_it_is_called(kind: bytes) -> None:
    seen = send_request(OPEN, TYPED, headers=[(b"Content-Type", kind)])
    assert seen.json["messages"][0]["content"] == f"<{WORD_JOINER}eos>"
    assert send_request(OPEN, b"--x\r\na form", headers=[(b"content-type", kind)]).status == 400


def test_size_limits() -> None:
    small = GuardSettings(TOKENS, PERMISSIONS, limits=BodyLimits(max_bytes=100, max_values=8))
    for path in (CHAT, "/v1/completions"):
        assert send_request(small, b" " * 101, path).status == 413
        assert send_request(small, b"[" + b"[]," * 20 + b"[]]", path).status == 413
    declared = send_request(small, b"{}", headers=[JSON_TYPE, (b"content-length", b"101")])
    assert (declared.status, declared.reads) == (413, 0)


@pytest.mark.parametrize("body", [b"{broken", b"[" * 100_000, b"\xff\xfe{}", b'{"a": NaN}', b"[1e999]"])
def test_unreadable_body_is_refused(body: bytes) -> None:
    seen = send_request(OPEN, body)
    assert seen.status == 400 and seen.received is None and b"JSON" in seen.answer


def test_a_body_that_never_ends_is_refused() -> None:
    guard = PromptGuard(None, GuardSettings(TOKENS, PERMISSIONS, limits=BodyLimits(seconds=0.05)))  # type: ignore[arg-type]
    statuses: list[int] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    asyncio.run(guard({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send))
    assert statuses[0] == 408


def test_requests_and_bytes_are_bounded() -> None:
    """Both bounds count what is in flight, and are free again afterwards."""

    async def scenario() -> list[int]:
        limits = BodyLimits(max_total_bytes=500)
        guard = PromptGuard(None, GuardSettings(TOKENS, PERMISSIONS, max_requests=2, limits=limits))  # type: ignore[arg-type]
        entered, release = asyncio.Event(), asyncio.Event()

        async def stalled() -> Any:
            entered.set()
            await release.wait()
            return {"type": "http.disconnect"}

        async def ignore(message: Any) -> None: ...

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        waiting = [asyncio.create_task(guard(dict(scope), stalled, ignore))]
        await entered.wait()
        statuses = [(await exchange(guard, TYPED)).status, (await exchange(guard, b" " * 501)).status]
        waiting.append(asyncio.create_task(guard(dict(scope), stalled, ignore)))
        await asyncio.sleep(0)
        statuses.append((await exchange(guard, TYPED)).status)
        statuses.append((await exchange(guard, path="/health", method="GET")).status)
        release.set()
        await asyncio.gather(*waiting)
        return [*statuses, (await exchange(guard, TYPED)).status]

    assert asyncio.run(scenario()) == [200, 503, 503, 200, 200]


def test_large_bodies_are_parsed_off_the_event_loop() -> None:
    """The loop runs on while a large body is parsed; a small one is parsed at once."""

    async def scenario(size: int) -> bool:
        parsing, seen = threading.Event(), threading.Event()

        def rewrite(body: bytes) -> bytes:
            parsing.set()
            return b"went on" if seen.wait(0.5) else b"stopped"

        async def receive() -> Any:
            return {"type": "http.request", "body": b" " * size}

        task = asyncio.create_task(BodyReader(BodyLimits()).read({"headers": []}, receive, rewrite))
        while not parsing.is_set():
            await asyncio.sleep(0)
        seen.set()
        return await task == b"went on"

    assert asyncio.run(scenario(BodyLimits().inline_bytes + 1)) and not asyncio.run(scenario(1))
