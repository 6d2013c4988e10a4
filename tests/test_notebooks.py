"""The notebooks of analysis/: sources, recorded outputs, and a new execution of each."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.notebook_outputs import close, difference, shown

from analysis.execute import FOLDER, execute, read_source, sources

ROOT = Path(__file__).parent.parent
SOURCES = {path.stem: path for path in sources()}
LONG: set[str] = set()  # notebooks that take more than half a minute
MAX_BYTES = 2_500_000
MACHINE = re.compile(
    r"/(?:home|root|tmp|Users|usr|opt|work)/|site-packages|\.venv|\bat 0x[0-9a-f]+"
)  # paths, addresses
every_notebook = pytest.mark.parametrize("name", SOURCES)


def recorded(name: str) -> Any:
    """Return the notebook as it is in the checkout."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_outputs(notebook: Any) -> list[tuple[str, dict[str, str]]]:
    """Return every output with the source of its cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.source, shown(output)) for cell in cells for output in cell.outputs]


def test_there_are_notebooks_and_each_is_in_the_table() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert SOURCES and {path.stem for path in FOLDER.glob("*.ipynb")} == set(SOURCES)
    assert re.findall(r"^\| \[([\w-]+)\]\(\1\.ipynb\)", readme, flags=re.MULTILINE) == list(SOURCES)


@every_notebook
def test_a_notebook_has_the_cells_of_its_source(name: str) -> None:
    found, expected = recorded(name), read_source(SOURCES[name])
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ], "run `make notebooks`"
    assert found.metadata == expected.metadata and all(not cell.metadata for cell in found.cells)


@every_notebook
def test_a_notebook_explains_every_cell_and_says_what_it_does_not_show(name: str) -> None:
    cells = recorded(name).cells
    assert cells[0].source.startswith("# ") and len(cells[0].source.splitlines()) > 2
    kinds = [cell.cell_type for cell in cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## What this does not show\n")


@every_notebook
def test_recorded_outputs_have_no_errors_warnings_paths_or_addresses(name: str) -> None:
    outputs = code_outputs(recorded(name))
    assert outputs
    for source, output in outputs:
        assert not {"error", "stderr"} & output.keys(), source
        assert not [text for text in output.values() if MACHINE.search(text)], source
        assert "<Figure" not in output.get("text/plain", "") or "image/png" in output, f"not shown: {source}"


def test_the_notebooks_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in SOURCES]
)
def test_an_execution_gives_the_recorded_outputs(name: str) -> None:
    found, expected = code_outputs(execute(SOURCES[name])), code_outputs(recorded(name))
    assert [(source, sorted(output)) for source, output in found] == [
        (source, sorted(output)) for source, output in expected
    ]
    for (source, new), (_, old) in zip(found, expected, strict=True):
        for kind, text in old.items():
            changed = difference(text, new[kind])
            assert changed is None, f"{changed}, in the {kind} of\n{source}"


def test_the_script_refuses_a_name_without_a_notebook() -> None:
    done = subprocess.run([sys.executable, FOLDER / "execute.py", "00-none"], capture_output=True, text=True)
    assert done.returncode == 2 and "00-none" in done.stderr


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("a  1.00  b", "a 1.00 b", True),
        ("bits 3.38", "bits 3.39", True),  # rounded elsewhere
        ("bits 3.38", "bits 3.40", False),
        ("40 problems", "41 problems", False),
        ("7.0 %", "7.1 %", False),
        ("0.0000001234567", "0.0000001234568", True),
        ("1.0e-09", "1.1e-09", False),
        ("[-0.5]", "[0.5]", False),
        ("layer3", "layer4", False),  # a name, not a number
        ("valid: True", "valid: False", False),
    ],
)
def test_outputs_are_compared_with_a_tolerance_for_numbers_alone(old: str, new: str, same: bool) -> None:
    assert (difference(old, new) is None) == same


def test_counts_must_be_equal() -> None:
    assert close("7", "7") and not close("7", "8") and not close("100", "100.5")
