"""A response's text, decoded token by token."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from ghosttrace.serving.reasoning_split import ReasoningSplitter, Segment


class TextStream:
    """Turns tokens into reasoning and content; as in vLLM, the token that ends a response adds no text.

    Args:
        tokenizer: the model's.
        delimiters: ids of the delimiters, in the order of `DELIMITERS`.
        stop_token_ids: ids that end a response.
        skip_special: leave special tokens out of the text.
        reasoning_segment: which part is the reasoning; None returns the whole text as content.
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
        # The splitter needs the delimiters in the text.
        self._decoder = DecodeStream(skip_special_tokens=skip_special and reasoning_segment is None)
        self._splitter = None if reasoning_segment is None else make_splitter(tokenizer, delimiters, reasoning_segment)

    def feed(self, token: int) -> tuple[str, str]:
        """Return the reasoning and the content that this token completes."""
        text = "" if token in self._stops else self._decoder.step(self._tokenizer, token) or ""
        return self._splitter.feed(text) if self._splitter else ("", text)

    def end(self) -> tuple[str, str]:
        """Return the reasoning and the content that were held back."""
        return self._splitter.feed("", last=True) if self._splitter else ("", "")


def make_splitter(tokenizer: Any, delimiters: Sequence[int], reasoning_segment: Segment) -> ReasoningSplitter:
    """Return a splitter for this tokenizer's text; see `ReasoningSplitter`."""
    spelled = tokenizer.convert_ids_to_tokens(list(delimiters))
    special = [*tokenizer.all_special_tokens, "<think>"]
    return ReasoningSplitter(reasoning_segment, spelled, special, has_think_end="</think>" in tokenizer.get_vocab())
