"""The passcode experiment end to end: short traces on a random model, table and figure."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.paths import DATA, requires_data

from experiments import passcode
from ghosttrace.law.markup import find_blocks

QWEN = "tokenizers/qwen3/tokenizer.json"


def response(number: int) -> str:
    pairs = "".join(
        f"<|block_start|>Step {i} of {number}. We add. Done.<|block_end|><|summary_start|>Sum {i}.<|summary_end|>"
        for i in range(4)
    )
    return f"<think>\n{pairs}</think>\nDone."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    passcode.random_checkpoint(folder, DATA / "tokenizers" / "qwen3")
    return folder


@pytest.mark.slow
@requires_data(QWEN)
def test_experiment_runs_end_to_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = tmp_path / "traces.jsonl"
    traces.write_text("\n".join(json.dumps({"problem": "?", "response": response(i)}) for i in range(36)))
    arguments = ["--model", str(model), "--traces", str(traces), "--samples", "4", "--out", str(tmp_path)]
    results = passcode.main(arguments)
    assert {"-1", "0", "1"} <= set(results["hop"].dropna().astype(int).astype(str))
    assert set(results["layer"]) >= {"0", "1", "2", "3", "joint"}
    assert set(results["kv"]) - {""} == {"kv"} and set(results["target"]) == {"digit-*"}
    assert (results[results["condition"] == "unerased"]["bits"] > 0.5).any()  # the tokens of the code itself reveal it
    output = capsys.readouterr().out
    for figure in ("10.8", "64.9", "71.2", "26.5", "23.0"):
        assert figure in output
    written = pd.read_parquet(tmp_path / "run" / "traces.parquet")
    assert len(written) == 144 and written["secret"].nunique() == 144 and (written["block"] == 1).all()
    assert written["secret"].str.fullmatch("[0-9]{5}").all()
    resumed = passcode.main(arguments)  # reads the finished run
    pd.testing.assert_frame_equal(resumed, results)
    figure = passcode.draw(results)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "M₂, direct" in labels and "M₁, sealed" not in labels and "M₃, sealed" in labels


@requires_data(QWEN, *(f"traces/{name}" for name in passcode.TRACES))
def test_real_traces_end_after_the_third_memento(model: Path) -> None:
    checkpoint = passcode.load(str(model))
    task = passcode.passcodes(checkpoint, [str(DATA / "traces" / name) for name in passcode.TRACES], 40, 0)
    assert len(task.samples) == 80 and set(task.exact_log_posteriors) == {f"digit-{digit}" for digit in range(5)}
    for sample in task.samples:
        pairs = find_blocks(sample.ids, checkpoint.markup)
        assert len(pairs) == 3 and pairs[2].memento_end == len(sample.ids) - 1
        assert pairs[1].start < min(sample.secret_indices) <= max(sample.secret_indices) < pairs[1].end


def test_model_needs_traces_and_rehearsal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTTRACE_DATA", raising=False)
    for arguments in ([], ["--model", "x"], ["--traces", "x"], ["--rehearse", "--model", "x"], ["--rehearse"]):
        with pytest.raises(SystemExit):
            passcode.main(arguments)
