"""Checks of prompts and conversations on a sealed server: no delimiter lies outside the assistant's turns.

Delimiters count only in the assistant's turns, which a conversation always has. A prompt without them would keep its
blocks in the cache.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.markup import BlockTracker, Markup
from ghosttrace.serving.token_breaker import own_turns


@dataclass(frozen=True)
class PromptMarkup:
    """Token ids and texts that structure a prompt.

    Attributes:
        markup: token ids of the delimiters, of the assistant's header and of the end of a turn.
        delimiters: texts of the delimiters.
        header: text of the assistant's header.
        header_merges: whether the header does not end with an added token, so that the tokenizer could merge its end
            with white space after it.
        turn_end: text of the end of a turn; None if there is none.
    """

    markup: Markup
    delimiters: tuple[str, ...]
    header: str
    header_merges: bool
    turn_end: str | None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, markup: Markup) -> "PromptMarkup":
        """Return the texts of a markup."""
        header, end = list(markup.assistant_header), markup.turn_end
        return cls(
            markup,
            tuple(tokenizer.convert_ids_to_tokens(list(markup.delimiters))),
            tokenizer.decode(header),
            bool(header) and header[-1] not in tokenizer.added_tokens_decoder,
            None if end is None else tokenizer.convert_ids_to_tokens(end),
        )

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PromptMarkup":
        """Return the markup from the values of `dataclasses.asdict`."""
        texts = {"markup": Markup.from_dict(stored["markup"]), "delimiters": tuple(stored["delimiters"])}
        return cls(**{**stored, **texts})

    def check(self, prompt: Any) -> None:
        """Raise an error if a delimiter lies outside the assistant's turns.

        Args:
            prompt: a text, token ids, or a list of texts or of token ids; the application refuses anything else.

        Raises:
            UserError: if there is such a delimiter.
        """
        if not self.markup.assistant_header:
            return
        prompts = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
        for text in prompts:
            inside = self._inside_of_ids(text) if _is_ids(text) else self._inside_of_text(text)
            if not all(inside):
                raise UserError(
                    f"the prompt has a delimiter outside the assistant's turns, where a sealed server could not erase "
                    f"its block: put {self.header!r} before it, or use /v1/chat/completions"
                )

    def check_turns(self, body: Mapping[str, Any]) -> None:
        """Raise an error if the tokenizer could merge the assistant's header with white space of a turn with blocks.

        The turn would then have no header, and its blocks would stay in the cache.

        Args:
            body: the parsed body of a request.

        Raises:
            UserError: if one of the assistant's texts begins with white space, and one has a delimiter.
        """
        texts = [text for turn in own_turns(body) for text in _strings(turn)] if self.header_merges else []
        has_delimiter = any(delimiter in text for text in texts for delimiter in self.delimiters)
        if has_delimiter and any(text[:1].isspace() for text in texts):
            raise UserError(
                "a text of the assistant begins with white space, which the tokenizer could join with the assistant's "
                "header, so that a sealed server would not erase its blocks: remove the white space"
            )

    def _inside_of_ids(self, ids: Sequence[int]) -> Iterator[bool]:
        """Yield whether each delimiter in token ids lies in an assistant's turn."""
        tracker = BlockTracker(self.markup)
        for token in ids:
            tracker.push(token)
            if token in self.markup.delimiters:
                yield tracker.in_assistant_turn

    def _inside_of_text(self, text: Any) -> Iterator[bool]:
        """Yield whether each delimiter in a text lies in an assistant's turn."""
        header = re.escape(self.header) + (r"(?!\s)" if self.header_merges else "")
        ends = re.escape(self.turn_end) if self.turn_end else "(?!)"
        delimiters, inside = "|".join(map(re.escape, self.delimiters)), False
        for found in re.finditer(f"(?P<header>{header})|(?P<end>{ends})|{delimiters}", str(text)):
            if found.lastgroup is None:
                yield inside
            inside = found.lastgroup == "header" or (inside and found.lastgroup != "end")


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
