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
        stops: ids that end a response.
        skip_special: leave special tokens out of the text.
        wanted: which part is the reasoning; None returns the whole text as content.
    """

    def __init__(
        self,
        tokenizer: Any,
        delimiters: Sequence[int],
        stops: Collection[int],
        skip_special: bool,
        wanted: Segment | None,
    ) -> None:
        self._tokenizer, self._stops = tokenizer.backend_tokenizer, stops
        # The splitter needs the delimiters in the text.
        self._decoder = DecodeStream(skip_special_tokens=skip_special and wanted is None)
        self._splitter = None if wanted is None else make_splitter(tokenizer, delimiters, wanted)

    def feed(self, token: int) -> tuple[str, str]:
        """Return the reasoning and the content that this token completes."""
        text = "" if token in self._stops else self._decoder.step(self._tokenizer, token) or ""
        return self._splitter.feed(text) if self._splitter else ("", text)

    def end(self) -> tuple[str, str]:
        """Return the reasoning and the content that were held back."""
        return self._splitter.feed("", last=True) if self._splitter else ("", "")


def make_splitter(tokenizer: Any, delimiters: Sequence[int], wanted: Segment) -> ReasoningSplitter:
    """Return a splitter for this tokenizer's text; see `ReasoningSplitter`."""
    spelled = tokenizer.convert_ids_to_tokens(list(delimiters))
    special = [*tokenizer.all_special_tokens, "<think>"]
    return ReasoningSplitter(wanted, spelled, special, thinks="</think>" in tokenizer.get_vocab())
