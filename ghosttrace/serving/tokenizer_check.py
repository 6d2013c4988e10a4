"""Check at the start of a server: no text that a user can type becomes a special token after the guard.

Most tokenizers look for special tokens in the text as it was typed. Some look for them after a normaliser, which may
turn other characters into those of a special token, or remove the guard's word joiner. All ways to do so cannot be
listed, so only normalisers that are known to be harmless are accepted for such a token.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.token_breaker import WORD_JOINER, TokenBreaker

MADE_BY_NFC = frozenset("K;`")
"""ASCII characters that NFC makes of another one (the Kelvin sign, the Greek question mark and a Greek accent)."""


def check_typed_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Raise an error if a user could type a text in which the tokenizer finds a special token despite the guard.

    Args:
        tokenizer: the model's tokenizer.
        tokens: strings of the special tokens.

    Raises:
        UserError: if a token is looked for after a normaliser that is not known to be harmless for it, or the tokenizer
            finds a token that the guard has broken; names the token.
    """
    normalizer = _normalizer(tokenizer)
    raw = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.normalized}
    for token in tokens:
        if normalizer is not None and token not in raw and not _is_harmless(normalizer, token):
            raise UserError(
                f"a user could type the special token {token!r} with other characters, because the tokenizer "
                'normalises text before it looks for it: set "normalized" to false for it in tokenizer.json'
            )
    breaker, special = TokenBreaker(tokens), set(tokenizer.convert_tokens_to_ids(list(tokens)))
    special -= set(_ids(tokenizer, WORD_JOINER))  # a small vocabulary reads an unknown character as a special token
    prefixes = _prefixes(tokens)
    for token in tokens:
        for typed in (token, *_overlaps(token, prefixes)):
            if special.intersection(_ids(tokenizer, breaker.break_strings(typed))):
                raise UserError(
                    f"a user could type the special token {token!r} as {typed!r}, because the tokenizer ignores the "
                    "word joiner with which the guard breaks it: use a tokenizer that keeps U+2060"
                )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _normalizer(tokenizer: Any) -> dict[str, Any] | None:
    """Return the JSON description of a tokenizer's normaliser; None if it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found: dict[str, Any] | None = json.loads(backend.to_str())["normalizer"] if backend else None
    return found


def _is_harmless(normalizer: Mapping[str, Any], token: str) -> bool:
    """Return whether a normaliser neither makes a character of a token nor removes one without a trace."""
    kind = normalizer["type"]
    if kind == "Sequence":
        return all(_is_harmless(step, token) for step in normalizer["normalizers"])
    if kind == "NFC":
        return token.isascii() and not MADE_BY_NFC.intersection(token)
    if kind == "Prepend":
        return not set(normalizer["prepend"]).intersection(token)
    if kind == "Replace" and normalizer["pattern"] == {"String": " "}:
        return bool(normalizer["content"]) and not {" ", *normalizer["content"]}.intersection(token)
    return False


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
