"""The figures in `figures/` are those that the recorded results give, and can be told apart without colour."""

from pathlib import Path

import pytest

from experiments.figures import FIGURES
from ghosttrace.report.looks import LOOKS
from ghosttrace.runs.figures import write_figure

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "figures"
PICTURES = {"report"}  # of a page, taken in a browser


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_up_to_date(name: str, tmp_path: Path) -> None:
    """Run `make figures` if this fails."""
    (tmp_path / "figures").mkdir()
    write_figure(tmp_path, name, FIGURES[name]())
    assert (tmp_path / "figures" / f"{name}.svg").read_bytes() == (FOLDER / f"{name}.svg").read_bytes()


def test_every_file_is_drawn_and_used() -> None:
    files = {path.stem for path in FOLDER.iterdir()}
    pages = "".join(page.read_text() for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    assert files == set(FIGURES) | PICTURES
    assert [name for name in files if f"figures/{name}.png" not in pages] == []


def test_series_differ_without_colour() -> None:
    assert len({(look["linestyle"], look["marker"]) for look in LOOKS}) == len(LOOKS)
