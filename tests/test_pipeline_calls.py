"""Calls: each answer is paid once, faults are survived, wrong answers asked again, limits kept."""

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.scripted_endpoint import KEY, ScriptedEndpoint, scripted_endpoint
from pydantic import BaseModel

from ghosttrace.errors import UserError
from ghosttrace.pipeline.answers import ask, find_json
from ghosttrace.pipeline.budget import Budget
from ghosttrace.pipeline.calls import Answer, CallCache
from ghosttrace.pipeline.client import Client, read_answer
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.rows import RowError

Talk = Callable[[Client], Coroutine[Any, Any, Any]]


class Number(BaseModel):
    number: int


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def numbers(count: int) -> Talk:
    """Ask `count` questions at once."""

    async def talk(client: Client) -> list[int]:
        answers = await asyncio.gather(*(ask(client, "score", question(str(n)), Number, 50) for n in range(count)))
        return [answer.number for answer in answers]

    return talk


def run(server: ScriptedEndpoint, folder: Path, talk: Talk, **settings: Any) -> Any:
    endpoint = Endpoint(**{"base_url": server.url, "model": "scripted", "api_key": KEY, **settings})
    cache = CallCache(folder / "calls.sqlite")

    async def run_client() -> Any:
        async with Client(endpoint, cache) as client:
            return await talk(client)

    try:
        return asyncio.run(run_client())
    finally:
        cache.close()


def echo(body: dict[str, Any]) -> str:
    return json.dumps({"number": int(body["messages"][0]["content"])})


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint(echo) as running:
        yield running


@pytest.mark.parametrize("fault", ["429", "500", "cut", "broken", "html", "slow"])
def test_faults_are_survived_and_each_answer_is_paid_once(server: ScriptedEndpoint, tmp_path: Path, fault: str) -> None:
    server.faults = lambda _: [fault, fault] if fault != "cut" else [fault]
    assert run(server, tmp_path, numbers(4)) == [0, 1, 2, 3]
    assert run(server, tmp_path, numbers(4)) == [0, 1, 2, 3]
    assert set(server.answered.values()) == {1} and len(server.answered) == 4
    assert CallCache(tmp_path / "calls.sqlite").costs()[0].calls == 4


def test_an_answer_is_on_disk_before_it_is_used(server: ScriptedEndpoint, tmp_path: Path) -> None:
    """A process that dies as soon as it has its answers leaves all of them in the database."""

    async def talk(client: Client) -> None:
        await numbers(3)(client)
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=run, args=(server, tmp_path, talk))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert CallCache(tmp_path / "calls.sqlite").costs()[0].calls == 3


def test_the_same_request_at_the_same_time_is_sent_once(server: ScriptedEndpoint, tmp_path: Path) -> None:
    async def talk(client: Client) -> Any:
        return await asyncio.gather(*(ask(client, "score", question("7"), Number, 50) for _ in range(5)))

    assert [answer.number for answer in run(server, tmp_path, talk)] == [7] * 5
    assert len(server.received) == 1


