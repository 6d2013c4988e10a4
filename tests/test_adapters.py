"""Bundled adapters: merged into their base once, and refused on any other base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.paths import requires_smollm2
from helpers.training import QUICK, command, ledger_rows
from safetensors.torch import load_file, save_file

from experiments.bundle_adapter import bundle
from ghosttrace.errors import UserError
from ghosttrace.model import checkpoint
from ghosttrace.model.adapters import EMBEDDINGS, merged_model, revision, weights_sha256
from ghosttrace.model.checkpoint import ADAPTED_MODELS, BUNDLED_MODELS, load, load_config, resolve_pretrained_path

WEIGHT = "model.layers.1.mlp.down_proj.weight"
ADAPTERS = [name for name in ADAPTED_MODELS if (Path(checkpoint.__file__).parents[1] / "checkpoints" / name).exists()]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_pretrained_path("toy-open"), tmp_path / "base"))


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    toy, folder = load("toy-open"), tmp_path / "small-open"
    folder.mkdir()
    torch.manual_seed(0)
    rows, columns = toy.model.get_parameter(WEIGHT).shape
    changes = {f"{WEIGHT}.A": torch.randn(2, columns), f"{WEIGHT}.B": torch.randn(rows, 2)}
    save_file(changes | {EMBEDDINGS: torch.randn(4, 128)}, folder / "adapter.safetensors")
    spelled = toy.tokenizer.convert_ids_to_tokens(list(toy.markup.delimiters))
    record = {"policy": {"mask_delimiters": False}, "stages": ["memento"]}
    described = {"base": "toy-open", "base_revision": weights_sha256(base), "scale": 0.5, "ghosttrace": record}
    described["delimiters"] = dict(
        zip(("block_start", "block_end", "summary_start", "summary_end"), spelled, strict=True)
    )
    (folder / "adapter.json").write_text(json.dumps(described))
    (folder / "chat_template.jinja").write_text(toy.tokenizer.chat_template)
    return folder


def test_merged_weights_are_base_plus_low_rank_difference(adapter: Path, base: Path) -> None:
    merged, toy = load(merged_model(adapter, base)), load("toy-open")
    changes = load_file(adapter / "adapter.safetensors")
    expected = dict(toy.model.state_dict())
    expected[WEIGHT] = expected[WEIGHT].float() + 0.5 * changes[f"{WEIGHT}.B"] @ changes[f"{WEIGHT}.A"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected[name] = expected[name].float().clone()
        expected[name][list(toy.markup.delimiters)] = changes[EMBEDDINGS]
    found = merged.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name].float(), atol=1e-6) for name in expected)
    assert (merged.policy.mask_delimiters, merged.stages) == (False, ("memento",))
    assert merged.markup == toy.markup


def test_merging_happens_once_per_adapter(adapter: Path, base: Path) -> None:
    first = merged_model(adapter, base)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert merged_model(adapter, base) == first and (first / "model.safetensors").stat().st_mtime_ns == written
    changes = load_file(adapter / "adapter.safetensors")
    save_file({name: 2 * tensor for name, tensor in changes.items()}, adapter / "adapter.safetensors")
    assert merged_model(adapter, base) != first
    assert not list(base.parent.glob("*.partial"))


def test_another_revision_of_the_base_is_refused_with_both_hashes(adapter: Path, base: Path) -> None:
    trained_on = weights_sha256(base)
    weights = load_file(base / "model.safetensors")
    weights[WEIGHT][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="run `make lm` again") as refused:
        merged_model(adapter, base)
    assert trained_on in str(refused.value) and weights_sha256(base) in str(refused.value)
    assert trained_on != weights_sha256(base) and not list(base.parent.glob("small-open-*"))


def test_an_adapted_base_is_told_by_its_adapter(adapter: Path, base: Path, tmp_path: Path) -> None:
    """The weights that a merge writes differ between machines in their last bits."""
    first = merged_model(adapter, base)
    weights = load_file(first / "model.safetensors")
    save_file({name: 1.0000001 * tensor for name, tensor in weights.items()}, first / "model.safetensors")
    second = Path(shutil.copytree(adapter, tmp_path / "small-mixed"))
    record = json.loads((second / "adapter.json").read_text())
    (second / "adapter.json").write_text(json.dumps(record | {"base": "small-open", "base_revision": first.name}))
    with pytest.raises(UserError, match="small-mixed was trained on small-open of the revision small-open-"):
        merged_model(second, base)
    folder = first.with_name("small-open-0123456789ab")
    shutil.copytree(first, folder)
    with pytest.raises(UserError, match="is small-open-0123456789ab: delete that folder"):
        merged_model(second, folder)
    assert revision(first) == first.name and revision(base) == weights_sha256(base)
    assert merged_model(second, first).name.startswith("small-mixed-")


def test_missing_base_names_make_lm(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"small-open is a difference from toy-open, .* run `make lm`"):
        merged_model(adapter, tmp_path / "nowhere")


@pytest.mark.slow
def test_bundled_run_merges_into_the_trained_model(base: Path, tmp_path: Path) -> None:
    run, adapter = tmp_path / "run", tmp_path / "toy-more"
    flags = [*QUICK, "--max_steps", "2", "--save_steps", "2", "--learning_rate", "1e-2", "--use_peft"]
    targets = ["--lora_target_modules", "q_proj", "down_proj"]
    command(
        "--model", str(base), "--data", str(ledger_rows(tmp_path / "rows.jsonl")), "--out", str(run), *flags, *targets
    )
    bundle(run, str(base), "toy-more", adapter)
    start, trained, merged = (load(folder) for folder in (base, run / "model", merged_model(adapter, base)))
    assert (merged.policy, merged.stages) == (trained.policy, trained.stages)
    for name, weight in trained.model.state_dict().items():
        moved = (weight - start.model.state_dict()[name]).float().norm()
        off = (merged.model.state_dict()[name] - weight).float().norm()
        assert off <= 0.02 * moved + 4e-3 * weight.norm() * ("embed" in name or "lm_head" in name), name
        assert (moved > 0) == any(part in name for part in ("q_proj", "down_proj", "embed", "lm_head")), name


@pytest.mark.parametrize("name", ADAPTERS)
def test_bundled_adapters_are_small(name: str) -> None:
    folder = Path(checkpoint.__file__).parents[1] / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16e6
    assert json.loads((folder / "adapter.json").read_text())["base"] == ADAPTED_MODELS[name]
    assert name not in BUNDLED_MODELS


@requires_smollm2
@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_bundled_adapters_load_by_name(name: str) -> None:
    model = load(name)
    assert (
        set(model.stages) == {"memento"} and not model.policy.mask_delimiters and model.policy.keep_last_n_blocks == 0
    )
    assert (
        model.prompt_ids("Hi.")
        == model.tokenizer("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )
    assert load_config(name).model_type == "llama"
