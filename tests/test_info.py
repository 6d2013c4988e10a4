"""`info` on bundled models, and on real traces and a real tokenizer."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import Olmo3Config, Qwen3Config

from ghosttrace.cli import main as cli
from ghosttrace.data.info import model_info, trace_info
from ghosttrace.data.read import TraceText, read_traces
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, alive, expiry
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import load_config
from ghosttrace.model.geometry import CacheGeometry

DATA = Path(os.environ.get("GHOSTTRACE_DATA", Path(__file__).parents[2] / "shared"))
QWEN = DATA / "tokenizers" / "qwen3"
real = pytest.mark.skipif(not QWEN.exists(), reason=f"no {QWEN}: set GHOSTTRACE_DATA to the folder with the real data")


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    """Return a folder with the real tokenizer and the geometry of Qwen3-8B."""
    folder = tmp_path / "qwen3"
    shutil.copytree(QWEN, folder)
    config = Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    )
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return str(folder)


@real
def test_qwen3_8b_takes_144_kib_per_token(qwen: str) -> None:
    model = model_info(qwen)
    assert model.bytes_per_token == 144 * 1024
    assert (model.family, model.policy) == ("qwen3", None)
    assert set(model.delimiters.values()) == {None}
    markup = Markup.from_tokenizer(model.tokenizer)
    assert sorted(markup.delimiters) == [151669, 151670, 151671, 151672]
    header = model.tokenizer.decode(markup.assistant_header)
    assert header == "<|im_start|>assistant\n"
    assert model.tokenizer.decode([markup.turn_end]) == "<|im_end|>"


@real
@pytest.mark.parametrize("name", ["response", "code"])
@pytest.mark.parametrize("mask_delimiters", [True, False])
def test_real_traces(qwen: str, name: str, mask_delimiters: bool) -> None:
    """Sizes of blocks equal those of the texts, and the KV curve equals a brute-force count."""
    path = DATA / "traces" / f"memento_blog_example_{name}.json"
    (trace,) = read_traces(path)
    policy, model = Policy(mask_delimiters), model_info(qwen)
    info = trace_info(model, trace, policy)
    segments = json.loads(path.read_text())["segments"]
    for kind, column in (("block", "block_tokens"), ("summary", "memento_tokens")):
        texts = [s["text"] for s in segments if s["type"] == kind]
        expected = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        assert info.blocks[column].tolist() == expected
    assert (info.blocks["erased_keys"] == info.blocks["block_tokens"] + 2 * mask_delimiters).all()
    steps = np.arange(info.tokens)
    held = steps + 1
    for row in info.blocks.itertuples():
        held = held - np.where(steps >= row.erased_at, row.erased_keys, 0)
        assert row.held_before == info.kv_tokens_held[row.erased_at - 1]
        assert row.held_after == row.held_before - row.erased_keys
    np.testing.assert_array_equal(info.kv_tokens_held, held)
    assert info.kv_tokens_held.max() < info.tokens / 1.9


@real
def test_delimiters_in_the_problem_are_ignored(qwen: str) -> None:
    model = model_info(qwen)
    pair = "<|block_start|>a<|block_end|><|summary_start|>b<|summary_end|>"
    info = trace_info(model, TraceText(pair, f"\n<think>\n{pair}</think>"), Policy(True))
    assert len(info.blocks) == 1


def test_info_of_a_bundled_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "trace.txt"
    text.write_text("<think><|block_start|>123<|block_end|><|summary_start|>4<|summary_end|></think>123")
    cli.app(["info", "toy-mixed", "--trace", str(text)], standalone_mode=False)
    output = " ".join(capsys.readouterr().out.split())
    assert "4,096 in float32" in output
    assert "mask_delimiters=True" in output
    assert "peak 11 KV tokens" in output


def test_geometry_of_windows() -> None:
    config = Olmo3Config(num_hidden_layers=4, sliding_window=4096)
    windows = CacheGeometry.from_config(config).windows
    assert windows.count(4096) == 3
    assert windows.count(None) == 1
    assert set(CacheGeometry.from_config(load_config("toy-open")).windows) == {None}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"segments": [{"type": "block"}]}', "give a list of"),
        ("a.json", '{"segments": null}', "give a list of"),
        ("a.json", '{"x": 1}', "neither 'segments' nor 'response'"),
        (None, "", "no file"),
    ],
)
def test_invalid_traces_are_refused(tmp_path: Path, name: str | None, content: str, message: str) -> None:
    path = tmp_path / (name or "missing.json")
    if name:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_traces(path)


def test_openmementos_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    response = "<think><|block_start|>12<|block_end|><|summary_start|>3<|summary_end|></think>3"
    path.write_text("\n".join(json.dumps({"problem": "w1", "response": response, "domain": "math"}) for _ in range(2)))
    traces = read_traces(path)
    assert [t.problem for t in traces] == ["w1", "w1"]
    model = model_info("toy-open")
    info = trace_info(model, traces[0], Policy(True))
    ids = model.tokenizer("<|user|>w1<|assistant|>" + response)["input_ids"]
    times = expiry(ids, Markup.from_tokenizer(model.tokenizer), Policy(True))
    assert info.kv_tokens_held.tolist() == alive(times).tolist()
    assert (times < NEVER).sum() == info.blocks["erased_keys"][0] == 4
    assert len(find_blocks(ids, Markup.from_tokenizer(model.tokenizer))) == 1
