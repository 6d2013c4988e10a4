"""Store a finished LoRA run of `ghosttrace sft` as a bundled adapter.

`python experiments/bundle_adapter.py --run RUN --base smollm2-135m --name smollm2-open` writes the folder
`ghosttrace/checkpoints/NAME`: the low-rank factors and the embeddings of the delimiters in bfloat16, what is needed to
merge them into the base (`ghosttrace.model.adapters`), and the record of the training.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

import ghosttrace as gt
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.adapters import EMBEDDINGS, revision
from ghosttrace.model.checkpoint import load, resolve_pretrained_path
from ghosttrace.model.erasure_config import CONFIG_KEY
from ghosttrace.runs.folder import json_rows
from ghosttrace.training.sft import last_checkpoint

PREFIX = "base_model.model."


def factors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the low-rank factors of a checkpoint, as `NAME.A` and `NAME.B` for each changed weight."""
    renamed = {}
    for name, tensor in load_file(checkpoint / "adapter_model.safetensors").items():
        module, found, side = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if found:
            renamed[f"{module}.weight.{side}"] = tensor.to(torch.bfloat16).contiguous()
    return renamed


def bundle(run: Path, base: str, name: str, out: Path) -> None:
    """Write the adapter of a finished run.

    Args:
        run: Run folder of `ghosttrace sft --use_peft`.
        base: Name of the downloaded model that the run started from.
        name: Name of the new bundled model.
        out: Folder to write.
    """
    checkpoint = last_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise SystemExit(f"{run} has no complete checkpoint: give the folder of a finished run")
    trained = load(run / "model")
    spelled = trained.tokenizer.convert_ids_to_tokens(list(trained.markup.delimiters))
    embeddings: Any = trained.model.get_input_embeddings()
    rows = embeddings.weight[list(trained.markup.delimiters)]
    settings: dict[str, Any] = json.loads((Path(checkpoint) / "adapter_config.json").read_text())
    record = {
        "base": base,
        "base_revision": revision(Path(resolve_pretrained_path(base))),
        "scale": settings["lora_alpha"] / settings["r"],
        "delimiters": dict(zip(DELIMITERS, spelled, strict=True)),
        CONFIG_KEY: getattr(trained.model.config, CONFIG_KEY),
    }
    out.mkdir(parents=True, exist_ok=True)
    tensors = factors(Path(checkpoint)) | {EMBEDDINGS: rows.to(torch.bfloat16).contiguous()}
    save_file(tensors, out / "adapter.safetensors")
    (out / "adapter.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.copy(run / "model" / "chat_template.jinja", out / "chat_template.jinja")
    options = json.loads((run / "run.json").read_text())
    log = json_rows(pd.read_parquet(run / "samples.parquet"))
    training = {key: options[key] for key in ("arguments", "policy", "versions")} | {"name": name, "log": log}
    (out / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def main() -> None:
    """Write the adapter and say how far the merged model is from the trained one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="finished run folder of ghosttrace sft --use_peft")
    parser.add_argument("--base", default="smollm2-135m", help="model that the run started from, downloaded or adapted")
    parser.add_argument("--name", default="smollm2-open", help="name of the bundled model")
    arguments = parser.parse_args()
    out = Path(gt.__file__).parent / "checkpoints" / arguments.name
    bundle(arguments.run, arguments.base, arguments.name, out)
    trained, merged = (load(name).model.state_dict() for name in (arguments.run / "model", arguments.name))
    largest = max(float((trained[name] - merged[name]).abs().max()) for name in trained)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB; largest difference of a weight from the trained model {largest:.1e}")


if __name__ == "__main__":
    main()
