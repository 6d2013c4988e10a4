"""Planted secrets, natural attributes, the secrets of `ledger`: where they stand, and what no text tells of them."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, tiny
from helpers.paths import DATA, needs
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ghosttrace.bench.ledger import STREAM, Ledger
from ghosttrace.data.read import TraceText, encode
from ghosttrace.data.task import Target
from ghosttrace.data.tokens import TokenTrace, traces_of
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, Policy, expiry
from ghosttrace.law.markup import DELIMITERS, Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.probing.carriers import Carrier, secret_carrier
from ghosttrace.probing.ledger import ledger_task
from ghosttrace.probing.natural import attribute, natural_task, spelling
from ghosttrace.probing.plant import bases_of, boundaries, by_token, decode, insert, plant, put
from ghosttrace.probing.secrets import FIRST, LAST, digits, emails, keys, names, secret_kind, words
from ghosttrace.probing.sweep import Settings
from ghosttrace.report.probing.run import run

QWEN = "tokenizers/qwen3/tokenizer.json"
TRACES = ["traces/memento_blog_example_response.json", "traces/memento_blog_example_code.json"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROSE = "We add the terms. This gives 12 in all, e.g. by hand.\n\n1. First case: x = 3.\n2. Then $a. b$ follows! Done"


def three_digits() -> Any:
    """A byte-level tokenizer that groups up to three digits from the left, as Phi-4's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "0123456789" for b in "0123456789"]
    triples = [(a + b, c) for a, b in pairs for c in "0123456789"]
    merges = [*pairs, *triples, *((a[0], a[1] + b) for a, b in triples)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*alphabet, *(a + b for a, b in merges)]))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}| ?[^\s\d]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@cache
def checkpoint(name: str) -> Checkpoint:
    """A tokenizer with delimiters; the model is not read."""
    tokenizer = three_digits() if name == "phi" else AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<|{name}|>" for name in DELIMITERS]}, replace_extra_special_tokens=False
    )
    return Checkpoint(name, tiny("qwen3"), tokenizer, Markup.from_tokenizer(tokenizer), Policy(True))


def trace(at: Checkpoint, name: str, blocks: list[str], mementos: str = "Result {}.") -> TokenTrace:
    pairs = "".join(
        f"<|block_start|>{text}<|block_end|><|summary_start|>{mementos.format(number)}<|summary_end|>"
        for number, text in enumerate(blocks)
    )
    text = TraceText("What is 6 x 7?", f"<think>\n{pairs}</think>\nThe answer is 42.")
    spelled = {name: f"<|{name}|>" for name in DELIMITERS}
    return TokenTrace("test", name, *encode(text, at.tokenizer, "qwen3", spelled))


def pairs_of(at: Checkpoint, ids: Any) -> list[Any]:
    return find_blocks(list(ids), at.markup)


def inside(at: Checkpoint, ids: Any, block: int) -> str:
    pair = pairs_of(at, ids)[block]
    return decode(at.tokenizer, ids[pair.start + 1 : pair.end])


