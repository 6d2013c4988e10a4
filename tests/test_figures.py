"""The figures in `figures/` are those that the recorded results give, and can be told apart without colour."""

from pathlib import Path

import pytest

from experiments.drawing import FOLDER, LOOKS, save
from experiments.figures import FIGURES

ROOT = Path(__file__).parent.parent
PICTURES = {"report"}  # of a page, taken in a browser


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_up_to_date(name: str, tmp_path: Path) -> None:
    """Run `make figures` if this fails."""
    save(name, FIGURES[name](), tmp_path)
    assert (tmp_path / f"{name}.svg").read_bytes() == (FOLDER / f"{name}.svg").read_bytes()


def test_every_file_is_drawn_and_used() -> None:
    files = {path.stem for path in FOLDER.iterdir()}
    pages = "".join(page.read_text() for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    assert files == set(FIGURES) | PICTURES
    assert [name for name in files if f"figures/{name}.png" not in pages] == []


def test_series_differ_without_colour() -> None:
    assert len({(look["linestyle"], look["marker"]) for look in LOOKS}) == len(LOOKS)
