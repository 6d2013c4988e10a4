"""Splitting of a chain of thought into sentences that join to exactly the same text.

The boundaries between them are the candidates for the ends of blocks. They are those of sentencex outside protected
spans, less the ones that the rules of the Memento paper join (arXiv 2604.09852).
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import sentencex

from ghosttrace.pipeline.protected import LINE_END, Span, inline_spans, layout_spans, math_spans
from ghosttrace.pipeline.tokens import TokenCounter

CONTINUATION = re.compile(r"(?:Therefore|Thus|So)\b")
FRAGMENT_TOKENS = 5
"""A piece with fewer tokens is no sentence of its own."""
LONG_SENTENCE_TOKENS = 200
"""A sentence with more tokens, such as code without fences, is also cut at its line ends."""
WORD = re.compile(r"[A-Za-z]{3,}")
LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")


@dataclass(frozen=True)
class Piece:
    """A piece of text between two possible boundaries.

    Attributes:
        text: the piece with the whitespace after it.
        tokens: its number of tokens.
    """

    text: str
    tokens: int

    @property
    def ends_paragraph(self) -> bool:
        """Whether a blank line follows."""
        return self.text[len(self.text.rstrip()) :].count("\n") > 1

    @property
    def is_fragment(self) -> bool:
        """Whether it is too short to be a sentence."""
        return self.tokens < FRAGMENT_TOKENS

    @property
    def is_math(self) -> bool:
        """Whether it has no word outside formulas."""
        outside = _without(self.text, math_spans(self.text))
        return not WORD.search(LATEX_COMMAND.sub("", outside))

    def __add__(self, other: "Piece") -> "Piece":
        return Piece(self.text + other.text, self.tokens + other.tokens)


def split_sentences(text: str, count_tokens: TokenCounter) -> list[Piece]:
    """Split a text into sentences, each with the whitespace after it.

    Args:
        text: any text.
        count_tokens: returns the number of tokens of each of several texts.

    Returns:
        The sentences; their texts joined are the text.
    """
    return join_pieces(naive_pieces(text, count_tokens))


def naive_pieces(text: str, count_tokens: TokenCounter) -> list[Piece]:
    """Return the pieces between all boundaries outside protected spans, before any are joined."""
    layout = layout_spans(text)
    spans = merge_spans([*layout, *inline_spans(text)])
    starts = [sentence["start_index"] for sentence in sentencex.get_sentence_boundaries("en", text)]
    pieces = _cut(text, [*starts, *(edge for span in layout for edge in span)], spans)
    tokens = count_tokens(pieces)
    lines = [match.end() for match in LINE_END.finditer(text)]
    position, cuts = 0, []
    for piece, count in zip(pieces, tokens, strict=True):
        cuts.append(position)
        if count > LONG_SENTENCE_TOKENS:
            cuts += lines[bisect_left(lines, position) : bisect_left(lines, position + len(piece))]
        position += len(piece)
    if len(cuts) > len(pieces):
        pieces = _cut(text, cuts, spans)
        tokens = count_tokens(pieces)
    return [Piece(piece, count) for piece, count in zip(pieces, tokens, strict=True)]


def join_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Join pieces by the rules of the paper: colons, continuation words, fragments, and runs of formulas."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and _belongs_to(joined[-1], piece):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _belongs_to(previous: Piece, piece: Piece) -> bool:
    """Return whether a piece continues the sentence before it.

    A fragment that opens a paragraph with more to come, such as "Wait.", belongs to what follows.
    """
    if previous.text.rstrip().endswith(":") or CONTINUATION.match(piece.text) or previous.is_fragment:
        return True
    if piece.is_fragment and (piece.ends_paragraph or not previous.ends_paragraph):
        return True
    return previous.is_math and piece.is_math


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans as disjoint spans in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _cut(text: str, positions: Iterable[int], protected: list[Span]) -> list[str]:
    """Cut a text at positions outside protected spans, each moved behind the whitespace that follows it."""
    cuts = set()
    opens = [start for start, _ in protected]
    first = len(text) - len(text.lstrip())
    visible = [match.start() for match in re.finditer(r"(?<!\S)\S", text)]  # after whitespace, or at the beginning
    for position in positions:
        cut = position
        if position < len(text) and text[position].isspace():
            following = bisect_left(visible, position)
            cut = visible[following] if following < len(visible) else len(text)
        span = bisect_left(opens, cut) - 1  # the last span that begins before the cut
        if first < cut < len(text) and not (span >= 0 and cut < protected[span][1]):
            cuts.add(cut)
    edges = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _without(text: str, spans: list[Span]) -> str:
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return "".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
