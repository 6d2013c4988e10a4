"""Search for text in token sequences.

A tokenizer may merge the end of a text with what follows it: Phi-4 has a token for `>` and a line break, so `</think>`
before a line break has other ids than `</think>` alone. Therefore text is searched in the decoded sequence, never by
its own token ids.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

LONGEST_CHARACTER = 4  # in bytes of UTF-8, and so in tokens at most


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode token ids to text, with special tokens and without clean-up of spaces."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_range(ids: Sequence[int], span: range, tokenizer: Any) -> range:
    """Return the range of token indices that decode to a range of characters.

    It is found by decoding prefixes: tokens sampled from a model may differ from the tokenizer's own encoding of the
    text, so encoding the text again would not give their offsets.

    Args:
        ids: int[T], the tokens.
        span: Indices of characters in the decoded text.
        tokenizer: Tokenizer of the tokens.
    """

    def num_characters(num_tokens: int) -> int:
        return len(decode(tokenizer, ids[:num_tokens]))

    first = bisect_right(range(len(ids) + 1), span.start, key=num_characters) - 1
    return range(first, bisect_left(range(len(ids) + 1), span.stop, key=num_characters))


def end_of_last(text: str, ids: Sequence[int], tokenizer: Any) -> int | None:
    """Return the index after the last token of the last occurrence of a text; None if it does not occur.

    Args:
        text: the text to find.
        ids: int[T], the tokens.
        tokenizer: Tokenizer of the tokens.
    """
    start = decode(tokenizer, ids).rfind(text)
    return None if start < 0 else token_range(ids, range(start, start + len(text)), tokenizer).stop


def token_ends(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[int]:
    """Return, for each token, the number of characters of the decoded text up to its end.

    A character that several tokens spell ends with the last of them, together with what precedes it in these tokens.

    Args:
        ids: int[T], the tokens.
        decode: Function of token ids to text.
    """
    ends: list[int] = []
    pieces: list[str] = []
    begin, length = 0, 0
    for index in range(len(ids)):
        context = list(ids[max(begin - 1, 0) : begin])  # some tokenizers drop the space before the first token
        piece = decode([*context, *ids[begin : index + 1]])[len(decode(context)) :]
        complete = not piece.endswith("\ufffd") or index + 1 - begin == LONGEST_CHARACTER
        if complete or index + 1 == len(ids):
            pieces.append(piece)
            begin, length = index + 1, length + len(piece)
        ends.append(length)
    text = decode(list(ids))
    if "".join(pieces) == text:
        return ends
    lengths = (len(decode(list(ids[: index + 1]))) for index in range(len(ids)))  # slow, but never wrong at the end
    return [min(length, len(text)) for length in accumulate(lengths, max)]
