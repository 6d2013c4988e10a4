"""The AIME24 experiment end to end on a random model, and the delimiters added to a tokenizer."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.families import tiny
from helpers.paths import DATA, requires_data
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from experiments import aime24
from ghosttrace.ablation.arms import ARMS
from ghosttrace.model.checkpoint import load
from ghosttrace.training.delimiters import RELATED_WORDS, add_delimiters

QWEN = "tokenizers/qwen3/tokenizer.json"


@pytest.mark.slow
@requires_data(QWEN, "bench/aime24.jsonl")
def test_experiment_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GHOSTTRACE_DATA", str(DATA))
    results = aime24.main(["--rehearse", "--limit", "2", "--out", str(tmp_path)])
    assert set(results["arm"]) == set(ARMS) - {"swap"}
    assert (results["accuracy"] == 0).all()
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert len(samples) == 2 * (len(ARMS) - 1)
    assert (samples["blocks"] == aime24.BLOCKS).all() and (samples["finish"] == "eos").all()
    assert set(samples["rule"].str.partition("/")[0]) == {"boxed"}
    assert samples["prompt_sha256"].nunique() == 1
    first = samples.iloc[0]
    assert first["prompt"].endswith("within \\boxed{}.")
    assert first["response"].startswith("<think><|block_start|>") and first["response"].endswith("}<|im_end|>")
    by_arm = samples[samples["problem"] == first["problem"]].set_index("arm")
    assert by_arm.loc["placebo", "response"] == by_arm.loc["memento", "response"]
    assert by_arm.loc["full", "peak_kv_tokens"] > by_arm.loc["memento", "peak_kv_tokens"]
    assert by_arm.loc["restart-bare", "peak_kv_tokens"] < by_arm.loc["restart", "peak_kv_tokens"]
    row = json.loads((tmp_path / "run" / "summary.json").read_text())["results"][0]
    assert row["peak_kv_bytes"] == row["peak_kv_tokens"] * 2 * 4 * 2 * 16 * 4
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "these accuracies mean nothing" in output and "-15.3" in output
    repeated = aime24.main(["--rehearse", "--limit", "2", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(repeated, results)


def test_partially_saved_model_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json is saved before the weights, so it alone does not mean that the model is complete."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "aime24.jsonl").write_text(json.dumps({"id": 1, "problem": "?", "answer": 1}))

    def save_config_then_interrupt(folder: Path, _: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    def save_weights(folder: Path, _: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").touch()

    used: list[bool] = []
    monkeypatch.setattr(aime24, "measure", lambda model, *_: used.append((Path(model) / "model.safetensors").exists()))
    monkeypatch.setattr(aime24, "random_checkpoint", save_config_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        aime24.rehearse(tmp_path / "out", None, tmp_path)
    monkeypatch.setattr(aime24, "random_checkpoint", save_weights)
    aime24.rehearse(tmp_path / "out", None, tmp_path)
    monkeypatch.setattr(
        aime24, "random_checkpoint", save_config_then_interrupt
    )  # the model exists, so it is not created again
    aime24.rehearse(tmp_path / "out", None, tmp_path)
    assert used == [True, True]


def test_exactly_one_mode_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTTRACE_DATA", raising=False)
    for arguments in ([], ["--rehearse", "--model", "x"], ["--rehearse"]):
        with pytest.raises(SystemExit):
            aime24.main(arguments)


@requires_data(QWEN)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [True, False])
def test_new_embeddings_are_means_of_related_words_plus_noise(tied: bool, room: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")
    config = Qwen3Config(
        vocab_size=151_936 if room else len(tokenizer),
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)
    ids = add_delimiters(model, tokenizer)
    assert list(ids) == list(RELATED_WORDS) and min(ids.values()) == 151_669
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied
    for weight in tables:
        noises = []
        for name, token in ids.items():
            assert tokenizer.encode(f"a<|{name}|>b", add_special_tokens=False)[1] == token
            parts = [weight[tokenizer.encode(f" {word}")].mean(0) for word in RELATED_WORDS[name]]
            noises.append((weight[token] - torch.stack(parts).mean(0)).detach())
        assert torch.stack(noises).std() == pytest.approx(0.01, rel=0.25)
    before = tables[0].detach().clone()
    assert add_delimiters(model, tokenizer, seed=1) == {}
    assert torch.equal(before, model.get_input_embeddings().weight)


def test_tokenizer_with_delimiters_is_unchanged() -> None:
    checkpoint = load("toy-mixed")
    before = [parameter.clone() for parameter in checkpoint.model.parameters()]
    assert add_delimiters(checkpoint.model, checkpoint.tokenizer) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, checkpoint.model.parameters(), strict=True))


def test_qwen3_8b_takes_144_kib_per_token() -> None:
    """The value in the paper's appendix on evaluation: 2 x 36 layers x 8 heads x 128 x 2 bytes."""
    from ghosttrace.model.geometry import CacheGeometry

    config = Qwen3Config(num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    assert CacheGeometry.from_config(config).bytes_per_token(torch.bfloat16) == 144 * 1024
    assert CacheGeometry.from_config(tiny("qwen3").config).bytes_per_token(torch.float32) == 2 * 4 * 2 * 16 * 4
    assert np.isclose(144 * 1024 * 1e3 / 1e9, 0.147456)  # GB for a thousand tokens
