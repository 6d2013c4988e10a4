"""How typed special tokens are broken: overlapping tokens, and the time of the search."""

import time

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ghosttrace.errors import UserError
from ghosttrace.serving import tokenizer_check
from ghosttrace.serving.token_breaker import WORD_JOINER, TokenBreaker

OVERLAPPING = [(["]~b]", "[e~["], "]~b]~b][e~[e~["), (["<a>", "><b"], "<a><b"), (["<a>", "<a><b>", "><b"], "<a><b>")]


@pytest.mark.parametrize("tokens, typed", OVERLAPPING)
def test_overlapping_tokens_are_broken(tokens: list[str], typed: str) -> None:
    broken = TokenBreaker(tokens).break_strings(typed)
    assert not [token for token in tokens if token in broken]
    assert broken.replace(WORD_JOINER, "") == typed


def test_each_typed_token_gets_one_word_joiner() -> None:
    breaker = TokenBreaker(["<|a|>", "<|ab|>", "[b]"])
    assert breaker.break_strings("x <|ab|>[b]<|c|> [b", close=False) == (
        f"x <{WORD_JOINER}|ab|>[{WORD_JOINER}b]<|c|> [b"
    )


def test_the_search_takes_the_same_time_with_many_tokens() -> None:
    breaker = TokenBreaker([f"<|reserved_special_token_{number}|>" for number in range(255)] + ["[PAD]"])
    for unit in ("<", "<|reserved_special_token_2"):
        text = unit * ((1 << 18) // len(unit))
        start = time.process_time()
        breaker.break_strings(text)
        assert time.process_time() - start < 0.2  # an alternation of the tokens takes 0.6 seconds and more


def test_the_check_at_the_start_types_overlapping_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class FirstOnly(TokenBreaker):
        """Breaker that skips the rest of a token that it has found."""

        def break_strings(self, value: str, close: bool = True) -> str:
            return value.replace("]~b]", f"]{WORD_JOINER}~b]")

    vocabulary = {"<unk>": 0, **{character: number + 1 for number, character in enumerate("]~b" + WORD_JOINER)}}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.add_special_tokens(["]~b]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer_check.check_typed_tokens(tokenizer, ["]~b]"])
    monkeypatch.setattr(tokenizer_check, "TokenBreaker", FirstOnly)
    with pytest.raises(UserError, match="could type the special token"):
        tokenizer_check.check_typed_tokens(tokenizer, ["]~b]"])
