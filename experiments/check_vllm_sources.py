"""Claim: vLLM's sources have every method and attribute that GhostTrace depends on, with the expected parameters.

Parses a wheel or a folder of vLLM's sources with `ast`. Nothing is imported or run, so versions without a build for
this machine can be compared too. An unchanged signature does not imply unchanged behaviour.

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
"""Attention backends whose `do_kv_cache_update` is compared: class by module."""

SourceReader = Callable[[str], str | None]
"""Function from a path relative to the folder `vllm` to the file's text; None if there is no such file."""


def open_sources(path: Path) -> SourceReader:
    """Return a reader of the sources in a wheel or a folder.

    Raises:
        UserError: If the path is neither a folder nor a wheel.
    """
    if path.is_dir():
        root = path / "vllm" if (path / "vllm").is_dir() else path
        return lambda name: (root / name).read_text() if (root / name).is_file() else None
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a wheel: pass the path of a vLLM wheel or source folder")
    wheel = zipfile.ZipFile(path)
    names = set(wheel.namelist())
    return lambda name: wheel.read(f"vllm/{name}").decode() if f"vllm/{name}" in names else None


def parameters(method: ast.FunctionDef) -> tuple[str, ...]:
    """Return a method's parameter names in order, as `PrivateName.parameters` holds them."""
    arguments = method.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return tuple(names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else []))


class TraceSources:
    """The classes in vLLM's sources, parsed on demand.

    Args:
        read: Reader of the sources, as `open_sources` returns it.
    """

    def __init__(self, read: SourceReader) -> None:
        self._read = read
        self.owner = cache(self._owner)

    def _owner(self, module: str, name: str) -> ast.ClassDef | None:
        path = module.removeprefix("vllm.").replace(".", "/")
        text = self._read(f"{path}.py") or self._read(f"{path}/__init__.py") or ""
        nodes = ast.parse(text).body
        return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)

    def describe_change(self, private_name: PrivateName) -> str | None:
        """Return a sentence on how a private name differs from the expected one; None if it is as expected."""
        owner = self.owner(private_name.module, private_name.owner)
        if owner is None:
            return f"{private_name}: there is no such class"
        if private_name.parameters is None:
            return (
                None if private_name.name in class_attributes(owner) else f"{private_name}: there is no such attribute"
            )
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name == private_name.name:
                now = parameters(node)
                return None if now == private_name.parameters else f"{private_name}: it now takes ({', '.join(now)})"
        return f"{private_name}: there is no such method"


def compare(read: SourceReader, version: str) -> list[str]:
    """Return a sentence for each private name of this version that the sources do not have as expected."""
    backends = [PrivateName("runner", *pair, "do_kv_cache_update", KV_UPDATE_PARAMETERS) for pair in BACKENDS.items()]
    sources = TraceSources(read)
    names = (*private_names(version), *backends)
    return [change for name in names if (change := sources.describe_change(name))]


def main() -> None:
    """Compare the sources with the private names of one supported version or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="vLLM wheel or source folder")
    parser.add_argument(
        "--version", choices=SUPPORTED_VERSIONS, help="version whose private names to compare with; all by default"
    )
    chosen = parser.parse_args()
    read = open_sources(chosen.sources)
    fits = []
    for version in [chosen.version] if chosen.version else SUPPORTED_VERSIONS:
        changes = compare(read, version)
        n_names = len(private_names(version)) + len(BACKENDS)
        print(f"private names of {version}: {n_names} compared, {len(changes)} changed")
        print(*(f"  {sentence}" for sentence in changes), sep="\n", end="\n" if changes else "")
        fits.append(not changes)
    sys.exit(0 if any(fits) else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
