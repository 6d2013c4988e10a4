"""A response's text while its tokens come."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from ghosttrace.serving.reader import Reader, Where


class Speech:
    """Turns tokens into reasoning and content, as vLLM does: the token that ends a response is no text.

    Args:
        tokenizer: the model's.
        delimiters: their ids, in the order of `DELIMITERS`.
        stops: ids that end a response.
        skip_special: leave special tokens out of the text.
        wanted: which part is the reasoning; None leaves the text whole.
    """

    def __init__(
        self,
        tokenizer: Any,
        delimiters: Sequence[int],
        stops: Collection[int],
        skip_special: bool,
        wanted: Where | None,
    ) -> None:
        self._tokenizer, self._stops = tokenizer.backend_tokenizer, stops
        # The delimiters must be in the text to be told apart.
        self._decoding = DecodeStream(skip_special_tokens=skip_special and wanted is None)
        self._reader = None if wanted is None else make_reader(tokenizer, delimiters, wanted)

    def feed(self, token: int) -> tuple[str, str]:
        """Reasoning and content that this token completes."""
        text = "" if token in self._stops else self._decoding.step(self._tokenizer, token) or ""
        return self._reader.feed(text) if self._reader else ("", text)

    def end(self) -> tuple[str, str]:
        """What was held back."""
        return self._reader.feed("", last=True) if self._reader else ("", "")


def make_reader(tokenizer: Any, delimiters: Sequence[int], wanted: Where) -> Reader:
    """A reader of this tokenizer's text; see `Reader`."""
    spelled = tokenizer.convert_ids_to_tokens(list(delimiters))
    special = [*tokenizer.all_special_tokens, "<think>"]
    return Reader(wanted, spelled, special, thinks="</think>" in tokenizer.get_vocab())
