"""The whole pipeline over real HTTP: faults, wrong answers, kills at any moment, and rows that are set aside."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers.annotator import annotate, annotate_badly, stage_of
from helpers.paths import requires_data
from helpers.pipeline import REAL_TRACE, SMALL, build_at, endpoint_of, seed, seed_file, stored_keys, written
from helpers.scripted_endpoint import ScriptedEndpoint, random_faults, scripted_endpoint
from helpers.text_traces import checkpoint_with_delimiters

from ghosttrace.data.read import read_traces
from ghosttrace.errors import UserError
from ghosttrace.pipeline.run import build
from ghosttrace.pipeline.segmentation import BlockLimits
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.stages import Settings
from ghosttrace.training.examples import STAGES
from ghosttrace.training.prepare import ExampleBuilder, write_examples

KILLS = 20


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint(annotate_badly) as running:
        yield running


def test_a_build_writes_both_configurations_and_counts_what_it_dropped(
    server: ScriptedEndpoint, tmp_path: Path
) -> None:
    result = build_at(server, seed_file(tmp_path), tmp_path / "out", price_in=1.0, price_out=2.0)
    assert result.counts == {"default": 3, "full": 3, "rejected": 0}
    assert [(item.task_id, item.reason) for item in result.set_aside] == [
        ("2", "no response"),
        ("3", "no think tags"),
    ]
    rows = result.rows()
    assert rows["task_id"].tolist() == ["one", "two", "three"] and rows["accepted"].all()
    assert all("".join(row["sentences"]) == seed(row["task_id"])["response"][7:].split("</think>")[0]
               for _, row in rows.iterrows())  # fmt: skip
    for text in read_traces(tmp_path / "out/default/train.parquet"):
        assert text.response.count("<|block_start|>") == text.response.count("<|summary_end|>") >= 2
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["set_aside"][0] == {"stage": "select", "reason": "no response", "count": 1}
    assert {cost["stage"] for cost in summary["costs"]} == {"score", "compress", "judge"}
    assert "scripted" in (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out/figures/shape.png").exists()
    assert "secret-key" not in (tmp_path / "out/run.json").read_text()
    assert "score" in (tmp_path / "out/build.log").read_text()


def test_rows_become_training_examples(server: ScriptedEndpoint, tmp_path: Path) -> None:
    build_at(server, seed_file(tmp_path, seed("one"), seed("two")), tmp_path / "out")
    subject = checkpoint_with_delimiters("phi")
    for stage in STAGES:
        builder = ExampleBuilder(subject.tokenizer, "qwen3", subject.markup, subject.law, stage, 8192)
        report = write_examples(tmp_path / f"{stage}.parquet", builder, [str(tmp_path / "out/default/train.parquet")])
        assert (report.rows, report.used, report.truncated, report.dropped) == (2, 2, 0, {})
        assert (report.compression > 1.2) == (stage != "full")


@requires_data("traces/memento_repo_example_trace.jsonl")
def test_real_trace_survives_faults_and_every_call_is_accounted_for(tmp_path: Path) -> None:
    settings = Settings()
    with scripted_endpoint(annotate) as server:
        calm = build_at(server, REAL_TRACE, tmp_path / "calm", settings)
    with scripted_endpoint(annotate_badly) as server:
        server.faults = random_faults
        result = build_at(server, REAL_TRACE, tmp_path / "wild", settings, concurrency=16, price_in=1.0, price_out=2.0)
        tokens = [sum(getattr(cost, name) for cost in result.costs) for name in ("prompt_tokens", "completion_tokens")]
        assert set(server.answered.values()) == {1} and tokens == server.tokens
        assert result.cost == pytest.approx((server.tokens[0] + 2 * server.tokens[1]) / 1e6)
        assert sum(cost.calls for cost in result.costs) == len(server.answered) < len(server.received)
    assert written(tmp_path / "calm") == written(tmp_path / "wild")
    assert sum(calm.counts.values()) - calm.counts["default"] == 1
    (row,) = [*result.rows().to_dict("records"), *result.rows("rejected").to_dict("records")]
    assert len(row["blocks"]) > 5 and row["objective"] == pytest.approx(row["objective_bound"], abs=1e-9)


def run_until(server: ScriptedEndpoint, source: Path, out: Path, answers: int, pause: float) -> int | None:
    """Build in a process of its own, and kill it a moment after the server has given so many answers."""
    child = multiprocessing.get_context("fork").Process(target=build_at, args=(server, source, out))
    child.start()
    while child.is_alive() and sum(server.answered.values()) < answers:
        time.sleep(0.002)
    time.sleep(pause)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    return child.exitcode


def test_killed_at_any_moment_it_goes_on_and_asks_nothing_twice(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source, random = seed_file(tmp_path), Random(0)
    expected = build_at(server, source, tmp_path / "expected")
    total = sum(server.answered.values())
    server.answered.clear()
    server.attempts.clear()
    server.faults = random_faults
    killed = 0
    for kill in range(KILLS):
        known, first = stored_keys(tmp_path / "out") if (tmp_path / "out").exists() else set(), len(server.received)
        code = run_until(server, source, tmp_path / "out", total * kill // KILLS, random.uniform(0, 0.05))
        killed += code == -signal.SIGKILL
        assert not known & set(server.received[first:])
    known, first = stored_keys(tmp_path / "out"), len(server.received)
    result = build_at(server, source, tmp_path / "out")
    assert not known & set(server.received[first:])
    assert killed >= KILLS - 2
    assert written(tmp_path / "out") == written(tmp_path / "expected")
    assert [cost.calls for cost in result.costs] == [cost.calls for cost in expected.costs]


def test_a_finished_build_asks_nothing_again(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source = seed_file(tmp_path)
    build_at(server, source, tmp_path / "out")
    before, count = written(tmp_path / "out"), len(server.received)
    build_at(server, source, tmp_path / "out")
    assert written(tmp_path / "out") == before and len(server.received) == count


def test_a_bad_row_is_set_aside_and_not_the_run(server: ScriptedEndpoint, tmp_path: Path) -> None:
    def respond(body: dict[str, Any]) -> str:
        bad = stage_of(body) == "compress" and "What is two?" in body["messages"][1]["content"]
        return "I cannot do this." if bad else annotate(body)

    server.respond = respond
    result = build_at(server, seed_file(tmp_path, seed("one"), seed("two"), seed("three")), tmp_path / "out")
    assert result.rows()["task_id"].tolist() == ["one", "three"]
    (item,) = result.set_aside
    assert (item.task_id, item.stage) == ("two", "compress")
    assert item.reason == "unusable answer: after 3 attempts, it holds no JSON object"


def test_rows_below_the_threshold_are_set_apart(server: ScriptedEndpoint, tmp_path: Path) -> None:
    def respond(body: dict[str, Any]) -> str:
        points = dict.fromkeys(("formulas", "values", "methods", "validation", "no_hallucination", "result_first"), 1)
        return json.dumps(points | {"feedback": "more"}) if stage_of(body) == "judge" else annotate(body)

    server.respond = respond
    result = build_at(server, seed_file(tmp_path, seed("one")), tmp_path / "out")
    assert result.counts == {"default": 0, "full": 0, "rejected": 1}
    assert result.rows("rejected")["avg_final_score"].tolist() == [6.0]
    assert result.costs[1].calls == 3  # a first draft and two rounds


def test_no_segmentation_within_the_limits_sets_the_row_aside(server: ScriptedEndpoint, tmp_path: Path) -> None:
    settings = replace(SMALL, limits=BlockLimits(min_tokens=60, max_tokens=61))
    result = build_at(server, seed_file(tmp_path, seed("one")), tmp_path / "out", settings)
    assert [(item.stage, item.reason.split(":")[0]) for item in result.set_aside] == [("segment", "no segmentation")]
    assert not server.received


def test_what_stops_a_run_keeps_the_answers(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source = seed_file(tmp_path)
    with pytest.raises(UserError, match="--max-cost"):
        build_at(server, source, tmp_path / "out", price_in=1.0, price_out=1.0, max_cost=0.008)
    paid = stored_keys(tmp_path / "out")
    assert paid and not (tmp_path / "out/rows.jsonl").exists()
    first = len(server.received)
    assert build_at(server, source, tmp_path / "out").counts["full"] == 3
    assert not paid & set(server.received[first:])


def test_a_folder_in_use_and_a_file_as_folder_are_refused(server: ScriptedEndpoint, tmp_path: Path) -> None:
    source = seed_file(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        build_at(server, source, source)
    from ghosttrace.pipeline.files import locked_folder

    with locked_folder(tmp_path / "out"), pytest.raises(UserError, match="another process is using"):
        build_at(server, source, tmp_path / "out")


def test_progress_counts_the_traces(server: ScriptedEndpoint, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    endpoint = endpoint_of(server)
    settings = replace(SMALL, quality=Quality(rounds=0))
    build(seed_file(tmp_path), tmp_path / "out", endpoint, settings, progress=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5]
