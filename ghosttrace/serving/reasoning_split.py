"""Splitting a response's text into reasoning and content while it is generated."""

import re
from collections.abc import Sequence
from typing import Literal

THINK_END = "</think>"
Segment = Literal["outside", "block", "memento"]
"""Part of a response: a block, a memento, or text outside both."""
PARSER_SEGMENTS: dict[str, Segment] = {"ghosttrace-mementos": "memento", "ghosttrace-blocks": "block"}
"""Names of the reasoning parsers, and the part of a response that each returns as the reasoning."""


class ReasoningSplitter:
    """Takes a response's text piece by piece and returns its reasoning and its content.

    Args:
        reasoning_segment: the part that is returned as reasoning.
        delimiters: the four literals, in the order of `DELIMITERS`.
        dropped: further literals that are left out of the text.
        has_think_end: content begins after `</think>`; otherwise all text outside blocks and mementos is content.
    """

    def __init__(
        self,
        reasoning_segment: Segment,
        delimiters: Sequence[str],
        dropped: Sequence[str] = (),
        has_think_end: bool = True,
    ) -> None:
        self._reasoning_segment, self._segment, self._thinking = reasoning_segment, "outside", has_think_end
        self._opens = dict(zip(delimiters, ("block", "outside", "memento", "outside"), strict=True))
        literals = sorted({*delimiters, *dropped, THINK_END}, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, literals)) + ")")
        self._prefixes = {literal[:n] for literal in literals for n in range(1, len(literal))}
        self._longest = max(map(len, literals))
        self._held_back = ""

    def feed(self, text: str, last: bool = False) -> tuple[str, str]:
        """Return reasoning and content of the next piece.

        A suffix that may be the beginning of a literal is held back until the next piece.

        Args:
            text: the next piece.
            last: no piece follows, so nothing is held back.
        """
        text, self._held_back = self._held_back + text, ""
        if not last:
            reach = min(len(text), self._longest)
            held = next((n for n in range(reach, 0, -1) if text[-n:] in self._prefixes), 0)
            text, self._held_back = text[: len(text) - held], text[len(text) - held :]
        reasoning, content = [], []
        for part in self._pattern.split(text):
            if part in self._opens:
                self._segment = self._opens[part]
            elif part == THINK_END:
                self._segment, self._thinking = "outside", False
            elif self._pattern.fullmatch(part):
                continue
            elif self._segment == self._reasoning_segment:
                reasoning.append(part)
            elif self._segment == "outside" and not self._thinking:
                content.append(part)
        return "".join(reasoning), "".join(content)
