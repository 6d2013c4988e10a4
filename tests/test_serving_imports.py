"""Who may import whom in `ghosttrace/serving`."""

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
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{one.name}" for one in node.names)


def inside(room: str, found: str) -> bool:
    return found == room or found.startswith(f"{room}.")


def test_shared_code_imports_neither_server_and_the_servers_not_each_other() -> None:
    rooms = {"vllm": "ghosttrace.serving.vllm", "http": "ghosttrace.serving.http"}
    files = sorted(SERVING.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        folder = path.parent.name
        for name, room in rooms.items():
            if folder != name:
                wrong = [found for found in imports(path) if inside(room, found)]
                assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_vllm_is_imported_in_its_folder_alone() -> None:
    for path in ROOT.rglob("*.py"):
        if path.parent != SERVING / "vllm":
            assert not [found for found in imports(path) if inside("vllm", found)], path


def test_packages_export_no_name_of_a_module() -> None:
    for package in (SERVING, SERVING / "vllm", SERVING / "http"):
        tree = ast.parse((package / "__init__.py").read_text())
        assert len(tree.body) == 1 and len(ast.get_docstring(tree) or "") > 20
