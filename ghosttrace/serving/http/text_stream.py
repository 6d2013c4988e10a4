"""Incremental decoding of a response's tokens to text."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from ghosttrace.serving.reasoning_split import ReasoningSplitter, Segment


class TextStream:
    """Incremental decoder of tokens to reasoning and content.

    As in vLLM, the stop token that ends a response adds no text.

    Args:
        tokenizer: the model's tokenizer.
        delimiters: token ids of the delimiters, in the order of `DELIMITERS`.
        stop_token_ids: token ids that end a response.
        skip_special: whether to remove special tokens from the text.
        reasoning_segment: part of the response that is the reasoning; None returns all text as content.
    """

    def __init__(
        self,
        tokenizer: Any,
        delimiters: Sequence[int],
        stop_token_ids: Collection[int],
        skip_special: bool,
        reasoning_segment: Segment | None,
    ) -> None:
        self._tokenizer, self._stops = tokenizer.backend_tokenizer, stop_token_ids
        # The splitter needs the delimiters in the text, and removes them itself.
        self._decoder = DecodeStream(skip_special_tokens=skip_special and reasoning_segment is None)
        self._splitter = None if reasoning_segment is None else make_splitter(tokenizer, delimiters, reasoning_segment)

    def feed(self, token: int) -> tuple[str, str]:
        """Return the new reasoning and content after this token."""
        text = "" if token in self._stops else self._decoder.step(self._tokenizer, token) or ""
        return self._splitter.feed(text) if self._splitter else ("", text)

    def end(self) -> tuple[str, str]:
        """Return the remaining reasoning and content at the end of the response."""
        return self._splitter.feed("", last=True) if self._splitter else ("", "")


def make_splitter(tokenizer: Any, delimiters: Sequence[int], reasoning_segment: Segment) -> ReasoningSplitter:
    """Return a `ReasoningSplitter` for the text of this tokenizer, which removes its special tokens."""
    delimiter_strings = tokenizer.convert_ids_to_tokens(list(delimiters))
    special = [*tokenizer.all_special_tokens, "<think>"]
    has_think_end = "</think>" in tokenizer.get_vocab()
    return ReasoningSplitter(reasoning_segment, delimiter_strings, special, has_think_end)
