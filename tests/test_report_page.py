"""The report in a browser: interaction, keyboard, narrow screens, and no injected script or outside request.

`python tests/test_report_page.py RUN figures/report.png` writes the report of a run folder and saves the picture
for the README.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.headless_browser import ARGUMENTS, CHROMIUM, OpenPage, open_guarded_pages
from helpers.reports import HOSTILE, write_pair

from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.run import ablate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pair(tmp_path_factory.mktemp("run"))
    AblationResult.open(folder).report()
    return folder


@pytest.fixture
def show(browser: Any, run: Path) -> Iterator[OpenPage]:
    """Yield a function that opens the report in a window."""
    with open_guarded_pages(browser) as open_page:
        yield partial(open_page, run / "report.html")


def test_hostile_text_is_not_executed(show: OpenPage) -> None:
    page, shown = show(), ""
    for number in range(3):
        page.select_option("#trace-problem", f"p{number}")
        shown += page.inner_text("#columns")
    assert all(line.split("\u2028")[0] in shown for line in HOSTILE)
    assert page.evaluate("window.pwned") is None
    assert page.locator("#columns script, #columns b, #columns img, .prompt b").count() == 0


def test_reader_shows_the_selected_traces(show: OpenPage) -> None:
    page = show()
    assert page.locator("#columns article h3").all_inner_texts() == ["memento", "restart"]
    assert page.locator(".verdict").all_inner_texts() == ["✓ correct: 200", "✗ wrong: 900 (correct: 200)"]
    page.select_option("#trace-problem", "p2")
    page.select_option("#trace-repetition", "1")
    page.check("#trace-arms input[value=swap]")
    verdicts = ["✓ correct: 202", "✗ wrong: 901 (correct: 202)", "✗ wrong: 901 (correct: 202)"]
    assert page.locator(".verdict").all_inner_texts() == verdicts
    assert "the donor's answer is 900" in page.inner_text("#columns article:nth-child(3) header")
    page.click("#previous")
    assert page.input_value("#trace-problem") == "p1" and page.is_enabled("#next")


def test_first_difference_and_answer_are_marked(show: OpenPage) -> None:
    page, second = show(), "#columns article:nth-child(2)"
    assert "diverges from memento at token 4" in page.inner_text(f"{second} header")
    before, after = page.locator(f"{second} .box.block").first.inner_text().split("diverges from memento at token 4")
    assert re.search(re.escape(HOSTILE[0]) + r" step\d?$", before) and re.match(r"\d+ step", after)
    marked = page.locator("mark").evaluate_all("all => all.map(m => [m.className, m.textContent, m.nextSibling.data])")
    assert [(kind, text, next[:7]) for kind, text, next in marked] == [
        ("right", "200", "}$, yes"),
        ("wrong", "900", "}$, yes"),
    ]
    page.check("#trace-arms input[value=placebo]")
    assert "same tokens as memento" in page.inner_text(f"{second} header")


def test_erased_text_is_grey_or_folded(show: OpenPage) -> None:
    page = show()
    block = page.locator(".box.block.erased p").first
    colour = "node => getComputedStyle(node).color"
    assert block.locator(".erased-text").first.evaluate(colour) != block.evaluate(colour)
    page.select_option("#erased", "plain")
    assert block.locator(".erased-text").first.evaluate(colour) == block.evaluate(colour)
    page.select_option("#erased", "fold")
    assert not block.is_visible() and page.locator(".box.memento p").first.is_visible()


def test_text_that_left_under_another_law_is_marked_with_its_time(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = {"law": "window:60,20", "limit": 1, "sampling": {"max_new_tokens": 80}, "out": folder}
    ablate("toy-mixed", "ledger-h0", ["restart"], **more).report()  # type: ignore[arg-type]
    with open_guarded_pages(browser) as open_page:
        page = open_page(folder / "report.html")
        headings = page.locator("#columns article:first-child h4").all_inner_texts()
        assert headings[0].lower().startswith("prompt · ") and headings[1].lower().endswith("partly erased")
        left = page.locator("#columns article:first-child .erased-text")
        times = left.evaluate_all("all => all.map(node => node.title)")
        assert times and times[0] == "left after 61 tokens" and left.first.is_visible()
        page.select_option("#erased", "fold")
        assert not left.first.is_visible() and page.locator("#columns .box p").first.is_visible()


def test_answers_are_found_and_sorted(show: OpenPage) -> None:
    page = show()
    problems = page.locator("#answer-table tbody th")
    assert problems.all_inner_texts() == ["p0", "p1", "p2"]
    page.click("#answer-table button[data-column=problem]")
    page.click("#answer-table button[data-column=problem]")
    assert problems.all_inner_texts() == ["p2", "p1", "p0"]
    assert page.get_attribute("#answer-table th >> nth=0", "aria-sort") == "descending"
    page.fill("#find", "201")
    assert problems.all_inner_texts() == ["p1"] and page.inner_text("#answers-count") == "1 of 3 problems"
    assert "boxed/integer" not in page.inner_text("#answer-table")
    page.check("#rules")
    assert "boxed/integer" in page.inner_text("#answer-table")
    page.click("#answer-table tbody button")
    assert page.input_value("#trace-problem") == "p1"


def test_charts_follow_the_selection(show: OpenPage) -> None:
    page = show()
    assert "restart minus memento, in points: 3 worse, 0 better" in page.inner_text("#differences-caption")
    page.select_option("#difference-arm", "placebo")
    assert "0 worse, 0 better, 3 unchanged, of 3 problems" in page.get_attribute("#differences svg", "aria-label")
    page.check("input[name=measure][value=effect]")
    assert "minus memento's in points" in page.inner_text("#intervals-caption")
    assert page.locator("#sawtooth polyline").count() == 30
    assert page.locator("main svg[role=img]:not([aria-label])").count() == 0


def test_every_part_follows_the_benchmark(show: OpenPage) -> None:
    page = show()
    assert page.locator(".finding h2").all_inner_texts() == ["aime24", "hmmt25"]
    page.select_option("#bench", "hmmt25")
    assert set(page.locator(".for-bench").all_inner_texts()) == {"hmmt25"}
    assert "0 worse, 0 better, 3 unchanged" in page.inner_text("#differences-caption")
    assert page.locator("#answer-table tbody th").all_inner_texts() == ["hp0", "hp1", "hp2"]
    assert page.input_value("#trace-problem") == "hp0"
    assert page.locator(".verdict").all_inner_texts() == ["✓ correct: 200", "✓ correct: 200"]


def test_page_works_by_keyboard(show: OpenPage) -> None:
    page = show()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    visited = []
    while "trace-problem" not in visited and len(visited) < 60:
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id"))
    stops = ["difference-arm", "find", "moved", "rules", "trace-problem"]
    assert [name for name in visited if name in stops] == stops
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    assert page.input_value("#trace-problem") == "p1" and "wrong: 900 (correct: 201)" in page.inner_text("#columns")


def test_narrow_screen_has_no_horizontal_scrolling(show: OpenPage) -> None:
    page = show(width=360)
    across, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across <= room == 360
    assert page.evaluate("[...document.querySelectorAll('.chart svg')].every(svg => svg.clientWidth <= 330)")


def luminance(colour: str) -> float:
    """Return the relative luminance of an `rgb()` colour (WCAG 2.2)."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_light_and_dark(show: OpenPage, scheme: str) -> None:
    """The contrast with the page is at least 4.5, also for grey text (WCAG 2.2, 1.4.3)."""
    page = show(scheme=scheme)
    paper = luminance(page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor"))
    assert (paper < 0.02) == (scheme == "dark")
    for name in (
        "body",
        ".small",
        ".interval",
        ".erased-text",
        ".delimiter",
        "summary",
        "nav a",
        ".right strong",
        ".wrong strong",
    ):
        ink = luminance(page.locator(name).first.evaluate("node => getComputedStyle(node).color"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, name


def test_numbers_are_shown_without_scripts(show: OpenPage) -> None:
    page = show(java_script_enabled=False)
    assert page.locator("table.numbers").first.is_visible() and not page.locator("#traces").is_visible()
    assert "need JavaScript" in page.inner_text("main")


def photograph(run: Path, picture: Path) -> None:
    """Save a picture of the top of a report, 1280 pixels wide."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        window = chromium.new_page(viewport={"width": 1280, "height": 1010})
        window.goto(AblationResult.open(run).report().resolve().as_uri())
        window.screenshot(path=picture)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
