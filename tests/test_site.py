"""The documentation site: it builds without warnings, its links lead somewhere, and it answers a newcomer's questions.

`python tests/test_site.py docs/_build/html` prints the clicks from the start page to each answer.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from filelock import FileLock
from helpers.site import Page, broken_links, clicks, read_pages

import ghosttrace
from ghosttrace.cli.main import app

ROOT = Path(__file__).parent.parent
START = "docs/index.html"
MOST_CLICKS = 2
NEEDED = ("sphinx", "furo", "myst_nb", "trl", "openai")  # of the extra docs
QUESTIONS = {  # question: page, section, and words of the answer
    "How do I give my model its delimiters?": ("docs/checkpoints.html", "your-own-checkpoint", "init-tokens MODEL"),
    "Why is my run invalid?": ("docs/exit-codes.html", "exit-code-12-a-control-failed", "nothing was erased"),
    "What does exit code 11 mean?": ("docs/exit-codes.html", "exit-code-11-not-enough-data", "cannot exclude one"),
    "How do I probe my own traces?": ("docs/probe.html", "traces-of-your-own", "--traces traces.jsonl --secret"),
    "What does `restart` do to positions?": ("docs/restart.html", "what-restart-does-to-positions", "It keeps them."),
    "How do I add an arm?": ("CONTRIBUTING.html", "add-a-method", "ablation/arms/<name>.py"),
    "How do I audit an agent's session?": ("docs/any-eviction.html", "sessions-of-an-agent", "audit --model"),
    "How do I serve sealed?": ("docs/serve.html", "serve-sealed", "ghosttrace serve --model MODEL --arm restart"),
    "How long will it take?": ("docs/speed.html", "how-long-a-run-takes", "ghosttrace plan"),
    "How do I cite?": ("docs/cite.html", "cite", "@software{ghosttrace"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site with warnings as errors, once for all parallel workers; return its folder."""
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        pytest.skip(f"{', '.join(missing)} is not installed: pip install -e '.[docs]'")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            options = ("--fail-on-warning", "--keep-going", "--quiet", "-c", "docs", "-d", folder / "doctrees")
            command = [sys.executable, "-m", "sphinx", *options, ".", folder / "html"]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
            (folder / "done").touch()
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return read_pages(site)


@pytest.mark.slow
def test_links_between_pages_lead_to_pages_and_sections(site: Path, pages: dict[str, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken_links(site, pages) == []


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_within_two_clicks_of_the_start_page(pages: dict[str, Page], question: str) -> None:
    page, section, words = QUESTIONS[question]
    assert (page, section) in clicks(pages, START, MOST_CLICKS)
    assert words in pages[page].sections[section]


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(pages: dict[str, Page]) -> None:
    assert {f"ghosttrace.{name}" for name in ghosttrace.__all__} <= pages["docs/api.html"].anchors


@pytest.mark.slow
def test_every_command_is_in_the_reference(pages: dict[str, Page]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = {"ghosttrace", *(f"ghosttrace-{name}" for name in commands)}
    names |= {f"ghosttrace-data-{name}" for name in commands["data"].commands}
    assert names <= pages["docs/command-line.html"].sections.keys()
    assert "--repetitions <int>" in pages["docs/command-line.html"].sections["ghosttrace-ablate"]


def test_the_start_page_lists_the_questions() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    assert re.findall(r"^\| ([^|]+\?) \|", text, flags=re.MULTILINE) == list(QUESTIONS)


def test_the_page_on_citing_agrees_with_the_file() -> None:
    page, cited = (ROOT / "docs" / "cite.md").read_text(), yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = cited["references"]
    number = paper["notes"].removeprefix("arXiv ")
    assert cited["version"] == ghosttrace.__version__
    for value in (cited["title"], cited["version"], cited["authors"][0]["name"], paper["title"], number):
        assert str(value) in page, value
    assert f"{paper['authors'][0]['family-names']}, {paper['authors'][0]['given-names']}" in page


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.html").write_text('<section id="top"><a href="more/b.html#one">b</a> <a href="#top">a</a></section>')
    (tmp_path / "more/b.html").write_text('<p id="one"><a href="../a.html#none"><img src="c.png"><a href="https://d">')
    found = read_pages(tmp_path)
    assert broken_links(tmp_path, found) == ["more/b.html -> a.html#none", "more/b.html -> more/c.png#"]
    assert clicks(found, "a.html", 1).keys() == {("a.html", ""), ("more/b.html", "one"), ("a.html", "top")}
    assert clicks(found, "a.html", 2)["a.html", "none"] == [("more/b.html", "one"), ("a.html", "none")]


if __name__ == "__main__":
    ways = clicks(read_pages(Path(sys.argv[1])), START, MOST_CLICKS)
    for question, (page, section, _) in QUESTIONS.items():
        print(question, *(f"{path}#{anchor}".rstrip("#") for path, anchor in ways[page, section]), sep="\n  ")
