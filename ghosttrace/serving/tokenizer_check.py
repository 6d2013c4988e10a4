"""Check at the start of a server: no text that a user can type becomes a special token after the guard.

Most tokenizers look for special tokens in the text as it was typed. Some look for them after a normaliser, which may
turn other characters into those of a special token, or remove the guard's word joiner. The check therefore asks the
normaliser about every character, and types each special token in the ways that it would undo.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.token_breaker import WORD_JOINER, TokenBreaker

CHARACTERS = [chr(code) for code in range(1, 0x20000) if not 0xD800 <= code <= 0xDFFF]
"""Characters of the planes in which normalisers have letters, digits and punctuation."""


def check_typed_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Raise an error if a user can type a text in which the tokenizer finds a special token despite the guard.

    Args:
        tokenizer: the model's tokenizer.
        tokens: strings of the special tokens.

    Raises:
        UserError: if there is such a text; names it.
    """
    breaker, special = TokenBreaker(tokens), set(tokenizer.convert_tokens_to_ids(list(tokens)))
    special -= set(_ids(tokenizer, WORD_JOINER))  # a small vocabulary reads an unknown character as a special token
    sources, prefixes = _sources(tokenizer), _prefixes(tokens)
    for token in tokens:
        for typed in (*_ways_to_type(token, sources), *_overlaps(token, prefixes)):
            if special.intersection(_ids(tokenizer, breaker.break_strings(typed))):
                raise UserError(
                    f"a user could type the special token {token!r} as {typed!r}, because the tokenizer normalises "
                    "text before it looks for special tokens: set `normalized` to false for it in tokenizer.json"
                )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _sources(tokenizer: Any) -> dict[str, str]:
    """Return, for each text that the normaliser makes of another one, one text of which it makes it."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return {}
    patterns = _patterns(json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"])
    sources: dict[str, str] = {}
    for text in (*CHARACTERS, *patterns):
        made = (
            normalizer.normalize_str(f"a{text}a").removeprefix("a").removesuffix("a")
        )  # within a text, not at its ends
        if made != text:
            sources.setdefault(made, text)
    return sources


def _patterns(node: Any) -> Iterator[str]:
    """Yield the texts that a normaliser replaces, from its JSON description."""
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), dict) and isinstance(node["pattern"].get("String"), str):
            yield node["pattern"]["String"]
        for value in node.values():
            yield from _patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from _patterns(value)


def _ways_to_type(token: str, sources: dict[str, str]) -> Iterator[str]:
    """Yield texts that a normaliser may turn into a special token, and the token itself."""
    yield token
    replaceable = [index for index, character in enumerate(token) if character in sources]
    for chosen in (replaceable[:1], replaceable):
        if chosen:
            yield "".join(sources[c] if index in chosen else c for index, c in enumerate(token))
    if "" in sources:
        yield token[0] + sources[""] + token[1:]


def _prefixes(tokens: Sequence[str]) -> dict[str, list[str]]:
    """Return, for each prefix of the tokens, what follows it in them."""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        for length in range(1, len(token)):
            rests.setdefault(token[:length], []).append(token[length:])
    return rests


def _overlaps(token: str, prefixes: dict[str, list[str]]) -> Iterator[str]:
    """Yield the texts in which a token ends with the beginning of another one, or of itself."""
    for start in range(1, len(token)):
        for rest in prefixes.get(token[start:], ()):
            yield token + rest
