"""The page of an audit in a browser: it fits a small screen, can be read, and nothing in it runs or is fetched."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.audits import HOSTILE, run, summary, write_audit
from helpers.headless_browser import OpenPage, open_guarded_pages


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[OpenPage]:
    """Opens the page of a summary."""
    with open_guarded_pages(browser) as open_page:

        def written(found: dict[str, Any], *more: Any, **named: Any) -> Any:
            return open_page(write_audit(tmp_path, found, run(found["model"])) / "report.html", *more, **named)

        yield written


@pytest.mark.parametrize(("verdict", "scheme"), [("leak", "light"), ("within the limit", "light"), ("invalid", "dark")])
def test_a_narrow_screen_scrolls_down_alone(show: OpenPage, verdict: str, scheme: str) -> None:
    window = show(summary(verdict, HOSTILE), 360, scheme)
    across, room = window.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across <= room == 360
    assert window.evaluate("window.pwned") is None and window.locator("main img, main script").count() == 0


def luminance(colour: str) -> float:
    """Relative luminance of an `rgb()` or a `color(srgb)` colour (WCAG 2.2)."""
    numbers = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]])
    channels = numbers if colour.startswith("color") else numbers / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("verdict", ["leak", "not enough data"])
def test_text_can_be_read(show: OpenPage, verdict: str, scheme: str) -> None:
    """Its contrast is 4.5 or more (WCAG 2.2, 1.4.3): on the page, the band of the verdict, and in the heat maps."""
    window = show(summary(verdict), scheme=scheme)
    pairs = [
        (".says", ".outcome"),
        (".outcome .small", ".outcome"),
        *((name, "body") for name in ("h1", ".state", ".sub")),
    ]
    colours = "names => names.map(name => getComputedStyle(document.querySelector(name)))"
    found = [
        window.evaluate(f"names => ({colours})(names).map((style, n) => n ? style.backgroundColor : style.color)", pair)
        for pair in pairs
    ]
    found += window.locator(".heat td").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell)).map(style => [style.color, style.backgroundColor])"
    )
    for pair in found:
        ink, paper = map(luminance, pair)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, pair
