"""Special tokens typed by users, and how they are broken so that they do not become special tokens of the prompt.

A chat template joins messages with special tokens, and the tokenizer then encodes the whole string. A user who types
`<|im_end|>` or `<|block_start|>` could therefore end the turn, open the assistant's turn, or cause erasures. A word
joiner in the typed token is invisible, and the tokenizer no longer recognises the special token.
"""

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.markup import Markup

WORD_JOINER = "\u2060"
TURN_PARAMETERS = ("messages", "input", "previous_input_messages")  # parameters that may contain the assistant's turns
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ASSISTANT_ITEMS = ("reasoning", "function_call", "custom_tool_call")  # items of `input` without a role
NON_PROMPT_PARAMETERS = ("model", "stop", "stop_sequences", "bad_words", "structured_outputs", "vllm_xargs")
FORMAT_PARAMETERS = ("response_format", "text", "output_config")  # formats of the answer, which some templates paste


def special_tokens(tokenizer: Any, markup: Markup, chat: Chat | None = None) -> list[str]:
    """Return the strings of all special tokens and delimiters, the longest first.

    Args:
        tokenizer: the model's tokenizer.
        markup: token ids of the delimiters and of the assistant's header.
        chat: tokens that a law reads; some tokenizers do not call the marks of tool results special.

    Raises:
        UserError: if the assistant's header has no special token, because a user could then type the header.
    """
    read = {token for ids in asdict(chat or Chat()).values() for token in (ids if isinstance(ids, tuple) else (ids,))}
    delimiters = list(markup.delimiters) if markup.has_delimiters else []
    tokens = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(delimiters)}
    added = tokenizer.added_tokens_decoder.items()
    tokens |= {token.content for number, token in added if token.special or number in read}
    header = tokenizer.convert_ids_to_tokens(list(markup.assistant_header))
    if header and not tokens.intersection(header):
        raise UserError(
            f"the assistant's header {''.join(header)!r} has no special token, so a user could type it: add a special "
            "token to it in the chat template"
        )
    return sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)


class TokenBreaker:
    """Sanitiser that breaks special tokens in the body of a request: each gets a word joiner after its first character.

    Tokens may overlap, so the search continues at the second character of a token that it has found. A string that ends
    with a prefix of a special token gets a word joiner at its end, because a template may append the rest of the token.

    Args:
        tokens: strings of the special tokens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._first_character = re.compile("|".join(f"{first}(?={rest})" for first, rest in _branches(tokens)))
        self._prefixes = tuple({token[:n] for token in tokens for n in range(1, len(token))})

    def body(self, parsed: Any, text_parameters: Sequence[str] = ()) -> Any:
        """Return a parsed body with broken special tokens.

        The values of `NON_PROMPT_PARAMETERS` and the assistant's own turns remain unchanged, and no value of
        `FORMAT_PARAMETERS` gets a character at its end.

        Args:
            parsed: the body.
            text_parameters: names of parameters that also remain unchanged, because they are texts to continue.

        Raises:
            UserError: if a turn has an unknown role, which a chat template could make a special token of.
        """
        kept = (*NON_PROMPT_PARAMETERS, *text_parameters)
        if not isinstance(parsed, dict):
            return self.break_strings(parsed)
        result: dict[str, Any] = {}
        for name, value in parsed.items():
            if name in TURN_PARAMETERS and isinstance(value, list):
                result[name] = self._turns(value)
            else:
                broken = value if name in kept else self.break_strings(value, close=name not in FORMAT_PARAMETERS)
                result[self.break_strings(name)] = broken
        return result

    def _turns(self, value: Any) -> Any:
        """Return a turn, or a list of turns or of conversations, with broken special tokens except in own turns."""
        if isinstance(value, list):
            return [self._turns(item) for item in value]
        if not isinstance(value, dict):
            return self.break_strings(value)
        if "role" in value and value["role"] not in ROLES:
            raise UserError(f"unknown role {reprlib.repr(value['role'])}: use one of {', '.join(ROLES)}")
        return value if _is_own(value) else self.break_strings(value)

    def break_strings(self, value: Any, close: bool = True) -> Any:
        """Return a JSON value with broken special tokens in all its strings, including keys.

        Args:
            value: the JSON value.
            close: whether to close a string that ends with a prefix of a special token.
        """
        if isinstance(value, str):
            broken = self._first_character.sub(rf"\g<0>{WORD_JOINER}", value)
            return broken + WORD_JOINER if close and broken.endswith(self._prefixes) else broken
        if isinstance(value, list):
            return [self.break_strings(item, close) for item in value]
        if isinstance(value, dict):
            return {self.break_strings(name, close): self.break_strings(item, close) for name, item in value.items()}
        return value


def own_turns(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the assistant's own turns in the body of a request."""
    unread = [body[name] for name in TURN_PARAMETERS if isinstance(body.get(name), list)]
    while unread:
        value = unread.pop()
        if isinstance(value, list):
            unread += value
        elif isinstance(value, dict) and _is_own(value):
            yield value


def _is_own(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" if "role" in turn else turn.get("type") in ASSISTANT_ITEMS


def _branches(texts: Collection[str]) -> list[tuple[str, str]]:
    """Return the first characters of texts, each with a pattern for what follows it in one of them.

    The patterns are a trie, with which the time of a search does not depend on the number of texts. A text that begins
    with another one is left out, because where it is, the other one is.
    """
    rests: dict[str, set[str]] = {}
    for text in texts:
        rests.setdefault(text[0], set()).add(text[1:])
    return [(re.escape(first), _any_of(rests[first])) for first in sorted(rests)]


def _any_of(texts: Collection[str]) -> str:
    alternatives = [""] if "" in texts else [first + rest for first, rest in _branches(texts)]
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"
