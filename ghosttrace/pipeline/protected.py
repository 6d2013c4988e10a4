"""Spans of a text that must not be cut: code, formulas, tables, lists, parentheses."""

import re
from collections.abc import Iterator
from typing import Any

from markdown_it import MarkdownIt

Span = tuple[int, int]
"""Start and end of a piece of text, in characters."""

MAX_CHARACTERS = 2000
"""Longest formula, parenthesis, table or list that stays in one piece; a delimiter that is never closed reaches no
further. Code fences have no limit."""

INSIDE = rf".{{1,{MAX_CHARACTERS}}}?"
MATH = re.compile(
    rf"\$\${INSIDE}\$\$|\\\[{INSIDE}\\\]|\\\({INSIDE}\\\)"
    rf"|\\begin\{{(?P<name>\w+\*?)\}}{INSIDE}\\end\{{(?P=name)\}}"
    rf"|(?<!\\)\$(?![\s$])[^$\n]{{1,{MAX_CHARACTERS}}}?(?<![\s\\])\$(?![\d$])",
    re.DOTALL,
)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINE_END = re.compile(r"\r\n?|\n")
LIST_LINE = re.compile(r"[ \t]|[-*+] |\d{1,9}[.)] |\s*$")
LISTS = ("bullet_list_open", "ordered_list_open")


def math_spans(text: str) -> list[Span]:
    """Return the formulas of a text that are marked by dollar signs, backslash brackets or an environment."""
    return [match.span() for match in MATH.finditer(text)]


def inline_spans(text: str) -> list[Span]:
    """Return the formulas, the inline code and the parentheses of a text; they may overlap."""
    return [*math_spans(text), *(match.span() for match in INLINE_CODE.finditer(text)), *_parentheses(text)]


def layout_spans(text: str) -> list[Span]:
    """Return the closed code fences, the tables and the tight lists of a text, as CommonMark reads it.

    A list is tight if no blank line stands between its items. Lines that CommonMark adds to the last item only because
    no blank line ends it do not count.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    line_ends = [match.end() for match in LINE_END.finditer(text)]
    starts = [0, *line_ends, len(text)]
    spans = []
    for index, token in enumerate(tokens):
        if token.map is None or token.type not in ("fence", "table_open", *LISTS):
            continue
        first, last = token.map
        lines = [text[starts[line] : starts[line + 1]] for line in range(first, min(last, len(starts) - 1))]
        if token.type == "fence":
            count = len(lines) if _is_closed(lines, token.markup) else 0
        elif token.type in LISTS:
            count = _list_lines(lines) if _is_tight(tokens, index) else 0
        else:
            count = len(lines)
        span = starts[first], starts[first + count]
        if count and (token.type == "fence" or span[1] - span[0] <= MAX_CHARACTERS):
            spans.append(span)
    return spans


def _is_closed(lines: list[str], markup: str) -> bool:
    """Return whether a fence ends with its closing line; one that is never closed would reach to the end."""
    closing = lines[-1].strip().lstrip("> ")
    return len(lines) > 1 and len(closing) >= len(markup) and set(closing) == {markup[0]}


def _is_tight(tokens: list[Any], index: int) -> bool:
    paragraph = next((token for token in tokens[index:] if token.type == "paragraph_open"), None)
    return paragraph is not None and bool(paragraph.hidden)


def _list_lines(lines: list[str]) -> int:
    """Return the number of leading lines that begin an item or are indented."""
    return next((number for number, line in enumerate(lines) if not LIST_LINE.match(line)), len(lines))


def _parentheses(text: str) -> Iterator[Span]:
    """Yield the outermost balanced parentheses within one paragraph."""
    opened: list[int] = []
    for match in re.finditer(r"[()]|\n[^\S\n]*\n", text):
        if match[0] == "(":
            opened.append(match.start())
        elif match[0] != ")":
            opened.clear()
        elif opened:
            start = opened.pop()
            if not opened and match.end() - start <= MAX_CHARACTERS:
                yield start, match.end()
