"""The claim: vLLM's sources have every method and attribute that GhostTrace depends on, with the parameters it expects.

Reads a wheel, or a folder that holds vLLM's sources, with `ast`: nothing is imported or run, so that a version without
a build for this machine can be compared too. An unchanged signature does not show that its meaning is unchanged.

`PYTHONPATH=. python experiments/check_vllm_sources.py vllm-0.33.0-….whl` (or the folder of an installed `vllm`).
"""

import argparse
import ast
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.private_api import KV_UPDATE_PARAMETERS, SUPPORTED_VERSIONS, PrivateName, private_names
from ghosttrace.serving.vllm.private_api_check import class_attributes

BACKENDS = {
    "vllm.v1.attention.backends.cpu_attn": "CPUAttentionBackendImpl",
    "vllm.v1.attention.backends.flash_attn": "FlashAttentionImpl",
    "vllm.v1.attention.backends.flashinfer": "FlashInferImpl",
    "vllm.v1.attention.backends.triton_attn": "TritonAttentionImpl",
}
"""Attention backends whose `do_kv_cache_update` is compared, by module."""

SourceReader = Callable[[str], str | None]
"""From a file's path below the folder `vllm` to its text; None if there is no such file."""


def open_sources(path: Path) -> SourceReader:
    """Return a reader of the sources in a wheel or a folder.

    Raises:
        UserError: neither is there.
    """
    if path.is_dir():
        root = path / "vllm" if (path / "vllm").is_dir() else path
        return lambda name: (root / name).read_text() if (root / name).is_file() else None
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a wheel: give vLLM's wheel or its folder")
    wheel = zipfile.ZipFile(path)
    names = set(wheel.namelist())
    return lambda name: wheel.read(f"vllm/{name}").decode() if f"vllm/{name}" in names else None


def parameters(method: ast.FunctionDef) -> tuple[str, ...]:
    """Return a method's parameter names in order, as `PrivateName.parameters` holds them."""
    found = method.args
    names = [one.arg for one in (*found.posonlyargs, *found.args)]
    names += [f"*{found.vararg.arg}"] if found.vararg else []
    names += [one.arg for one in found.kwonlyargs]
    return tuple(names + ([f"**{found.kwarg.arg}"] if found.kwarg else []))


class TraceSources:
    """Classes of vLLM, parsed on demand.

    Args:
        read: see `open_sources`.
    """

    def __init__(self, read: SourceReader) -> None:
        self._read = read
        self.owner = cache(self._owner)

    def _owner(self, module: str, name: str) -> ast.ClassDef | None:
        path = module.removeprefix("vllm.").replace(".", "/")
        text = self._read(f"{path}.py") or self._read(f"{path}/__init__.py") or ""
        return next((one for one in ast.parse(text).body if isinstance(one, ast.ClassDef) and one.name == name), None)

    def describe_change(self, seam: PrivateName) -> str | None:
        """Return a sentence on what has become of a seam; None if it is as expected."""
        owner = self.owner(seam.module, seam.owner)
        if owner is None:
            return f"{seam}: there is no such class"
        if seam.parameters is None:
            return None if seam.name in class_attributes(owner) else f"{seam}: there is no such attribute"
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name == seam.name:
                now = parameters(node)
                return None if now == seam.parameters else f"{seam}: it now takes ({', '.join(now)})"
        return f"{seam}: there is no such method"


def compare(read: SourceReader, version: str) -> list[str]:
    """Return a sentence for every seam of this version that the sources do not have."""
    backends = [PrivateName("runner", *pair, "do_kv_cache_update", KV_UPDATE_PARAMETERS) for pair in BACKENDS.items()]
    sources = TraceSources(read)
    return [moved for seam in (*private_names(version), *backends) if (moved := sources.describe_change(seam))]


def main() -> None:
    """Compare the sources with the table of every version, or of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="a wheel of vLLM, or the folder of its sources")
    parser.add_argument(
        "--version", choices=SUPPORTED_VERSIONS, help="the table to compare with; all of them by default"
    )
    chosen = parser.parse_args()
    read = open_sources(chosen.sources)
    fits = []
    for version in [chosen.version] if chosen.version else SUPPORTED_VERSIONS:
        moved = compare(read, version)
        print(f"private_names of {version}: {len(private_names(version)) + len(BACKENDS)} names, {len(moved)} moved")
        print(*(f"  {sentence}" for sentence in moved), sep="\n", end="\n" if moved else "")
        fits.append(not moved)
    sys.exit(0 if any(fits) else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
