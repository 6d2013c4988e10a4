"""Splitting into sentences: nothing is lost, nothing protected is cut, and the paper's joining rules hold."""

import json
from time import perf_counter

import pytest
from helpers.paths import DATA, requires_data
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ghosttrace.pipeline.protected import layout_spans, math_spans
from ghosttrace.pipeline.sentences import join_pieces, naive_pieces, split_sentences
from ghosttrace.pipeline.tokens import estimate_tokens, token_counter

MARKUP = [
    *("```python\nx = 1. # A b.\n```\n", "```\nnever closed. So\n", "$$", "$", "\\(", "\\)", "\\[", "\\]", "`a. B`"),
    *(
        "| a | b |\n|---|---|\n| 1. | 2. |\n",
        "- one. Two\n- three\n",
        "1. ",
        "(",
        ")",
        "\\begin{align}",
        "\\end{align}",
    ),
    *(
        "Dr. Who. ",
        "e.g. this",
        "So ",
        "Wait. ",
        "\n\n",
        "\n",
        "\r\n",
        " ",
        "\t",
        "。",
        "é",
        "\u2028",
        "\0",
        "x" * 50,
        ":",
    ),
]
texts = st.lists(st.sampled_from(MARKUP) | st.text(max_size=20), max_size=40).map("".join)


def sentences(text: str) -> list[str]:
    return [piece.text for piece in split_sentences(text, estimate_tokens)]


@settings(max_examples=200)
@given(texts)
def test_sentences_join_to_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


@settings(max_examples=100)
@given(texts)
def test_no_formula_or_layout_is_cut(text: str) -> None:
    cuts, position = set(), 0
    for sentence in sentences(text):
        position += len(sentence)
        cuts.add(position)
    for start, end in [*math_spans(text), *layout_spans(text)]:
        assert not [cut for cut in cuts if start < cut < end and text[cut:end].strip()]


@settings(max_examples=100)
@given(texts)
def test_no_sentence_begins_with_whitespace(text: str) -> None:
    assert not [sentence for sentence in sentences(text)[1:] if sentence[0].isspace()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We add the two terms now. This gives 12 in all.", 2),
        ("Dr. Smith adds the terms, e.g. by hand. This gives 12 in all.", 2),
        ("We see (it is odd. It is prime. And so on.) that the claim holds. This gives 12 in all.", 2),
        ("Then $a. B$ follows from the second line. This gives 12 in all.", 2),
        ("The radius is known from above: This gives 12 in all.", 1),
        ("The two equations are as follows:\n\nThis one gives 12 in all.", 1),
        ("We add the two terms now. Therefore it gives 12 in all.", 1),
        ("We add the two terms now. So it gives 12 in all.", 1),
        ("We add the two terms now. Some of it gives 12 in all.", 2),
        ("We add the two terms now. Good.\n\nThis gives 12 in all.", 2),
        ("We add the two terms now.\n\nWait. This gives 12 in all.", 2),
        ("The steps are these now.\n\n\\(a = 1 + 2 + 3\\)\n\n\\(b = 4 + 5 + 6\\)\n\nThis gives 12 in all.", 3),
        ("We run the code below. \n```python\nx = 1. \n\nY = 2. # Then stop.\n```\nThis gives 12 in all.", 3),
        ("We run the code below. \n```python\nx is one and two. Then we stop the code here.", 3),
        (
            "We take these cases now.\n- The first one is here. It is odd.\n- The next one. It is even.\n\nBoth work.",
            3,
        ),
        ("We fill this table now.\n\n| a. B | c |\n|---|---|\n| 1. A | 2. B |\n\nThis gives 12 in all.", 3),
        ("We sum up.\n\\begin{align} a &= 1. \\\\ B &= 2. \\end{align} This gives 12 in all.", 2),
        ("The price is $5 now. It was $7 before, as we know.", 2),
        ("an unclosed \\[ bracket stands here. This gives 12 in all.", 2),
    ],
)
def test_rules(text: str, expected: int) -> None:
    assert len(sentences(text)) == expected, sentences(text)


def test_long_text_without_full_stops_is_cut_at_line_ends() -> None:
    text = "".join(f"value_{number} = compute(first, second)\n" for number in range(60))
    assert len(sentences(text)) == 60
    assert len(sentences(text[:300])) == 1


def test_nothing_is_lost_from_a_text_of_many_paragraphs() -> None:
    """sentencex loses a paragraph break about every 10,000 characters."""
    text = "We add the two terms now. This gives 12 in all.\n\n" * 2000
    found = sentences(text)
    assert "".join(found) == text and len(found) == 4000


def test_protected_list_ends_where_its_lines_end() -> None:
    text = "- one item\n- another\nA lazy line. It goes on here.\n"
    assert [text[start:end] for start, end in layout_spans(text)] == ["- one item\n- another\n"]


@requires_data("traces/memento_repo_example_trace.jsonl", "tokenizers/qwen3")
def test_real_trace() -> None:
    """Joining leaves 406 of 694 candidates; the paper reports 187 of 397 on average over its traces."""
    line = (DATA / "traces/memento_repo_example_trace.jsonl").read_text().splitlines()[0]
    text = json.loads(line)["cot"]
    count = token_counter(str(DATA / "tokenizers/qwen3"))
    naive = naive_pieces(text, count)
    joined = join_pieces(naive)
    assert "".join(piece.text for piece in joined) == text
    assert 600 < len(naive) < 800 and 0.4 < len(joined) / len(naive) < 0.65
    assert max(piece.tokens for piece in joined) < 200
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers/qwen3")
    assert [piece.tokens for piece in naive[:9]] == [len(tokenizer(piece.text)["input_ids"]) for piece in naive[:9]]
    assert sum(estimate_tokens([text])) == pytest.approx(sum(count([text])), rel=0.1)


def test_long_whitespace_costs_no_time() -> None:
    text = "x y z w\n" * 100 + "\n" * 20000 + "b. c"
    begin = perf_counter()
    assert "".join(piece.text for piece in split_sentences(text, estimate_tokens)) == text
    assert perf_counter() - begin < 1
