"""The report shows the results and the samples of the run unchanged."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.reports import CONFIG, DELIMITERS, RESULTS, write_run
from helpers.token_strategies import MARKUP, policies, streams
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from ghosttrace.ablation.arms import ARMS, Arm
from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.run import run_ablation
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.ablation.summary import headline_arm
from ghosttrace.bench import load_bench
from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, alive, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import load
from ghosttrace.report.ablation import page as html
from ghosttrace.report.ablation import page_data as traces
from ghosttrace.report.command import repeat_command

SPELLING = dict(zip(MARKUP.delimiters, DELIMITERS, strict=True))


class Unknown(Arm):
    """A user-defined arm."""

    name = "unknown"


def write_report(folder: Path) -> Path:
    """Write the report of an ablation and return its path."""
    return AblationResult.open(folder).report()


class Page(HTMLParser):
    """Parsed report.

    Attributes:
        tags: Number of occurrences of each tag.
        scripts: Text of every script.
        data: First script, parsed as JSON.
        rows: Cells of every row of every table.
        words: All text except scripts and styles.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._text, self._within, self._in_cell = "", "", False
        self.feed(path.read_text("utf-8"))
        self.data = json.loads(self.scripts[0])
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        self.words = " ".join(self._text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._within = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._within = ""
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        elif self._within != "style":
            self._text += data
            if self._in_cell:
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report(run))


def test_numbers_equal_the_summary(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 14}
    for expected in RESULTS:
        accuracy, effect, _joint, counts, p, detectable, *counts_of_responses, peak, gigabytes, area = rows[
            expected["arm"]
        ]
        numbers = [float(number) for number in re.findall(r"[\d.]+", accuracy)]
        assert numbers == [round(100 * expected[f"accuracy{end}"], 1) for end in ("", "_low", "_high")]
        assert counts_of_responses == ["2.8", "1", "2", "4"] and (peak, gigabytes, area) == ("7,000", "1.03", "9.73")
        if expected["arm"] != "memento":
            numbers = [float(number) for number in re.findall(r"[-+][\d.]+", effect.replace("−", "-"))]
            assert numbers == [round(100 * expected[f"effect{end}"], 1) for end in ("", "_low", "_high")]
            assert counts == f"0 / {expected['worse']}" and detectable == "6.1"
            assert p == ("< 0.0001" if expected["arm"] == "restart" else f"{expected['p']:.4f}")
    assert ["aime24", "restart", "2", "70.0 [50.0, 80.0]", "60.0 [40.0, 70.0]"] in page.rows


def test_effect_is_stated_first_in_words(page: Page) -> None:
    words = page.words
    assert "ours/qwen3-8b-<memento> on aime24" in words
    assert "3 problems, answered 2 times under each of 5 arms: the same checkpoint, problems and random draws" in words
    sentence = "Closing the channel (restart) changed accuracy by −15.3 points [−18.4, −13.0]:"
    assert f"{sentence} 3 of 3 problems worse, 0 better." in words
    assert "From 66.1 % to 50.8 %. Smallest detectable effect: 6.1 points." in words
    assert "Controls held. Recomputing" in words and "(placebo) changed accuracy by −0.1 [−3.2, +2.2] points." in words
    assert "the answer followed the donor in 87.5 % of cases." in words and "INVALID" not in words
    assert words.index("Closing the channel") < words.index("What the arms do") < words.rindex("Provenance")


def test_invalid_run_is_reported_with_its_reason(tmp_path: Path) -> None:
    failures = ["aime24: placebo moved accuracy by -9.1 points", "aime24: restart scores above 10 %"]
    words = Page(write_report(write_run(tmp_path, valid=False, failures=failures))).words
    assert "INVALID" in words and "Controls held" not in words and all(failure in words for failure in failures)


def test_run_with_the_reference_alone_and_fewer_columns(tmp_path: Path) -> None:
    alone = {"results": RESULTS[:1], "headline_arm": None}
    words = Page(write_report(write_run(tmp_path, without=("rule", "prompt"), **alone))).words
    assert "add one to compare it with memento" in words and "No placebo was run" in words


