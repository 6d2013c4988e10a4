"""Pages of the built documentation site: their links, their anchors, and the text of their sections."""

from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

Link = tuple[str, str]
"""A page or file of the site, relative to its root, and an anchor in it, which may be empty."""


class Page(HTMLParser):
    """One page.

    Attributes:
        links: the addresses in `href` and `src`, in order.
        anchors: every `id`.
        sections: text of each section by its anchor, with its subsections.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.sections: dict[str, str] = {}
        self._text: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag == "section":
            self._open.append((values.get("id", ""), len(self._text)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            name, start = self._open.pop()
            self.sections[name] = " ".join("".join(self._text[start:]).split())

    def handle_data(self, data: str) -> None:
        self._text.append(data)


def read_pages(site: Path) -> dict[str, Page]:
    """Return every page of a site by its path."""
    return {str(path.relative_to(site)): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def targets(page: str, links: list[str]) -> Iterator[Link]:
    """Yield what the links of a page lead to within the site."""
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            path = normpath(join(dirname(page), unquote(parts.path))) if parts.path else page
            yield path, unquote(parts.fragment)


def broken_links(site: Path, pages: Mapping[str, Page]) -> list[str]:
    """Return the links within a site that lead to no file, or to no anchor of a page."""
    return [
        f"{name} -> {path}#{anchor}"
        for name, page in pages.items()
        for path, anchor in targets(name, page.links)
        if not (site / path).is_file() or (path in pages and anchor not in pages[path].anchors)
    ]


def clicks(pages: Mapping[str, Page], start: str, most: int) -> dict[Link, list[Link]]:
    """Return the shortest way from a page to all that at most `most` clicks reach, found breadth first."""
    ways: dict[Link, list[Link]] = {(start, ""): []}
    last = list(ways)
    for _ in range(most):
        reached = []
        for at in last:
            for link in targets(at[0], pages[at[0]].links) if at[0] in pages else ():
                if link not in ways:
                    ways[link] = [*ways[at], link]
                    reached.append(link)
        last = reached
    return ways
