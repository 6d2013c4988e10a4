"""Loading a checkpoint: required contents, and errors if they are missing."""

import json
import shutil
from pathlib import Path

import pytest

from ghosttrace.errors import UserError
from ghosttrace.model import checkpoint
from ghosttrace.model.checkpoint import load, resolve_pretrained_path


def with_changed_config(tmp_path: Path, **change: object) -> Path:
    """Return a copy of a bundled model with keys of its config changed; None removes a key."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_pretrained_path("toy-mixed"), folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | change).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_policy_must_be_recorded_or_given(tmp_path: Path) -> None:
    folder = with_changed_config(tmp_path, ghosttrace=None)
    with pytest.raises(UserError, match="--mask-delimiters"):
        load(str(folder))
    assert load(str(folder), mask_delimiters=True).policy == load("toy-mixed").policy


def test_missing_delimiters_are_named(tmp_path: Path) -> None:
    folder = with_changed_config(tmp_path)
    text = (folder / "tokenizer.json").read_text().replace("<|block_end|>", "<|stop|>")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"has no <\|block_end\|>: .*--map-delimiters"):
        load(str(folder))
    assert load(str(folder), delimiters={"block_end": "<|stop|>"}).markup == load("toy-mixed").markup


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = with_changed_config(tmp_path, ghosttrace={"policy": {"mask_delimiters": True, "colour": "red"}})
    with pytest.raises(UserError, match="unknown fields colour"):
        load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_without_colour(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="chat template"):
        load(str(folder))


def load_without_colour(folder: Path) -> object:
    config = json.loads((folder / "config.json").read_text())
    config["ghosttrace"] = {"policy": {"mask_delimiters": True}}
    (folder / "config.json").write_text(json.dumps(config))
    return load(str(folder))


def test_a_model_that_was_not_downloaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "resolve_pretrained_path", lambda name: str(tmp_path / name))
    with pytest.raises(UserError, match=r"run `make lm`.*HuggingFaceTB/SmolLM2-135M-Instruct"):
        load("smollm2-135m")