def test_margin_gives_equivalence_in_words(tmp_path: Path) -> None:
    rows = [row | {"equivalent": {"memento": None, "placebo": True}.get(row["arm"], False)} for row in RESULTS]
    folder = write_run(tmp_path, results=[rows[3] | {"rests_on_few": True}, *rows[:3]])
    configuration = json.loads((folder / "run.json").read_text())
    assert "equivalent" not in Page(write_report(folder)).words
    configuration["settings"]["margin"] = 5.0
    (folder / "run.json").write_text(json.dumps(configuration))
    words = Page(write_report(folder)).words
    assert "Two one-sided tests at 5 %: not shown to be equivalent within ±5 points." in words
    assert "−0.1 [−3.2, +2.2] (equivalent within ±5 points) points." in words and "no effect" not in words
    assert "Without the five problems that carry most of it" in words and "[−4.5, +3.2]" in words


def test_words_and_units() -> None:
    part = CONFIG | {"settings": {"part": {"layers": [1, 2], "heads": None, "kv": ["v"]}}}
    assert html.arm_description("restart", part) == "Closing the channel (restart; layers 1, 2; values alone)"
    small, large = ({"bench": bench, "n_problems": n, "n_samples": 64} for bench, n in (("aime24", 1), ("gpqa", 64)))
    expected = "1 problems of aime24 answered 64 times, 64 problems of gpqa answered once"
    assert html.size([small, large]) == expected and html.size([large]) == "64 problems, answered once"
    assert html.size([large, large | {"bench": "b"}]) == "64 problems of each of 2 benchmarks, answered once"
    assert headline_arm([ARMS[name]() for name in ("memento", "swap", "restart")]) == "restart"
    assert headline_arm([ARMS["placebo"](), Unknown()]) == "unknown"
    assert headline_arm([ARMS["memento"](), ARMS["placebo"]()]) is None
    assert html.points(-0.0004) == "+0.0" and html.points(-0.0006) == "−0.1"
    assert html.byte_unit([3e4, 1.9e5]) == ("MB", 1e6) and html.byte_unit([12.0]) == ("bytes", 1.0)
    named = {"model": "m", "options": {"bench": "ledger"}}
    assert html.title(named, [{"bench": "ledger-h0"}, {"bench": "ledger-h1"}]) == "m on ledger"
    assert [html.plain(value) for value in (1, 0, True, False, None, [1, 2])] == [
        "1",
        "0",
        "yes",
        "no",
        "not set",
        "1, 2",
    ]


def test_hostile_text_is_escaped(run: Path, page: Page) -> None:
    """Every response contains scripts, but the page has only its own two and no outside resource."""
    assert page.tags["script"] == len(page.scripts) == 2 and not page.tags["img"]
    rows = pd.read_parquet(run / "samples.parquet").to_dict("records")
    groups = {(group["problem"], group["repetition"]): group for group in page.data["traces"]}
    assert len(rows) == sum(len(group["arms"]) for group in groups.values())
    for row in rows:
        group = groups[row["problem"], row["repetition"]]
        shown = "".join(piece[0] for box in group["arms"][row["arm"]]["boxes"] for piece in box[2])
        assert shown == row["response"] and group["prompt"] == row["prompt"]


