"""A response's text, taken apart while it is written: blocks, mementos, and what follows the thinking."""

import re
from collections.abc import Sequence
from typing import Literal

THINK_END = "</think>"
Where = Literal["outside", "block", "memento"]
PARSERS: dict[str, Where] = {"ghosttrace-mementos": "memento", "ghosttrace-blocks": "block"}
"""Names of reasoning parsers, and which part of a response each calls the reasoning."""


class Reader:
    """Takes a response's text piece by piece and gives out the parts that are asked for.

    Args:
        wanted: which part is the reasoning.
        delimiters: the four literals, in the order of `DELIMITERS`.
        dropped: further literals that are no text.
        thinks: content begins behind `</think>`.
    """

    def __init__(
        self, wanted: Where, delimiters: Sequence[str], dropped: Sequence[str] = (), thinks: bool = True
    ) -> None:
        self._wanted, self._where, self._thinking = wanted, "outside", thinks
        self._leads = dict(zip(delimiters, ("block", "outside", "memento", "outside"), strict=True))
        literals = sorted({*delimiters, *dropped, THINK_END}, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, literals)) + ")")
        self._starts = {literal[:n] for literal in literals for n in range(1, len(literal))}
        self._longest = max(map(len, literals))
        self._held = ""

    def feed(self, text: str, last: bool = False) -> tuple[str, str]:
        """Reasoning and content of the next piece; what may be the beginning of a literal waits for the next."""
        text, self._held = self._held + text, ""
        if not last:
            reach = min(len(text), self._longest)
            hold = next((n for n in range(reach, 0, -1) if text[-n:] in self._starts), 0)
            text, self._held = text[: len(text) - hold], text[len(text) - hold :]
        reasoning, content = [], []
        for part in self._pattern.split(text):
            if part in self._leads:
                self._where = self._leads[part]
            elif part == THINK_END:
                self._where, self._thinking = "outside", False
            elif self._pattern.fullmatch(part):
                continue
            elif self._where == self._wanted:
                reasoning.append(part)
            elif self._where == "outside" and not self._thinking:
                content.append(part)
        return "".join(reasoning), "".join(content)
