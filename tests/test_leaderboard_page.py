"""The leaderboard's page in a browser: hostile names, narrow screens, contrast, and what it says about each run."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers.audits import HOSTILE
from helpers.headless_browser import OpenPage, open_guarded_pages
from helpers.leaderboards import copy_run, make_runs, record, write_audit_like

import ghosttrace as gt


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> gt.Leaderboard:
    """Return a written leaderboard of two benchmarks with an audit, a hostile model name and an invalid run."""
    folder = tmp_path_factory.mktemp("runs")
    runs = make_runs(folder)
    audit = write_audit_like(runs["mixed"], folder / "audit", "leak")
    benches = {"ledger-h2": record(runs["open"], "run")["benches"]["ledger-h1"]}
    results = [{**result, "bench": "ledger-h2"} for result in record(runs["open"], "summary")["results"]]
    other = copy_run(runs["open"], folder / "other", {"results": results}, benches=benches, model=HOSTILE)
    failed = copy_run(runs["open"], folder / "failed", {"valid": False, "failures": [f"control {HOSTILE}"]}, call=None)
    return gt.leaderboard([*runs.values(), audit, other, failed], out=folder / "board")


@pytest.fixture
def show(browser: Any, board: gt.Leaderboard) -> Iterator[OpenPage]:
    """Yield a function that opens the page."""
    assert board.folder is not None
    with open_guarded_pages(browser) as open_page:
        yield partial(open_page, board.folder / "leaderboard.html")


def cells(page: Any, table: int) -> list[list[str]]:
    """Return the text of a table's cells, row by row."""
    rows = page.locator("table.board").nth(table).locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_each_benchmark_has_a_table_of_its_rows(show: OpenPage, board: gt.Leaderboard) -> None:
    page = show()
    assert page.locator("main h2").all_inner_texts()[:2] == ["ledger-h1", "ledger-h2"]
    assert page.locator("table.board").count() == 2
    first = cells(page, 0)
    valid = [row for row in board.rows if row["benchmark"] == "ledger-h1" and row["valid"]]
    assert len(first) == len(valid) + 3 and len(cells(page, 1)) == 3
    for row, shown in zip(valid, first, strict=False):
        assert shown[0].startswith(row["model"]) and row["model_sha256"][:12] in shown[0] and row["law"] in shown[0]
        assert shown[1] == row["defence"] and f"rank {row['accuracy_rank']} of 6" in shown[2]
        assert f"{100 * row['accuracy']:.1f}" in shown[2] and "6 problems" in shown[2]
        assert ("points" in shown[3], bool(shown[3])) == (False, row["defence"] != "none")
    audited = next(shown for row, shown in zip(valid, first, strict=False) if row["verdict"])
    assert "1.60\n[1.52, 1.68]" in audited[5] and "leak" in audited[5] and "+0.0\n[−1.0, +1.0]" in audited[7]


def test_invalid_run_has_no_number_and_no_rank(show: OpenPage) -> None:
    page = show()
    shown = page.locator("tr.invalid").all_inner_texts()
    assert len(shown) == 3 and all("INVALID, not ranked: control" in text for text in shown)
    assert not any("rank 1" in text or "%" in text or "[" in text for text in shown)
    assert "Do not rely on failed, because a control failed" in page.inner_text(".banner.invalid")


def test_page_names_what_redoes_each_run(show: OpenPage) -> None:
    page = show()
    runs = dict(
        zip(page.locator(".runs h3").all_inner_texts(), page.locator(".runs li").all_inner_texts(), strict=True)
    )
    ablations = ["failed (ablate): INVALID", "mixed (ablate)", "open (ablate)", "other (ablate)"]
    assert list(runs) == [*ablations, "audit (audit)", "bits (bits)"]
    assert (
        "ghosttrace ablate --bench ledger-h1 --limit 6 --arms full,placebo,restart,swap --noise 0.3"
        in runs["mixed (ablate)"]
    )
    assert "ghosttrace.bits(ghosttrace.load('toy-mixed'), bench='ledger-h1', limit=4)" in runs["bits (bits)"]
    assert "Started from Python with objects of its own" in runs["failed (ablate): INVALID"]
    assert all("ghosttrace 0.1.0" in text for text in runs.values())


def test_hostile_names_are_text(show: OpenPage) -> None:
    page = show()
    assert page.evaluate("window.pwned") is None and page.locator("main img, main script, main b").count() == 0
    assert "<script>window.pwned = 1</script>" in page.inner_text("table.board >> nth=1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screen_scrolls_only_inside_the_tables(show: OpenPage, scheme: str) -> None:
    page = show(360, scheme)
    across, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across <= room == 360
    assert page.locator(".scroll").first.evaluate("node => node.scrollWidth > node.clientWidth")


def luminance(colour: str) -> float:
    """Return the relative luminance of an `rgb()` colour (WCAG 2.2)."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(show: OpenPage, scheme: str) -> None:
    """The contrast with the page is at least 4.5, also for grey text (WCAG 2.2, 1.4.3)."""
    page = show(scheme=scheme)
    paper = luminance(page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor"))
    for name in ("body", ".sub", "thead th", "tr.invalid td", ".small", "nav a"):
        ink = luminance(page.locator(name).first.evaluate("node => getComputedStyle(node).color"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, name
