"""Split of a response's text into reasoning and content, during generation."""

import re
from collections.abc import Sequence
from typing import Literal

from ghosttrace.errors import UserError
from ghosttrace.law.markup import Markup

THINK_END = "</think>"
Segment = Literal["outside", "block", "memento"]
"""Part of a response: a block, a memento, or text outside both."""
PARSER_SEGMENTS: dict[str, Segment] = {"ghosttrace-mementos": "memento", "ghosttrace-blocks": "block"}
"""Part of a response that each reasoning parser returns as the reasoning, by name of the parser."""


def check_parser(name: str | None, markup: Markup) -> None:
    """Raise an error if a reasoning parser of GhostTrace is to read a model without delimiters.

    Args:
        name: name of a reasoning parser; others than GhostTrace's, and None, are accepted.
        markup: token ids of the model's delimiters.

    Raises:
        UserError: if the tokenizer has no delimiters.
    """
    if name in PARSER_SEGMENTS and not markup.has_delimiters:
        raise UserError(f"{name} reads blocks and mementos, and the tokenizer has no delimiters: leave it out")


class ReasoningSplitter:
    """Incremental splitter of a response's text into reasoning and content.

    Args:
        reasoning_segment: part of the response that is the reasoning.
        delimiters: strings of the four delimiters, in the order of `DELIMITERS`.
        dropped: further strings to remove from the text.
        has_think_end: if True, the content begins after `</think>`; if False, all text outside blocks and mementos is
            content.
    """

    def __init__(
        self,
        reasoning_segment: Segment,
        delimiters: Sequence[str],
        dropped: Sequence[str] = (),
        has_think_end: bool = True,
    ) -> None:
        self._reasoning_segment, self._segment, self._before_think_end = reasoning_segment, "outside", has_think_end
        self._segment_after = dict(zip(delimiters, ("block", "outside", "memento", "outside"), strict=True))
        literals = sorted({*delimiters, *dropped, THINK_END}, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, literals)) + ")")
        self._prefixes = {literal[:n] for literal in literals for n in range(1, len(literal))}
        self._max_literal_length = max(map(len, literals))
        self._held_back = ""

    def feed(self, text: str, last: bool = False) -> tuple[str, str]:
        """Return the reasoning and the content in the next piece of text.

        If the piece ends with a prefix of a delimiter or of another removed string, that prefix is returned with a
        later piece.

        Args:
            text: the next piece.
            last: whether this is the last piece, from which nothing is held back.
        """
        text, self._held_back = self._held_back + text, ""
        if not last:
            max_length = min(len(text), self._max_literal_length)
            held_length = next((n for n in range(max_length, 0, -1) if text[-n:] in self._prefixes), 0)
            text, self._held_back = text[: len(text) - held_length], text[len(text) - held_length :]
        reasoning, content = [], []
        for part in self._pattern.split(text):
            if part in self._segment_after:
                self._segment = self._segment_after[part]
            elif part == THINK_END:
                self._segment, self._before_think_end = "outside", False
            elif self._pattern.fullmatch(part):
                continue
            elif self._segment == self._reasoning_segment:
                reasoning.append(part)
            elif self._segment == "outside" and not self._before_think_end:
                content.append(part)
        return "".join(reasoning), "".join(content)
