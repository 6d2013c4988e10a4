"""Pages opened in a headless Chromium that may fetch nothing else."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run", "--disable-quic"]
OpenPage = Callable[..., Any]


@contextmanager
def open_guarded_pages(browser: Any) -> Iterator[OpenPage]:
    """Opens pages in windows; in the end they may have fetched nothing else, and complained of nothing."""
    contexts, opened, fetched, said = [], set(), [], []

    def open_page(page: Path, width: int = 1280, scheme: str = "light", **more: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more))
        window = contexts[-1].new_page()
        window.on("request", lambda request: fetched.append(request.url))
        window.on("console", lambda message: said.append(message.text))
        window.on("pageerror", lambda error: said.append(str(error)))
        opened.add(page.as_uri())
        window.goto(page.as_uri())
        return window

    yield open_page
    assert not said and set(fetched) == opened
    for context in contexts:
        context.close()
