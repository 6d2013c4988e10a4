"""The audit page in a browser: narrow screens, contrast, and no injected script or outside request."""

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
    """Yield a function that writes and opens the page of a summary."""
    with open_guarded_pages(browser) as open_page:

        def open_audit_page(audit_summary: dict[str, Any], *more: Any, **named: Any) -> Any:
            return open_page(
                write_audit(tmp_path, audit_summary, run(audit_summary["model"])) / "report.html", *more, **named
            )

        yield open_audit_page


@pytest.mark.parametrize(("verdict", "scheme"), [("leak", "light"), ("within the limit", "light"), ("invalid", "dark")])
def test_narrow_screen_has_no_horizontal_scrolling(show: OpenPage, verdict: str, scheme: str) -> None:
    window = show(summary(verdict, HOSTILE), 360, scheme)
    across, room = window.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert across <= room == 360
    assert window.evaluate("window.pwned") is None and window.locator("main img, main script").count() == 0


def luminance(colour: str) -> float:
    """Return the relative luminance of an `rgb()` or `color(srgb)` colour (WCAG 2.2)."""
    numbers = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]])
    channels = numbers if colour.startswith("color") else numbers / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("verdict", ["leak", "not enough data"])
def test_text_has_enough_contrast(show: OpenPage, verdict: str, scheme: str) -> None:
    """The contrast is at least 4.5 (WCAG 2.2, 1.4.3) on the page, in the verdict band and in the heat maps."""
    window = show(summary(verdict), scheme=scheme)
    pairs = [
        (".sentence", ".outcome"),
        (".outcome .small", ".outcome"),
        *((name, "body") for name in ("h1", ".state", ".sub")),
    ]
    colours = "names => names.map(name => getComputedStyle(document.querySelector(name)))"
    colour_pairs = [
        window.evaluate(f"names => ({colours})(names).map((style, n) => n ? style.backgroundColor : style.color)", pair)
        for pair in pairs
    ]
    colour_pairs += window.locator(".heat td").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell)).map(style => [style.color, style.backgroundColor])"
    )
    for pair in colour_pairs:
        ink, paper = map(luminance, pair)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, pair