@settings(max_examples=400, deadline=None)
@given(streams, policies, st.integers(0, 8))
@example([1, 9, 2, 3, 9, 4, 8, 1, 8, 8], Policy(False, require_assistant_section=False), 0)
def test_boxes_show_the_response_and_its_erasures(tokens: list[int], policy: Policy, cut: int) -> None:
    prompt = min(cut, len(tokens))
    words = [SPELLING.get(token, f"{token} ") for token in tokens]
    times, blocks = expiry(tokens, MARKUP, policy), find_blocks(tokens, MARKUP, policy.require_assistant_section)
    reader = traces.TraceRenderer(MARKUP, {}, SPELLING)
    boxes = reader.boxes("".join(words[prompt:]), np.array(tokens, dtype=np.int64), prompt, times, blocks)
    letters = [(letter, time < NEVER) for word, time in zip(words, times, strict=True) for letter in word]
    shown = [(letter, is_erased) for box in boxes for text, is_erased, *_ in box.pieces for letter in text]
    assert shown == letters[len("".join(words[:prompt])) :]
    lengths = {f"block {n}": block.end - block.start - 1 for n, block in enumerate(blocks, 1) if block.start >= prompt}
    lengths |= {
        f"memento {n}": block.memento_end - block.memento_start - 1
        for n, block in enumerate(blocks, 1)
        if block.memento_start >= prompt
    }
    assert {box.label: box.tokens for box in boxes if box.label.split()[0] in ("block", "memento")} == lengths


def test_delimiter_spelled_in_text_tokens_is_no_delimiter() -> None:
    reader = traces.TraceRenderer(MARKUP, {}, SPELLING)
    (box,) = reader.boxes("say <|block_start|>", np.array([8, 9, 10]), 0, np.full(3, NEVER), [])
    assert box == traces.Box("text", 3, (traces.Piece("say <|block_start|>", False, False),))


def test_answer_has_its_own_box() -> None:
    reader, policy = traces.TraceRenderer(MARKUP, {}, SPELLING), Policy(True, require_assistant_section=False)
    ids = np.array([1, 8, 2, 3, 8, 4, 8, 9])
    response = "<|block_start|>a<|block_end|><|summary_start|>b<|summary_end|>\n</think>\n42"
    shown_boxes = reader.boxes(response, ids, 0, expiry(ids, MARKUP, policy), find_blocks(ids, MARKUP, False))
    assert [box.label for box in shown_boxes] == ["block 1", "memento 1", "text", "answer"]
    assert shown_boxes[-1].pieces == (traces.Piece("\n42", False, False),)


@settings(max_examples=200, deadline=None)
@given(streams.filter(bool), policies)
def test_corners_describe_the_whole_curve(tokens: list[int], policy: Policy) -> None:
    curve = alive(expiry(tokens, MARKUP, policy))
    steps, held = zip(*traces.curve_breakpoints(curve), strict=True)
    np.testing.assert_array_equal(np.interp(range(len(curve)), steps, held), curve)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_first_difference(first: list[int], second: list[int]) -> None:
    expected = next((n for n in range(max(len(first), len(second))) if first[n : n + 1] != second[n : n + 1]), None)
    assert traces.first_difference(np.array(first), np.array(second)) == expected


def test_answers_and_ratios_cover_all_samples(run: Path, page: Page) -> None:
    rows = pd.read_parquet(run / "samples.parquet")
    for row in page.data["answers"]["aime24"]:
        for arm, entry in row["arms"].items():
            arm_rows = rows[(rows["problem"] == row["problem"]) & (rows["arm"] == arm)]
            counted = Counter(zip(arm_rows["extracted"], arm_rows["correct"], strict=True))
            assert {(answer, right): times for answer, right, times, _ in entry["answers"]} == counted
            assert entry["accuracy"] == arm_rows["correct"].mean() and entry["answers"][0][3] == "boxed/integer"
    for arm, quantiles in page.data["peak_ratio"]["aime24"].items():
        arm_rows = rows[rows["arm"] == arm].to_dict("records")
        ratios = [(len(r["prompt_ids"]) + len(r["response_ids"]) - 1) / r["peak_kv_tokens"] for r in arm_rows]
        np.testing.assert_allclose(quantiles, np.quantile(ratios, [0.05, 0.25, 0.5, 0.75, 0.95]), atol=1e-4)
    assert page.data["compression"]["aime24"]["restart"] == [21.0] * 5
    first = page.data["traces"][0]["arms"]
    assert first["placebo"]["first_difference"] is None and first["restart"]["first_difference"] == 3