TOKENIZERS = ["phi", pytest.param("qwen", marks=needs(QWEN))]
KINDS = [digits(5), digits(7), keys(), names(), emails(), words()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_nothing_but_the_block_changes_and_the_tokens_spell_the_secret(name: str, kind: Any) -> None:
    at = checkpoint(name)
    traces = [trace(at, f"t{number}", [f"{PROSE} {number} {i}." for i in range(4)]) for number in range(6)]
    task = plant(traces, at, kind, block=1, samples=30, hops=1, seed=3)
    base = {one.name: one.ids for one in traces}
    assert Counter(sample.base for sample in task.samples) == dict.fromkeys(base, 30)
    for sample in task.samples:
        before, after = base[sample.base], list(sample.ids)
        old, new = pairs_of(at, before), pairs_of(at, after)
        assert len(new) == 3 and sample.block == 1
        assert after[: new[1].start + 1] == before[: old[1].start + 1]
        assert after[new[1].end :] == before[old[1].end : old[2].memento_end + 1]
        secret = kind.secret(sample.labels)
        assert sample.secret == ("" if kind.name == "word" else secret.text)
        text, sentences = inside(at, after, 1), [carrier.format(secret.text) for carrier in kind.carriers]
        (sentence,) = [sentence for sentence in sentences if sentence in text]
        assert text.replace(sentence, "").split() == inside(at, before, 1).split()
        spelled = decode(at.tokenizer, [after[place] for place in sample.where])
        assert secret.text in spelled and len(spelled) < len(secret.text) + 4
        assert decode(at.tokenizer, after).count(secret.text) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab1 .\n$`{}()\\é🙂漢"), max_size=80), code=st.from_regex("[0-9]{3,7}", fullmatch=True)
)
def test_any_block_reads_back_with_the_sentence_in_it(name: str, text: str, code: str) -> None:
    at = checkpoint(name)
    (base,) = bases_of([trace(at, "t", ["first block", text, "third"])], at, 1, 1)
    for spot in boundaries(text):
        ids, where = put(base, code, "The code {} it is.", spot, at.tokenizer)
        found = inside(at, ids, 1)
        sentence = f"The code {code} it is."
        assert found == insert(text, sentence, spot)[0] and sentence in found
        assert len(found) - len(text) - len(sentence) in (0, 1)
        assert len(pairs_of(at, ids)) == 3
        assert code == decode(at.tokenizer, [ids[place] for place in where]).strip()
        retained = [t for t, time in zip(ids, expiry(ids, at.markup, at.policy), strict=True) if time == NEVER]
        assert retained == [
            t for t, time in zip(base.ids, expiry(base.ids, at.markup, at.policy), strict=True) if time == NEVER
        ]


@pytest.mark.parametrize(
    "text, spots",
    [
        ("", [""]),
        ("a. b", ["", "a.", "b"]),
        ("x is 3.14 or 1,000. Good! Yes? e.g. this", ["", "x is 3.14 or 1,000.", "Good!", "Yes?", "e.g. this"]),
        ("a\n1. b c\n", ["", "a\n", "1. b c\n"]),
        ("a.\n```py\nx. y\n```\nb", ["", "a.", "\n", "```py\nx. y\n```\n", "b"]),
        ("a. ```\nx. y", ["", "a."]),
        ("so \\boxed{a. {b}. c}. d", ["", "so \\boxed{a. {b}. c}.", " d"]),
        ("so \\boxed {a. b", [""]),
        ("$a. b$ \\[c. d\\] \\(e. f\\) $$g.\nh$$ i", ["", "$a. b$ \\[c. d\\] \\(e. f\\) $$g.\nh$$ i"]),
    ],
)
def test_boundaries(text: str, spots: list[str]) -> None:
    """`spots` are the pieces between them, those that are only blank shown where they matter."""
    cuts = boundaries(text)
    assert cuts[0] == 0
    pieces = [text[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    assert [piece.strip(" ") if piece.strip(" ") else piece for piece in pieces] == [s.strip(" ") for s in spots]


@pytest.mark.parametrize(
    "text, spot, found",
    [
        ("", 0, "S."),
        ("ab\ncd", 0, "S.\nab\ncd"),
        ("ab\ncd", 3, "ab\nS.\ncd"),
        ("ab\ncd", 5, "ab\ncd S."),
        ("a\n\nb", 2, "a\nS.\nb"),
        ("a. b", 2, "a. S. b"),
        ("ab ", 3, "ab S."),
    ],
)
def test_a_sentence_gets_a_line_or_a_space_of_its_own(text: str, spot: int, found: str) -> None:
    assert insert(text, "S.", spot) == (found, found.index("S."))


def test_a_code_is_five_questions_by_character_and_two_tokens_for_three_digit_groups() -> None:
    at = checkpoint("phi")
    task = plant([trace(at, f"t{i}", [PROSE] * 3) for i in range(3)], at, digits(4), 1, samples=300, seed=1)
    assert [target.classes for target in task.targets] == [tuple("0123456789")] * 4
    assert {len(sample.where) for sample in task.samples} == {2}
    with pytest.raises(UserError, match=r"token-0 is '\d{3}' in one sample alone"):
        by_token(task, at.tokenizer)
    asked = by_token(replace(task, samples=task.samples * 2), at.tokenizer)
    assert [target.name for target in asked.targets] == ["token-0", "token-1"]
    assert len(asked.targets[1].classes) == 10
    for sample in asked.samples[:50]:
        spelled = [target.classes[label] for target, label in zip(asked.targets, sample.labels, strict=True)]
        assert "".join(spelled) == sample.secret


@needs(QWEN)
def test_a_code_is_five_tokens_for_qwen_and_names_differ_in_length() -> None:
    at = checkpoint("qwen")
    traces = [trace(at, f"t{i}", [PROSE] * 3) for i in range(3)]
    asked = by_token(plant(traces, at, digits(5), 1, samples=60), at.tokenizer)
    assert [target.classes for target in asked.targets] == [tuple("0123456789")] * 5
    assert all("".join(str(label) for label in s.labels) == s.secret for s in asked.samples)
    uneven = replace(words(), targets=(Target("word", ("apple", "Kowalski", "Lindqvist")),))
    people = plant(traces, at, uneven, 1, samples=20)
    assert len({len(sample.where) for sample in people.samples}) > 1 and not people.exact
    tokens = [[at.tokenizer.convert_ids_to_tokens(s.ids[place]) for place in s.where] for s in people.samples]
    assert {len(spelled) for spelled in tokens} == {1, 3, 4}
    asked = by_token(people, at.tokenizer)
    for sample, spelled in zip(asked.samples, tokens, strict=True):
        found = [t.classes[label] for t, label in zip(asked.targets, sample.labels, strict=True) if label >= 0]
        assert found == spelled[:3]  # the fourth, where there is one, is always the same


def test_secrets_are_uniform_independent_of_the_trace_and_used_once() -> None:
    at = checkpoint("phi")
    task = plant([trace(at, f"t{i}", [PROSE] * 2) for i in range(4)], at, digits(5), 0, samples=500, seed=5)
    assert len({sample.secret for sample in task.samples}) == 2000
    for number, target in enumerate(task.targets):
        for base in range(4):
            counts = np.bincount(task.labels(number)[base * 500 : (base + 1) * 500], minlength=10)
            assert ((counts - 50) ** 2 / 50).sum() < 33  # chi-squared with 9 degrees of freedom: p = 1e-4
        assert task.exact[target.name].shape == (2000, 10)
        np.testing.assert_allclose(np.exp(task.exact[target.name]).sum(1), 1)


def test_the_same_seed_plants_the_same() -> None:
    at = checkpoint("phi")
    one, same, other = (plant([trace(at, "t", [PROSE] * 3)], at, digits(5), 1, 100, seed=seed) for seed in (1, 1, 2))
    assert one.samples == same.samples
    assert {s.secret for s in one.samples}.isdisjoint({s.secret for s in other.samples})
    assert len({s.where for s in one.samples}) > 3  # places and sentences vary


def test_a_sentence_goes_to_any_boundary_whichever_sentence_it_is() -> None:
    at = checkpoint("phi")
    task = plant([trace(at, "t", [PROSE] * 2)], at, digits(5), 0, 400)
    found = [(s.secret, inside(at, s.ids, 0)) for s in task.samples]
    for sentence in digits(5).carriers:
        places = {text.index(sentence.format(secret)) for secret, text in found if sentence.format(secret) in text}
        assert places == {insert(PROSE, sentence, spot)[1] for spot in boundaries(PROSE)}
        assert len(places) > 4


def test_secrets_that_stand_in_a_trace_are_not_drawn() -> None:
    at = checkpoint("phi")
    used = " ".join(f"{number:03}" for number in range(1, 1000, 2))
    traces = [trace(at, "t", [PROSE] * 2, "{}"), trace(at, "u", [PROSE, used], "{}")]
    left = [f"{number:03}" for number in range(0, 1000, 2)]
    task = plant(traces, at, digits(3), 0, 200, hops=1)
    assert {sample.secret for sample in task.samples} <= set(left)
    counts = Counter(code[0] for code in left)
    want = np.log([counts[digit] / len(left) for digit in "0123456789"])
    np.testing.assert_allclose(task.exact["digit-0"], np.tile(want, (400, 1)))
    np.testing.assert_allclose(np.exp(task.exact["digit-2"][7]), [0.2, 0] * 5)
    fruit = replace(words(), targets=(Target("word", ("apple", "lemon", "peach")),))
    free = plant([trace(at, "t", [PROSE] * 2, "An apple {}.")], at, fruit, 0, 30)
    assert free.targets == (Target("word", ("lemon", "peach")),)
    np.testing.assert_allclose(free.exact["word"], -np.log(2))
    assert {sample.labels[0] for sample in free.samples} == {0, 1}
    with pytest.raises(UserError, match="only 500: take at most so many"):
        plant(traces, at, digits(3), 0, 251)


@pytest.mark.parametrize("kind", [*KINDS, digits(2)], ids=lambda kind: kind.name)
def test_standing_secrets_are_found_and_struck(kind: Any) -> None:
    """Against a search for each single secret."""
    for target in kind.targets:
        assert not any(a != b and b.startswith(a) for a in target.classes for b in target.classes)
    rng = np.random.default_rng(0)
    text = "".join(secret.text + rng.choice(["", " ", "1"]) for secret in kind.draw(rng, 5)) + "0123456789012345"
    sizes = [len(target.classes) for target in kind.targets]
    if kind.size < 2e5:
        everything = [kind.secret(labels) for labels in np.ndindex(*sizes)]
        found = {secret.labels for secret in everything if secret.text in text}
        assert kind.standing(text) == found
        left = [secret for secret in everything if secret.labels not in found]
        drawn = {secret.labels for secret in kind.draw(rng, len(left), found)}
        assert kind.is_class or drawn == {secret.labels for secret in left}
        for place, target in enumerate(kind.targets):
            share = np.bincount([s.labels[place] for s in left], minlength=len(target.classes)) / len(left)
            np.testing.assert_allclose(np.exp(kind.posteriors(found)[target.name]), share)


def test_refusals(tmp_path: Path) -> None:
    at = checkpoint("phi")
    traces = [trace(at, "t", [PROSE, "ab", PROSE])]
    with pytest.raises(UserError, match=r"no trace has a block 2 .* the longest has 3 blocks"):
        plant(traces, at, digits(5), 2, 20, hops=1)
    with pytest.raises(UserError, match="no trace has a block -1"):
        plant(traces, at, digits(5), -1, 20)
    with pytest.raises(UserError, match=r"block 1 of trace t has 3 tokens and the secret '\d{12}' 4"):
        plant([trace(at, "t", [PROSE, "abc", PROSE])], at, digits(12), 1, 20)
    assert plant([trace(at, "t", [PROSE, "abcd", PROSE])], at, digits(12), 1, 120).samples  # as long as the block
    with pytest.raises(UserError, match="5 samples for 10 classes"):
        plant(traces, at, digits(5), 0, 5)
    slow = replace(at, tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(UserError, match=r"put a tokenizer\.json beside it"):
        plant(traces, slow, digits(5), 0, 20)
    file = tmp_path / "words.txt"
    file.write_text("x\n\nx\n")
    with pytest.raises(UserError, match="holds 1 words"):
        secret_kind(f"word:{file}")
    file.write_text("terms\ncode\npear\nplum\n")
    assert plant(traces, at, secret_kind(f"word:{file}"), 0, 40).targets[0].classes == ("code", "pear", "plum")
    file.write_text("terms\nFirst\npear\n")
    with pytest.raises(UserError, match="2 of 3 secrets stand in the traces"):
        plant(traces, at, secret_kind(f"word:{file}"), 0, 40)
    for spec in ("digits:x", "names", "word:/no/such"):
        with pytest.raises(UserError):
            secret_kind(spec)
    with pytest.raises(UserError, match="at least one digit"):
        secret_kind("digits:0")
    with pytest.raises(UserError, match="at least one hexadecimal digit"):
        secret_kind("key:0")
    assert [secret_kind(s).name for s in ("digits", "digits:3", "key", "name", "email", "word")] == [
        *("digits-5", "digits-3", "key-8", "name", "email", "word")
    ]


def model_for(at: Checkpoint) -> Checkpoint:
    """The tokenizer with a random model that knows its ids."""
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.max_position_embeddings = len(at.tokenizer), 2048
    torch.manual_seed(0)
    return replace(at, model=AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval())


def test_names_of_uneven_length_are_probed_by_the_mean_of_their_tokens(tmp_path: Path) -> None:
    at = model_for(checkpoint("phi"))
    people = replace(names(), targets=(Target("first", FIRST[:5]), Target("last", LAST[:10])))
    traces = [trace(at, "t", ["One.", "Two. Three. So it is.", "Four."])]
    even, uneven = (plant(traces, at, kind, 1, 45, hops=0) for kind in (digits(2), people))
    assert secret_carrier(even.samples) == Carrier("secret", 0, "all")
    assert secret_carrier(uneven.samples) == Carrier("secret", 0, "mean")
    settings = Settings(hops=(0,), layers=(1,), kv=("v",), mlp=False, within_traces=True)
    results = run(at, uneven, settings, tmp_path / "run").results
    assert set(results["condition"]) >= {"open", "sealed", "causal", "shuffled", "unerased", "text"}
    own = results[results["condition"] == "unerased"]
    assert set(own["carrier"]) == {"secret/mean"} and set(own["target"]) == {"first", "last"}
    assert not results["condition"].eq("exact").any()


@needs(QWEN, *TRACES)
def test_real_traces() -> None:
    at = checkpoint("qwen")
    traces = traces_of(at, [str(DATA / name) for name in TRACES])
    for block in range(3):
        task = plant(traces, at, digits(5), block, samples=60, hops=1, seed=block)
        assert len(task.samples) == 120 and set(task.exact) == {f"digit-{place}" for place in range(5)}
        for sample in task.samples:
            (base,) = [one for one in traces if one.name == sample.base]
            assert len(pairs_of(at, sample.ids)) == block + 2
            text, original = inside(at, sample.ids, block), inside(at, base.ids, block)
            assert text.count(sample.secret) == 1 and len(text) - len(original) < 60
            assert original not in text or text.startswith(original) or text.endswith(original)
            assert [at.tokenizer.decode(sample.ids[place]) for place in sample.where] == list(sample.secret)
    asked = natural_task(traces, at, "regex:(number|length|list)", hops=0, classes=2)
    assert len(asked.samples) > 4


@pytest.mark.parametrize(
    "spec, text, label, shown",
    [
        ("last-number", "x_1 = 24, so 3.14 and 2x, 1,000.", "4", "24"),
        ("last-number", "So it is 107.", "7", "107"),
        ("last-number", "no numbers, x2", None, None),
        ("operation", "a + b * c + d - e", "+", "+"),
        ("operation", "well-known non-zero 3 \\times 4", "×", "\\times"),
        ("operation", "- item\n- \\(x\\) − 2", "-", "−"),
        ("operation", "\\frac{a}{b} and 2 + 3", "/", "\\frac"),
        ("operation", "2**3", None, None),
        ("regex:(\\w+) thing", "one thing, two thing", "one", "one"),
        ("regex:(z)?x", "x", None, None),
    ],
)
def test_attributes(spec: str, text: str, label: str | None, shown: str | None) -> None:
    found = attribute(spec)(text)
    assert (found and found.label) == label
    assert (found and text[found.span.start : found.span.stop]) == shown


def test_natural_task() -> None:
    at = checkpoint("phi")
    blocks = [f"So {10 * i + i % 3} it is, and {i} + {i}." for i in range(12)]
    traces = [trace(at, f"t{number}", [*blocks, "no number here"]) for number in range(2)]
    task = natural_task(traces, at, "regex:So (\\d+) it", hops=2, classes=11)
    assert len(task.samples) == 20 and {sample.base for sample in task.samples} == {"t0", "t1"}
    for sample in task.samples:
        spelled = decode(at.tokenizer, [sample.ids[place] for place in sample.where])
        assert spelled == task.targets[0].classes[sample.labels[0]]
        assert len(pairs_of(at, sample.ids)) == sample.block + 3
    few = natural_task(traces, at, "last-number", hops=0, classes=2)
    assert len(few.targets[0].classes) == 2 and {sample.labels[0] for sample in few.samples} == {0, 1}
    with pytest.raises(UserError, match="no block with 20 more behind it"):
        natural_task(traces, at, "last-number", hops=20)
    for spec, message in (("regex:(", "no regular"), ("regex:x", "no group"), ("size", "no attribute")):
        with pytest.raises(UserError, match=message):
            natural_task(traces, at, spec)
    with pytest.raises(UserError, match="in one sample alone"):
        natural_task(traces[:1], at, "last-number", hops=0)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab1é🙂漢 "), min_size=1, max_size=20), st.data())
def test_spelling_agrees_with_offsets(text: str, data: st.DataObject) -> None:
    tokenizer = checkpoint("phi").tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    offsets = enumerate(encoded["offset_mapping"])
    want = [place for place, (a, b) in offsets if a < stop and b > start]
    found = list(spelling(encoded["input_ids"], range(start, stop), tokenizer))
    assert set(found) <= set(want)
    assert text[start:stop] in decode(tokenizer, [encoded["input_ids"][place] for place in want])
    if text.isascii():
        assert found == want


@pytest.fixture(scope="module")
def toy() -> Checkpoint:
    return load("toy-open")


@pytest.mark.parametrize("level", range(4))
def test_ledger_labels_are_what_the_trace_spells(toy: Checkpoint, level: int) -> None:
    task = ledger_task(toy, level, 20, seed=1, block=2)
    assert [t.name for t in task.targets] == [f"note-{i}" for i in range(5)] + [f"hidden-{i}" for i in range(level)]
    assert len({sample.base for sample in task.samples}) == 20
    for sample in task.samples:
        assert "".join(toy.tokenizer.convert_ids_to_tokens([sample.ids[p] for p in sample.where])) == sample.secret
        assert "".join(map(str, sample.labels)) == sample.secret
        pair = pairs_of(toy, sample.ids)[2]
        assert all(pair.start < place < pair.end for place in sample.where)
        text = toy.tokenizer.convert_ids_to_tokens(list(sample.ids))
        shown = text[pair.memento_start + 1 : pair.memento_end]
        after = text[pair.end - 5 : pair.end : 2]  # the state's digits, an increment before each
        assert text[sample.where[0]] == text[pair.start + 1]
        assert shown == after[: 3 - level] + ["*"] * level
        assert "".join(after[3 - level :]) == sample.secret[5:]
        assert text[-1] == "<eos>"


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_ledger_digits_are_uniform_given_all_that_is_retained(toy: Checkpoint, level: int, block: int) -> None:
    """Every hidden state is reached equally often by problems with the same retained text, answer included.

    What one block adds to the hidden digits the next one takes away: a bijection between the problems
    behind any two of the 10 ** h states. Applied to one problem it gives each state once.
    """
    one = Ledger.sample(np.random.default_rng(level), level)
    texts, states = set(), Counter[str]()
    for shift in np.ndindex(*[10] * level):
        increments = one.increments.copy()
        for number, sign in ((block, 1), (block + 1, -1)):
            place = increments[number, 0, 3 - level :]
            increments[number, 0, 3 - level :] = (place + sign * np.array(shift)) % 10
        other = Ledger(level, one.start, one.notes, increments)
        ids = [*toy.prompt_ids(other.prompt), *toy.tokenizer.convert_tokens_to_ids(other.response())]
        times = expiry(ids, toy.markup, toy.policy)
        texts.add(tuple(token for token, time in zip(ids, times, strict=True) if time == NEVER))
        states["".join(map(str, other.states[block, -1, 3 - level :]))] += 1
    assert len(texts) == 1
    assert len(states) == 10**level and set(states.values()) == {1}


def test_ledger_problems_are_new_and_bounded(toy: Checkpoint) -> None:
    task = ledger_task(toy, 1, 30)
    rng = np.random.default_rng([0, 1, STREAM])
    known = {tuple(Ledger.sample(rng, 1).notes[1]) for _ in range(400)}
    assert len(known & {sample.labels[:5] for sample in task.samples}) <= 1
    assert ledger_task(toy, 1, 10).samples == task.samples[:10]
    assert ledger_task(toy, 1, 10, seed=1).samples != task.samples[:10]
    np.testing.assert_allclose(np.exp(task.exact["hidden-0"]), np.full((30, 10), 0.1))
    assert ledger_task(toy, 0, 30, block=3).targets[-1].name == "note-4"
    for level, block in ((4, 1), (1, 3), (0, 4), (0, -1)):
        with pytest.raises(UserError, match="ledger has levels 0 to 3"):
            ledger_task(toy, level, 3, block=block)
    with pytest.raises(UserError, match="does not spell ledger"):
        ledger_task(checkpoint("phi"), 1, 3)
