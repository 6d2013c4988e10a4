"""Bundled checkpoints that are stored as a small difference from a model that `make lm` downloads.

A folder in `ghosttrace/checkpoints` holds `adapter.safetensors`, with two low-rank factors `NAME.A` [rank, in] and
`NAME.B` [out, rank] for each changed weight and the embeddings of the delimiters, `adapter.json` and the chat template.
The first use merges the difference into a copy of the base in float32, in `.models`; everything that reads a model's
folder then reads this one.
"""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ghosttrace.errors import UserError
from ghosttrace.model.erasure_config import CONFIG_KEY

EMBEDDINGS = "delimiter_embeddings"


def merged_model(adapter: Path, base: Path) -> Path:
    """Return the folder of the base with the adapter merged into it; the first call makes it.

    Args:
        adapter: Folder with `adapter.safetensors`, `adapter.json` and `chat_template.jinja`.
        base: Folder of the base model.

    Raises:
        UserError: The base is missing, or has other weights than the adapter was trained on.
    """
    record = json.loads((adapter / "adapter.json").read_text())
    if not base.exists():
        raise UserError(
            f"{adapter.name} is a difference from {record['base']}, which has not been downloaded: run `make lm` in a "
            "checkout of this project"
        )
    version = sha256((adapter / "adapter.safetensors").read_bytes()).hexdigest()[:12]
    merged = base.with_name(f"{adapter.name}-{version}")
    if not merged.exists():
        check_base(adapter.name, record, base)
        merge(adapter, record, base, merged)
    return merged


def check_base(name: str, record: dict[str, Any], base: Path) -> None:
    """Check that a base model has the weights that an adapter was trained on.

    Raises:
        UserError: It has others.
    """
    found = revision(base)
    if found != record["base_revision"]:
        raise UserError(
            f"{name} was trained on {record['base']} of the revision {record['base_revision']}, but that in {base} is "
            f"{found}: delete that folder and run `make lm` again"
        )


def revision(base: Path) -> str:
    """Return the revision of a base: the SHA-256 of its weights, or for a merged base the name of its folder.

    That name holds the hash of the merged adapter. The merged weights themselves differ between machines in their last
    bits.
    """
    merged = re.fullmatch(r".+-[0-9a-f]{12}", base.name)
    return base.name if merged else weights_sha256(base)


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and values of all weights in a folder's safetensors files."""
    digest = sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                digest.update(name.encode())
                digest.update(file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def merge(adapter: Path, record: dict[str, Any], base: Path, out: Path) -> None:
    """Write the base with the adapter merged into it.

    Args:
        adapter: Folder of the adapter.
        record: Its `adapter.json`.
        base: Folder of the base model.
        out: New folder; it appears once it is complete.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    delimiters = list(record["delimiters"].values())
    tokenizer.add_special_tokens({"additional_special_tokens": delimiters}, replace_extra_special_tokens=False)
    tokenizer.chat_template = (adapter / "chat_template.jinja").read_text(encoding="utf-8")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    changes = {name: tensor.float() for name, tensor in load_file(adapter / "adapter.safetensors").items()}
    model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(delimiters)] = changes.pop(EMBEDDINGS)
    parameters = dict(model.named_parameters())
    for name in sorted({key.rpartition(".")[0] for key in changes}):
        parameters[name] += record["scale"] * changes[f"{name}.B"] @ changes[f"{name}.A"]
    setattr(model.config, CONFIG_KEY, record[CONFIG_KEY])
    partial = out.with_name(f"{out.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)