def test_page_size_is_bounded_for_long_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has a maximum size, and texts that are not shown are not read."""
    folder, read = write_run(tmp_path, length=2000), []
    iter_batches = traces.parquet.ParquetFile.iter_batches

    def counted_batches(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        read.extend(kwargs["row_groups"] if "response" in kwargs["columns"] else [])
        return iter_batches(self, *args, **kwargs)

    monkeypatch.setattr(traces.parquet.ParquetFile, "iter_batches", counted_batches)
    monkeypatch.setattr(traces, "MAX_TRACE_BYTES", 900_000)
    monkeypatch.setattr(traces, "MAX_ANSWER_CHARS", 2)
    page = Page(write_report(folder))
    shown = [(group["problem"], group["repetition"]) for group in page.data["traces"]]
    assert shown == [("p0", 0), ("p1", 0), ("p2", 0), ("p0", 1)]
    assert "This page contains 20 of 30 responses, starting with the first repetitions" in page.words
    assert len(traces.to_json(page.data["traces"]).encode()) < 900_000
    assert page.data["answers"]["aime24"][0]["answer"] == "20…"
    monkeypatch.setattr(traces, "MAX_TRACE_BYTES", 1)
    read.clear()
    assert len(Page(write_report(folder)).data["traces"]) == 1 and read == [0, 1, 3, 4, 6]


def test_unfinished_and_other_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: give the folder that ghosttrace ablate wrote"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "samples.jsonl").touch()
    with pytest.raises(UserError, match="is unfinished: continue with ghosttrace ablate --resume"):
        write_report(folder)
    (folder / "samples.jsonl").unlink()
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report.html cannot be written \(Is a directory\)"):
        write_report(folder)
    (folder / "report.html").rmdir()
    (folder / "run.json").write_text(json.dumps({**CONFIG, "command": "probe"}))
    with pytest.raises(UserError, match="is a run of ghosttrace probe, not of ghosttrace ablate"):
        write_report(folder)


def test_damaged_run_is_refused(tmp_path: Path) -> None:
    for name, text in (("run.json", "{"), ("summary.json", "{"), ("summary.json", "{}"), ("samples.parquet", "no")):
        folder = write_run(tmp_path / "run")
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} is .*: restore a copy of it, or repeat the run"):
            write_report(folder)


def options(arguments: list[str]) -> dict[str, Any]:
    """Return the parsed options of the command line."""
    ablate = get_command(cli.app).commands["ablate"]  # type: ignore[attr-defined]
    parameters = ablate.make_context("ablate", arguments).params
    return {name: value for name, value in parameters.items() if name not in ("out", "resume")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of a bundled model by the command."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    given = options(["--bench", "ledger-h1", "--limit", "3", "--arms", "full,restart", "--keep-last-n-blocks", "0"])
    chosen = AblationSettings(("full", "restart"), limit=3)
    run_ablation(load("toy-mixed"), load_bench("ledger-h1", 3), chosen, out=folder, options=given)
    return folder


def test_real_run_agrees_with_the_law(toy: Path) -> None:
    """Recorded peaks equal those of the curves; without erasure the ratio is 1."""
    page = Page(write_report(toy))
    assert "(restart) changed accuracy by" in page.words
    for group in page.data["traces"]:
        assert set(group["arms"]) == {"memento", "full", "restart"}
        for trace in group["arms"].values():
            steps, held = zip(*trace["curve"], strict=True)
            assert np.interp(range(steps[-1]), steps, held).max() == trace["peak_kv_tokens"]
    assert page.data["peak_ratio"]["ledger-h1"]["full"] == [1.0] * 5
    assert page.data["peak_ratio"]["ledger-h1"]["memento"][2] > 2


def test_command_to_repeat_the_run_equals_the_original(toy: Path) -> None:
    config = json.loads((toy / "run.json").read_text())
    command = repeat_command(config)
    assert command is not None and command in Page(write_report(toy)).words
    words = shlex.split(command)
    assert words[:2] == ["ghosttrace", "ablate"] and options(words[2:]) == config["options"]
