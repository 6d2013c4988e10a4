"""Allowed imports between the modules of `ghosttrace/serving`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ghosttrace

ROOT = Path(ghosttrace.__file__).parent
SERVING = ROOT / "serving"


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in_package(room: str, module: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_shared_code_and_servers_do_not_import_each_other() -> None:
    rooms = {"vllm": "ghosttrace.serving.vllm", "http": "ghosttrace.serving.http"}
    files = sorted(SERVING.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        folder = path.parent.name
        for name, room in rooms.items():
            if folder != name:
                wrong = [module for module in imports(path) if is_in_package(room, module)]
                assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_vllm_is_imported_only_in_its_folder() -> None:
    for path in ROOT.rglob("*.py"):
        if path.parent != SERVING / "vllm":
            assert not [module for module in imports(path) if is_in_package("vllm", module)], path


def test_package_exports_do_not_shadow_modules() -> None:
    for package in (SERVING, SERVING / "vllm", SERVING / "http"):
        tree = ast.parse((package / "__init__.py").read_text())
        assert len(tree.body) == 1 and len(ast.get_docstring(tree) or "") > 20
