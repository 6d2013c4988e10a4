"""Imports on first use, so that a command starts before torch and transformers are loaded (PEP 562)."""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

Class = TypeVar("Class")


def attribute_loader(package: str, file: str) -> Callable[[str], Any]:
    """Return the function `__getattr__` of a package that imports its public names when they are first used.

    The public names are those that the package imports under `if TYPE_CHECKING:`, where type checkers and editors read
    them as well.

    Args:
        package: the package's `__name__`.
        file: the package's `__file__`.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    module_of = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


class LazyClasses(Mapping[str, type[Class]]):
    """Classes by the name with which a user selects them, each imported when it is first read.

    Args:
        package: package whose modules define the classes.
        paths: `module.Class` below the package, by name.
    """

    def __init__(self, package: str, paths: Mapping[str, str]) -> None:
        self._package, self._paths = package, dict(paths)

    def __getitem__(self, name: str) -> type[Class]:
        module, _, class_name = self._paths[name].rpartition(".")
        kind: type[Class] = getattr(import_module(f"{self._package}.{module}"), class_name)
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
