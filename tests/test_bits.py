"""Ghost bits: slow references, calibration on `ledger`, and controls that fail."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import command
from helpers.families import FAMILIES, tiny
from helpers.paths import DATA, requires_data
from helpers.traces import MARKUP, trace
from pyarrow import parquet

from ghosttrace.ablation.arms import Memento, Noise, PlaceboArm, Restart
from ghosttrace.bench import load_bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.cli import main as cli
from ghosttrace.data.tokens import TokenTrace, load_traces
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits import likelihood
from ghosttrace.ghost_bits import measure as measuring
from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.ghost_bits.measure import BITS_TABLE, measure, measured_tokens
from ghosttrace.ghost_bits.summary import failed_controls, summarise
from ghosttrace.law.expiry import NEVER, MementoLaw, Policy, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.law.masks import Visibility
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.runs.records import Records

KEEP = Policy(mask_delimiters=False, require_assistant_section=False)
LAW = MementoLaw(MARKUP, KEEP)
COMPARED = {"restart": Restart(), "placebo": PlaceboArm()}
LONG = [trace(seed, blocks=2 + seed) for seed in range(3)]


def checkpoint_of(family: str, policy: Policy = KEEP) -> Checkpoint:
    return Checkpoint(family, tiny(family), None, MARKUP, policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_probabilities_equal_one_masked_pass(family: str) -> None:
    actual = log2_probabilities(checkpoint_of(family), Memento(), LONG)
    batch = pad_batch(LONG, [expiry(ids, MARKUP, KEEP) for ids in LONG], pad_id=0)
    with attending(tiny(family)) as model:
        logits = model(**batch.inputs, use_cache=False).logits
    for row, ids in enumerate(LONG):
        expected = logits[row, : len(ids) - 1].log_softmax(-1)[range(len(ids) - 1), ids[1:]] / np.log(2)
        np.testing.assert_allclose(actual[row], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "olmo3"])
def test_sealed_probabilities_equal_a_prefill_of_the_retained_text(family: str) -> None:
    """After the last memento, each probability equals that of one pass over the retained text without any block."""
    ids = LONG[1]
    (actual,) = log2_probabilities(checkpoint_of(family), Restart(), [ids])
    held = np.flatnonzero(expiry(ids, MARKUP, KEEP) == NEVER)
    index, position = torch.arange(len(held))[None], torch.from_numpy(held)[None]
    with attending(tiny(family)) as model:
        visibility = Visibility(index, index, torch.full_like(index, NEVER), position, position)
        text = torch.tensor([[ids[k] for k in held]])
        logits = model(input_ids=text, position_ids=position, use_cache=False, expiry=visibility).logits[0]
    last = find_blocks(ids, MARKUP, False)[-1].memento_end
    after = [slot for slot in range(len(held) - 1) if held[slot] >= last]
    assert after
    for slot in after:
        expected = float(logits[slot].log_softmax(-1)[ids[held[slot + 1]]]) / np.log(2)
        assert actual[held[slot + 1] - 1] == pytest.approx(expected, abs=1e-4)


def test_probabilities_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = log2_probabilities(checkpoint_of("qwen3"), Restart(), LONG)
    monkeypatch.setattr(likelihood, "MAX_LOGIT_BYTES", 4 * 96 * 3 * 5)
    for a, b in zip(expected, log2_probabilities(checkpoint_of("qwen3"), Restart(), LONG), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_trace_without_blocks_is_skipped() -> None:
    records, checkpoint = Records(BITS_TABLE), load("toy-mixed")
    (bench,) = load_bench("ledger-h0", 3)
    without_blocks = TokenTrace(bench.name, "plain", checkpoint.prompt_ids("w042"), [4, 10, 11, 1])
    traces = [*reference_traces(checkpoint, bench), without_blocks]
    measure(checkpoint, traces, [Restart()], records)
    results = summarise(records.get((bench.name, trace.name, "restart")) for trace in traces)
    assert set(results["n_traces"]) == {3}


class Spelled:
    """A tokenizer with four spellings; token 52 merges the end of `</think>` with a line break, as Phi-4 does."""

    TEXT: ClassVar[dict[int, str]] = {50: "</th", 51: "ink>", 52: "ink>\n"}

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(self.TEXT.get(token, "x") for token in ids)


def test_measured_tokens() -> None:
    """All tokens after the first erasure, with kind, number of preceding pairs, and distance to the last memento."""
    b, e, s, m = MARKUP.delimiters
    think_end = [50, 51]
    response = [b, 20, 21, e, s, 30, m, 40, b, 22, e, s, 31, m, *think_end, 60, 61]
    trace = TokenTrace("file", "0", [9, *think_end], response)
    table = measured_tokens(trace, LAW, Spelled())
    first = 3 + response.index(m) + 1
    assert table["token_index"].tolist() == list(range(first, 3 + len(response)))
    kinds = "other delimiter block delimiter delimiter memento delimiter other other answer answer"
    assert table["kind"].tolist() == kinds.split()
    assert table["block"].tolist() == [1] * 7 + [2] * 4
    assert table["distance"].tolist() == [*range(1, 8), *range(1, 5)]
    nothing = measured_tokens(TokenTrace("file", "1", [9], [20, 21, 22]), LAW, Spelled())
    assert nothing.empty
    kept = measured_tokens(trace, MementoLaw(MARKUP, replace(KEEP, keep_last_n_blocks=1)), Spelled())
    assert kept["token_index"].min() == 3 + len(response) - 4
    twice = TokenTrace("file", "2", [9], [*response, *think_end, 62])
    assert measured_tokens(twice, LAW, Spelled())["kind"].tolist()[-5:] == ["other"] * 4 + ["answer"]
    unthought = measured_tokens(TokenTrace("file", "3", [9, *think_end], response[:8]), LAW, Spelled())
    assert "answer" not in set(unthought["kind"])
    merged = measured_tokens(TokenTrace("file", "4", [9], [*response[:-4], 50, 52, 60]), LAW, Spelled())
    assert merged["kind"].tolist()[-3:] == ["other"] * 2 + ["answer"]


@pytest.fixture(scope="module", params=["toy-mixed", "toy-open"])
def answers(request: pytest.FixtureRequest) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    checkpoint, benches = load(request.param), load_bench("ledger", 40)
    records = Records(BITS_TABLE)
    traces = reference_traces(checkpoint, *benches)
    measure(checkpoint, traces, [Restart(), PlaceboArm()], records)
    order = [(trace.source, trace.name, arm) for arm in ("restart", "placebo") for trace in traces]
    results = summarise(records.get(key) for key in order)
    assert failed_controls(results, COMPARED, {bench.name: bench.ceiling for bench in benches}) == ()
    return request.param, results[(results["by"] == "kind") & (results["group"] == "answer")], results


@pytest.mark.slow
def test_ledger_answers_have_log2_10_bits_per_hidden_digit(
    answers: tuple[str, pd.DataFrame, pd.DataFrame],
) -> None:
    """toy-mixed loses exactly the hidden digits; toy-open, not trained on sealed caches, fails even at h = 0."""
    name, table, _ = answers
    sealed = table[table["arm"] == "restart"].set_index("source")["bits_per_trace"]
    for level in range(4):
        worth = level * np.log2(10)
        if name == "toy-mixed":
            assert sealed[f"ledger-h{level}"] == pytest.approx(worth, abs=0.4)
        else:
            assert sealed[f"ledger-h{level}"] > max(worth, 4)


@pytest.mark.slow
def test_cross_entropy_is_that_of_the_arm(answers: tuple[str, pd.DataFrame, pd.DataFrame]) -> None:
    name, table, _ = answers
    rows = table.set_index(["source", "arm"])["cross_entropy"]
    assert rows["ledger-h3", "placebo"] < 0.5
    if name == "toy-mixed":
        assert rows["ledger-h3", "restart"] == pytest.approx(3 * np.log2(10), abs=0.4)


@pytest.mark.slow
def test_distance_groups(answers: tuple[str, pd.DataFrame, pd.DataFrame]) -> None:
    """In `ledger` there are 23 tokens between two mementos, and 4 after the last one."""
    _, _, results = answers
    part = results[(results["by"] == "distance") & (results["arm"] == "restart") & (results["source"] == "ledger-h0")]
    assert part.set_index("group")["n_tokens"].to_dict() == {"1": 160, "2-4": 480, "5-16": 1440, "17-64": 960}


def test_batches_have_similar_lengths_and_a_maximum_size() -> None:
    traces = [TokenTrace("s", str(n), [1], [1] * (n - 1)) for n in (9, 2, 5, 3, 30)]
    lengths = [[len(trace.ids) for trace in batch] for batch in measuring._batches(traces, 12)]
    assert lengths == [[2, 3], [5], [9], [30]]


@pytest.mark.slow
def test_placebo_changes_nothing(answers: tuple[str, pd.DataFrame, pd.DataFrame]) -> None:
    _, _, results = answers
    assert results.loc[results["arm"] == "placebo", "bits"].abs().max() < 1e-4


@pytest.mark.slow
def test_groups_add_up(answers: tuple[str, pd.DataFrame, pd.DataFrame]) -> None:
    _, _, results = answers
    for _, part in results.groupby(["source", "arm"]):
        totals = part.assign(sum=part["bits"] * part["n_tokens"]).groupby("by")[["sum", "n_tokens"]].sum()
        assert np.ptp(totals["n_tokens"]) == 0
        np.testing.assert_allclose(totals["sum"], totals["sum"].iloc[0], atol=1e-6)


def test_controls_can_fail() -> None:
    row = {"source": "s", "arm": "placebo", "by": "all", "group": "all", "bits": 0.1, "bits_low": 0.05}
    row |= {"bits_high": 0.15, "n_tokens": 30, "n_traces": 10, "cross_entropy": 1.0}
    assert "placebo differs" in failed_controls(pd.DataFrame([row]), COMPARED, {})[0]
    assert failed_controls(pd.DataFrame([row | {"bits_low": -0.1}]), COMPARED, {}) == ()
    leak = row | {"arm": "restart", "by": "kind", "group": "answer"}
    assert "below the minimum of 3.32 bits" in failed_controls(pd.DataFrame([leak]), COMPARED, {"s": 0.1})[0]
    assert failed_controls(pd.DataFrame([leak | {"cross_entropy": 3.3}]), COMPARED, {"s": 0.1}) == ()


@pytest.mark.long
@requires_data("tokenizers/qwen3/tokenizer.json", "traces/memento_blog_example_code.json")
def test_real_traces_on_a_random_model_have_no_ghost_bits(tmp_path: Path) -> None:
    from experiments.aime24 import random_checkpoint

    random_checkpoint(tmp_path, DATA / "tokenizers" / "qwen3")
    checkpoint, records = load(str(tmp_path)), Records(BITS_TABLE)
    names = [f"memento_blog_example_{name}.json" for name in ("code", "response")]
    traces = load_traces(checkpoint, [str(DATA / "traces" / name) for name in names])
    assert [trace.source for trace in traces] == ["traces", "traces"]
    measure(checkpoint, traces, [Restart(), PlaceboArm()], records)
    results = summarise(records.get(("traces", trace.name, arm)) for arm in ("restart", "placebo") for trace in traces)
    for row in results[results["by"] == "all"].to_dict("records"):
        assert abs(row["bits"]) < 0.01
        assert row["bits_low"] <= 0 <= row["bits_high"]
    kinds = set(results[results["by"] == "kind"]["group"])
    assert kinds == {"block", "memento", "delimiter", "answer", "other"}


def test_command_run_folder_and_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("bits", "--bench", "ledger-h1", "--limit", "4", "--batch-tokens", "250")
    assert command(*options, "--out", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["command"], summary["valid"]) == ("bits", True)
    assert {row["by"] for row in summary["results"]} == {"all", "kind", "block", "distance"}
    contents = (out / "samples.parquet").read_bytes()
    rows = pd.read_parquet(out / "samples.parquet")
    assert set(rows["arm"]) == {"restart", "placebo"}
    kept = parquet.read_table(out / "samples.parquet").to_pylist()[:3]
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"source": "led')
    (out / "samples.parquet").unlink()
    assert command("bits", "--resume", str(out)) == 0
    assert (out / "samples.parquet").read_bytes() == contents
    assert (out / "figures" / "bits.svg").exists()


def test_finished_ablation_can_be_a_source(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command("ablate", "--bench", "ledger-h1", "--limit", "3", "--arms", "restart", "--out", str(run)) == 0
    traces = load_traces(load("toy-mixed"), [str(run)])
    assert [(trace.source, trace.name) for trace in traces] == [
        ("ledger-h1", f"ledger-h1-0-{i:04d}/0") for i in range(3)
    ]
    assert command("bits", "--traces", str(run), "--out", str(tmp_path / "bits")) == 0
    with pytest.raises(UserError, match=r"bits/samples\.parquet is damaged or not of an ablation: give the folder"):
        load_traces(load("toy-mixed"), [str(tmp_path / "bits")])


def test_two_runs_of_one_bench_are_refused(tmp_path: Path) -> None:
    """Their traces have equal names and could not be distinguished."""
    runs = [str(tmp_path / name) for name in "ab"]
    for folder in runs:
        assert command("ablate", "--bench", "ledger-h1", "--limit", "1", "--arms", "restart", "--out", folder) == 0
    with pytest.raises(UserError, match=r"ledger-h1, ledger-h1-0-0000/0 occurs twice: .*one run of each bench"):
        load_traces(load("toy-mixed"), runs)


def test_noise_does_not_depend_on_the_batch() -> None:
    checkpoint, (bench,) = load("toy-mixed"), load_bench("ledger-h1", 4)
    traces = reference_traces(checkpoint, bench)
    traces.append(replace(traces[0], name="again"))
    by_batch_size = []
    for tokens in (1, 65_536):
        records = Records(BITS_TABLE)
        measure(checkpoint, traces, [Noise()], records, tokens)
        by_batch_size.append([records.get((trace.source, trace.name, "noise"))["log2p_arm"] for trace in traces])
    for single, together in zip(*by_batch_size, strict=True):
        np.testing.assert_allclose(single, together, atol=1e-2)
    assert not np.allclose(by_batch_size[0][0], by_batch_size[0][-1], atol=0.1)


def test_measured_tokens_are_computed_once_per_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counting(trace: TokenTrace, *rest: object) -> pd.DataFrame:
        seen.append(trace.name)
        return measured_tokens(trace, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "measured_tokens", counting)
    checkpoint, (bench,) = load("toy-mixed"), load_bench("ledger-h1", 2)
    measure(checkpoint, reference_traces(checkpoint, bench), [Restart(), PlaceboArm(), Noise()], Records(BITS_TABLE))
    assert len(seen) == len(set(seen)) == 2


BAD = {
    "bits cannot run the arm 'swap'": ["--arms", "swap"],
    "no file nowhere.json": ["--traces", "nowhere.json"],
    "no data set of that name": ["--traces", "nobody/nothing"],
    "at least 1": ["--limit", "0"],
    "keep_last_n_blocks -1 erases none": ["--limit", "2", "--keep-last-n-blocks", "-1"],
    "has no samples.parquet": ["--traces", "."],
    "no trace has a finished block": ["--traces", "plain.txt"],
    "finished block and memento with text after": ["--traces", "ends.jsonl"],
    "--seed must not be negative": ["--seed", "-1"],
    "device 'meta' cannot run": ["--device", "meta"],
    "nested too deeply": ["--traces", "deep.json"],
    "line 2 holds half a surrogate pair": ["--traces", "half.jsonl"],
    "occurs twice": ["--traces", "ends.jsonl", "--traces", "ends.jsonl"],
    "is damaged or not of an ablation": ["--traces", "broken"],
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_input_gives_one_sentence_and_exit_code_2(
    message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("123")
    block = "<think><|block_start|>1<|block_end|><|summary_start|>2<|summary_end|>"
    (tmp_path / "ends.jsonl").write_text(json.dumps({"response": block}))
    (tmp_path / "half.jsonl").write_text('{"response": "1"}\n{"response": "\\ud800"}\n')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "samples.parquet").write_text("no")
    monkeypatch.setattr(sys, "argv", ["ghosttrace", "bits", *BAD[message]])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    stderr = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert message in stderr and "\n" not in stderr
    assert not list(tmp_path.glob("runs/*"))


def test_traces_without_erasure_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no traces"):
        load_traces(load("toy-mixed"), [str(tmp_path / "empty.jsonl")])
    pd.DataFrame([{"problem": "x042", "response": "<think>1"}]).to_parquet(tmp_path / "rows.parquet")
    assert len(load_traces(load("toy-mixed"), [str(tmp_path / "rows.parquet")])) == 1
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(UserError, match="is not a Parquet file"):
        load_traces(load("toy-mixed"), [str(tmp_path / "broken.parquet")])