def test_an_endpoint_without_structured_output_is_asked_for_json(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.structured = False
    server.respond = lambda body: f"Here it is:\n```json\n{echo(body)}\n``` Good luck!"
    assert run(server, tmp_path, numbers(1)) == [0] and len(server.received) == 2
    assert run(server, tmp_path, numbers(3)) == [0, 1, 2] and len(server.received) == 4  # one refusal is enough


def test_another_endpoint_in_the_same_folder_is_asked_itself(server: ScriptedEndpoint, tmp_path: Path) -> None:
    assert run(server, tmp_path, numbers(2)) == [0, 1]
    with scripted_endpoint(echo) as other:
        other.structured = False
        assert run(other, tmp_path, numbers(2)) == [0, 1] and sum(other.answered.values()) == 2


def test_a_refused_schema_is_asked_in_plain_text_even_after_others_were_accepted(
    server: ScriptedEndpoint, tmp_path: Path
) -> None:
    run(server, tmp_path, numbers(1))
    server.structured = False
    assert run(server, tmp_path, numbers(2)) == [0, 1]


def test_a_wrong_answer_is_asked_again_with_what_was_wrong(server: ScriptedEndpoint, tmp_path: Path) -> None:
    conversations = []

    def respond(body: dict[str, Any]) -> str:
        conversations.append(body["messages"])
        return ['{"number": "many"}', "It is three.", '{"number": 3}'][len(conversations) - 1]

    server.respond = respond
    assert run(server, tmp_path, numbers(1)) == [3]
    assert "number: Input should be a valid integer" in conversations[1][-1]["content"]
    assert conversations[2][-2] == {"role": "assistant", "content": "It is three."}
    assert "it holds no JSON object" in conversations[2][-1]["content"]
    assert run(server, tmp_path, numbers(1)) == [3] and len(conversations) == 3


def test_prose_is_a_failure_with_its_reason(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.respond = lambda _: "I would rather not."
    with pytest.raises(RowError, match="unusable answer: after 3 attempts, it holds no JSON object"):
        run(server, tmp_path, numbers(1))


def test_number_of_requests_at_once_is_limited(server: ScriptedEndpoint, tmp_path: Path) -> None:
    running, most = set[int](), list[int]()

    def respond(body: dict[str, Any]) -> str:
        running.add(id(body))
        most.append(len(running))
        asyncio.run(asyncio.sleep(0.03))
        running.discard(id(body))
        return echo(body)

    server.respond = respond
    run(server, tmp_path, numbers(9), concurrency=3)
    assert max(most) == 3


def test_cost_is_counted_from_usage(server: ScriptedEndpoint, tmp_path: Path) -> None:
    run(server, tmp_path, numbers(4), price_in=2.0, price_out=10.0)
    run(server, tmp_path, numbers(6), price_in=2.0, price_out=10.0)
    (cost,) = CallCache(tmp_path / "calls.sqlite").costs()
    assert (cost.calls, [cost.prompt_tokens, cost.completion_tokens]) == (6, server.tokens)
    assert cost.cost == pytest.approx((2 * server.tokens[0] + 10 * server.tokens[1]) / 1e6)


def test_answers_without_usage_are_counted(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.usage = False
    run(server, tmp_path, numbers(2))
    assert CallCache(tmp_path / "calls.sqlite").costs()[0].without_usage == 2


def test_max_cost_is_never_exceeded_and_keeps_the_answers(server: ScriptedEndpoint, tmp_path: Path) -> None:
    most = 0.005
    with pytest.raises(UserError, match=r"--max-cost 0\.005 could be exceeded: raise it"):
        run(server, tmp_path, numbers(50), price_in=1.0, price_out=10.0, max_cost=most, concurrency=4)
    (cost,) = CallCache(tmp_path / "calls.sqlite").costs()
    assert 0 < cost.calls < 50 and cost.cost <= most
    assert cost.calls == sum(server.answered.values())


def test_answers_without_usage_cost_as_much_as_they_may_use(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.usage = False
    with pytest.raises(UserError, match="--max-cost"):
        run(server, tmp_path, numbers(50), price_in=1.0, price_out=10.0, max_cost=0.004, concurrency=1)
    (cost,) = CallCache(tmp_path / "calls.sqlite").costs()
    assert 0 < cost.calls < 8 and 0.002 < cost.cost <= 0.004


def test_a_reserve_has_a_token_for_each_byte_and_grows_with_the_usage_seen(tmp_path: Path) -> None:
    request = {"model": "m", "messages": question("\u044f" * 100), "max_completion_tokens": 7}
    budget = Budget(Endpoint("http://x/v1", "m", price_in=1.0, price_out=1.0), CallCache(tmp_path / "calls.sqlite"))
    first = budget.reserve(request) or 0.0
    assert 207e-6 < first < 350e-6
    budget.spend(request, None, 1007)
    assert budget.reserve(request) == pytest.approx(first + 1000e-6)


def test_prices_that_are_given_later_count_for_earlier_calls(server: ScriptedEndpoint, tmp_path: Path) -> None:
    run(server, tmp_path, numbers(3))
    with pytest.raises(UserError, match="--max-cost"):
        run(server, tmp_path, numbers(4), price_in=1e3, price_out=1e3, max_cost=1e-4)
    assert CallCache(tmp_path / "calls.sqlite").costs()[0].cost > 1e-3


@pytest.mark.parametrize("body", ['{"choices": [], "usage": %s}', '{"choices": [{"message": {"co, "usage": %s}'])
def test_usage_of_an_answer_without_content_is_counted(tmp_path: Path, body: str) -> None:
    answer = read_answer(body % '{"prompt_tokens": 5, "completion_tokens": 6}')
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("broken", 5, 6)
    cache = CallCache(tmp_path / "calls.sqlite")
    client = Client(Endpoint("http://x/v1", "m", price_in=1.0), cache)
    client._keep("key", "score", {"max_completion_tokens": 9}, answer)
    assert cache.get("key") is None and cache.costs()[0].cost == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"price_in": -1.0}, "must be finite numbers, and not negative"),
        ({"price_out": float("nan")}, "must be finite numbers, and not negative"),
        ({"price_in": 1.0, "max_cost": float("nan")}, "must be finite numbers, and not negative"),
        ({"api_key": "schl\u00fcssel"}, "the key holds a line break or is not ASCII"),
        ({"api_key": f"{KEY}\n"}, "the key holds a line break or is not ASCII"),
        ({"request": {"max_completion_tokens": None}}, "only to a positive integer"),
        ({"timeout": float("nan")}, "must be finite numbers, and not negative"),
        ({"base_url": "http://127.0.0.1:9/v1", "retries": 0}, "cannot be reached .*: start the server or correct"),
        ({"base_url": "nonsense", "retries": 0}, "cannot be reached|is no address"),
        ({"api_key": "wrong"}, "refuses the key: set the variable"),
        ({"model": "other"}, "has no model 'other'"),
        ({"max_cost": 1.0}, "--max-cost needs prices"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
    ],
)
def test_what_cannot_succeed_stops_with_one_sentence(
    server: ScriptedEndpoint, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(server, tmp_path, numbers(3), **settings)


def test_an_endpoint_that_keeps_refusing_stops_the_run(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.faults = lambda _: ["429"] * 3
    with pytest.raises(UserError, match="too many requests: lower --concurrency"):
        run(server, tmp_path, numbers(1), retries=1)


@pytest.mark.parametrize(
    ("status", "message"),
    [("402", "asks for payment"), ("500", "failed 8 times in a row"), ("400", "correct --request")],
)
def test_errors_that_last_stop_the_run_without_the_key(
    server: ScriptedEndpoint, tmp_path: Path, status: str, message: str
) -> None:
    server.faults = lambda _: [status]

    async def talk(client: Client) -> None:
        for number in range(50):
            with suppress(RowError):
                await ask(client, "score", question(str(number)), Number, 50)

    with pytest.raises(UserError, match=message) as stopped:
        run(server, tmp_path, talk, retries=0)
    assert len(server.received) <= 16 and KEY not in str(stopped.value)


def test_keys_and_passwords_reach_no_text(
    server: ScriptedEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ghosttrace.pipeline")
    server.faults = lambda _: ["500"]
    with pytest.raises(RowError) as failure:
        run(server, tmp_path, numbers(1), retries=0)
    server.respond = lambda body: f"{echo(body)} with {KEY}"
    server.faults = lambda _: []
    run(server, tmp_path, numbers(1))
    endpoint = Endpoint("http://user:pa55word@host/v1", "m", KEY)
    assert endpoint.hide(f"{endpoint.base_url} {KEY}") == "http://[hidden]@host/v1 [hidden]"
    assert KEY not in caplog.text + str(failure.value) and "failed:" in caplog.text
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_server_error_that_stays_is_the_failure_of_its_row(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.faults = lambda _: ["500"] * 3
    with pytest.raises(RowError, match="server error"):
        run(server, tmp_path, numbers(1), retries=1)


def test_full_disk_stops_before_more_is_paid(
    server: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = CallCache.__init__

    def begin_on_a_small_disk(self: CallCache, path: Path) -> None:
        begin(self, path)
        self._execute("PRAGMA max_page_count = 8")

    monkeypatch.setattr(CallCache, "__init__", begin_on_a_small_disk)
    with pytest.raises(UserError, match=r"calls.sqlite cannot be used \(database or disk is full\): free disk space"):
        run(server, tmp_path, numbers(200), concurrency=2)
    assert len(server.received) < 100


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite").write_text("This is a text of some length, but it is no database. " * 40)
    with pytest.raises(UserError, match="file is not a database"):
        CallCache(tmp_path / "calls.sqlite")


def test_the_first_answer_to_a_request_stays(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    for text in ("first", "second"):
        cache.put("key", "score", {}, Answer(text, "stop", 1, 1), (0.0, 0.0))
    assert cache.get("key") == Answer("first", "stop", 1, 1) and cache.get("other") is None


def test_half_a_surrogate_pair_in_an_answer_is_stored_and_paid_once(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.respond = lambda body: f"{echo(body)} \ud83d"
    for _ in range(2):
        assert run(server, tmp_path, numbers(1)) == [0]
    assert list(server.answered.values()) == [1]


def test_an_answer_that_cannot_be_stored_stops_with_one_sentence(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    for answer in (Answer("\ud83d", "stop", 1, 1), Answer("", "stop", 10**30, 1)):
        with pytest.raises(UserError, match="cannot be used"):
            cache.put("key", "score", {}, answer, (0.0, 0.0))


@pytest.mark.parametrize(
    ("text", "message"), [('{"a": ' + "[" * 20000, "nested too deeply"), (r'{"a": "\ud83d"}', "half a surrogate pair")]
)
def test_json_that_cannot_be_used_is_a_wrong_answer(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_json(text)


@pytest.mark.parametrize(
    "text", ['{"a": 1}', 'x {not json} y {"a": 1} z', '```json\n{"a": 1}\n```', '<think>{"a": 2}</think>{"a": 1}']
)
def test_json_is_found_in_text(text: str) -> None:
    assert find_json(text) == {"a": 1}
