"""Pages in a headless Chromium, checked to fetch nothing from outside."""

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
    """Yield a function that opens a page; check at the end that pages fetched nothing else and logged no message."""
    contexts, opened, fetched, messages = [], set(), [], []

    def open_page(page: Path, width: int = 1280, scheme: str = "light", **more: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more))
        window = contexts[-1].new_page()
        window.on("request", lambda request: fetched.append(request.url))
        window.on("console", lambda message: messages.append(message.text))
        window.on("pageerror", lambda error: messages.append(str(error)))
        opened.add(page.as_uri())
        window.goto(page.as_uri())
        return window

    yield open_page
    assert not messages and set(fetched) == opened
    for context in contexts:
        context.close()
