"""Planted secrets: their tokens, and that the retained text does not determine them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.paths import DATA, requires_data
from helpers.text_traces import (
    PROSE,
    QWEN,
    TRACES,
    block_text,
    blocks_of,
    checkpoint_with_delimiters,
    trace,
    with_random_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.data.task import Target
from ghosttrace.data.tokens import load_traces
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.probing.carriers import Carrier, secret_carrier
from ghosttrace.probing.planting import (
    base_traces,
    decode,
    insert_secret,
    insert_sentence,
    plant_secrets,
    sentence_boundaries,
)
from ghosttrace.probing.secrets import (
    FIRST_NAMES,
    LAST_NAMES,
    api_keys,
    digit_codes,
    email_addresses,
    person_names,
    secret_kind,
    secret_words,
)

TOKENIZERS = ["phi", pytest.param("qwen", marks=requires_data(QWEN))]
KINDS = [digit_codes(5), digit_codes(7), api_keys(), person_names(), email_addresses(), secret_words()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_only_the_block_changes_and_its_tokens_spell_the_secret(name: str, kind: Any) -> None:
    checkpoint = checkpoint_with_delimiters(name)
    traces = [trace(checkpoint, f"t{number}", [f"{PROSE} {number} {i}." for i in range(4)]) for number in range(6)]
    task = plant_secrets(traces, checkpoint, kind, block=1, samples=30, hops=1, seed=3)
    base = {item.name: item.ids for item in traces}
    assert Counter(sample.base for sample in task.samples) == dict.fromkeys(base, 30)
    for sample in task.samples:
        before, after = base[sample.base], list(sample.ids)
        old, new = blocks_of(checkpoint, before), blocks_of(checkpoint, after)
        assert len(new) == 3 and sample.block == 1
        assert after[: new[1].start + 1] == before[: old[1].start + 1]
        assert after[new[1].end :] == before[old[1].end : old[2].memento_end + 1]
        secret = kind.secret(sample.labels)
        assert sample.secret == ("" if kind.name == "word" else secret.text)
        text, sentences = (
            block_text(checkpoint, after, 1),
            [carrier.format(secret.text) for carrier in kind.sentence_templates],
        )
        (sentence,) = [sentence for sentence in sentences if sentence in text]
        assert text.replace(sentence, "").split() == block_text(checkpoint, before, 1).split()
        spelled = decode(checkpoint.tokenizer, [after[index] for index in sample.secret_indices])
        assert secret.text in spelled and len(spelled) < len(secret.text) + 4
        assert decode(checkpoint.tokenizer, after).count(secret.text) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab1 .\n$`{}()\\é🙂漢"), max_size=80), code=st.from_regex("[0-9]{3,7}", fullmatch=True)
)
def test_inserted_sentence_survives_tokenization(name: str, text: str, code: str) -> None:
    checkpoint = checkpoint_with_delimiters(name)
    (base,) = base_traces([trace(checkpoint, "t", ["first block", text, "third"])], checkpoint, 1, 1)
    for insertion_point in sentence_boundaries(text):
        ids, indices = insert_secret(base, code, "The code {} it is.", insertion_point, checkpoint.tokenizer)
        changed_text = block_text(checkpoint, ids, 1)
        sentence = f"The code {code} it is."
        assert changed_text == insert_sentence(text, sentence, insertion_point)[0] and sentence in changed_text
        assert len(changed_text) - len(text) - len(sentence) in (0, 1)
        assert len(blocks_of(checkpoint, ids)) == 3
        assert code == decode(checkpoint.tokenizer, [ids[index] for index in indices]).strip()
        retained = [
            t for t, time in zip(ids, expiry(ids, checkpoint.markup, checkpoint.policy), strict=True) if time == NEVER
        ]
        assert retained == [
            t
            for t, time in zip(base.ids, expiry(base.ids, checkpoint.markup, checkpoint.policy), strict=True)
            if time == NEVER
        ]


@pytest.mark.parametrize(
    "text, insertion_points",
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
def test_insertion_points(text: str, insertion_points: list[str]) -> None:
    """The expected list contains the pieces between insertion points; blank pieces are listed where they matter."""
    cuts = sentence_boundaries(text)
    assert cuts[0] == 0
    pieces = [text[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    assert [piece.strip(" ") if piece.strip(" ") else piece for piece in pieces] == [
        s.strip(" ") for s in insertion_points
    ]


@pytest.mark.parametrize(
    "text, insertion_point, expected",
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
def test_inserted_sentence_is_separated_by_a_line_or_space(text: str, insertion_point: int, expected: str) -> None:
    assert insert_sentence(text, "S.", insertion_point) == (expected, expected.index("S."))


@requires_data(QWEN)
def test_qwen_code_has_five_tokens_and_names_vary_in_length() -> None:
    checkpoint = checkpoint_with_delimiters("qwen")
    traces = [trace(checkpoint, f"t{i}", [PROSE] * 3) for i in range(3)]
    codes = plant_secrets(traces, checkpoint, digit_codes(5), 1, samples=60)
    assert {len(sample.secret_indices) for sample in codes.samples} == {5} and len(codes.exact_log_posteriors) == 5
    uneven = replace(secret_words(), targets=(Target("word", ("apple", "Kowalski", "Lindqvist")),))
    people = plant_secrets(traces, checkpoint, uneven, 1, samples=20)
    assert {len(sample.secret_indices) for sample in people.samples} == {1, 3, 4} and not people.exact_log_posteriors


def test_code_has_two_tokens_if_digits_are_grouped_by_three() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    task = plant_secrets(
        [trace(checkpoint, f"t{i}", [PROSE] * 3) for i in range(3)], checkpoint, digit_codes(4), 1, samples=300, seed=1
    )
    assert [target.classes for target in task.targets] == [tuple("0123456789")] * 4
    assert {len(sample.secret_indices) for sample in task.samples} == {2}


def test_secrets_are_uniform_independent_of_the_trace_and_used_once() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    task = plant_secrets(
        [trace(checkpoint, f"t{i}", [PROSE] * 2) for i in range(4)], checkpoint, digit_codes(5), 0, samples=500, seed=5
    )
    assert len({sample.secret for sample in task.samples}) == 2000
    for number, target in enumerate(task.targets):
        for base in range(4):
            counts = np.bincount(task.labels(number)[base * 500 : (base + 1) * 500], minlength=10)
            assert ((counts - 50) ** 2 / 50).sum() < 33  # chi-squared with 9 degrees of freedom: p = 1e-4
        assert task.exact_log_posteriors[target.name].shape == (2000, 10)
        np.testing.assert_allclose(np.exp(task.exact_log_posteriors[target.name]).sum(1), 1)


def test_same_seed_plants_the_same_secrets() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    first, repeated, other = (
        plant_secrets([trace(checkpoint, "t", [PROSE] * 3)], checkpoint, digit_codes(5), 1, 100, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.samples == repeated.samples
    assert {s.secret for s in first.samples}.isdisjoint({s.secret for s in other.samples})
    assert len({s.secret_indices for s in first.samples}) > 3  # insertion points and sentences vary


def test_sentences_are_inserted_at_every_boundary() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    task = plant_secrets([trace(checkpoint, "t", [PROSE] * 2)], checkpoint, digit_codes(5), 0, 400)
    planted = [(s.secret, block_text(checkpoint, s.ids, 0)) for s in task.samples]
    for sentence in digit_codes(5).sentence_templates:
        offsets = {text.index(sentence.format(secret)) for secret, text in planted if sentence.format(secret) in text}
        assert offsets == {
            insert_sentence(PROSE, sentence, insertion_point)[1] for insertion_point in sentence_boundaries(PROSE)
        }
        assert len(offsets) > 4


def test_secrets_in_a_trace_are_not_drawn() -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    used = " ".join(f"{number:03}" for number in range(1, 1000, 2))
    traces = [trace(checkpoint, "t", [PROSE] * 2, "{}"), trace(checkpoint, "u", [PROSE, used], "{}")]
    remaining = [f"{number:03}" for number in range(0, 1000, 2)]
    task = plant_secrets(traces, checkpoint, digit_codes(3), 0, 200, hops=1)
    assert {sample.secret for sample in task.samples} <= set(remaining)
    counts = Counter(code[0] for code in remaining)
    expected = np.log([counts[digit] / len(remaining) for digit in "0123456789"])
    np.testing.assert_allclose(task.exact_log_posteriors["digit-0"], np.tile(expected, (400, 1)))
    np.testing.assert_allclose(np.exp(task.exact_log_posteriors["digit-2"][7]), [0.2, 0] * 5)
    fruit = replace(secret_words(), targets=(Target("word", ("apple", "lemon", "peach")),))
    free = plant_secrets([trace(checkpoint, "t", [PROSE] * 2, "An apple {}.")], checkpoint, fruit, 0, 30)
    assert free.targets == (Target("word", ("lemon", "peach")),)
    np.testing.assert_allclose(free.exact_log_posteriors["word"], -np.log(2))
    assert {sample.labels[0] for sample in free.samples} == {0, 1}
    with pytest.raises(UserError, match="only 500: give fewer samples"):
        plant_secrets(traces, checkpoint, digit_codes(3), 0, 251)


@pytest.mark.parametrize("kind", [*KINDS, digit_codes(2)], ids=lambda kind: kind.name)
def test_secrets_in_the_text_are_found_and_excluded(kind: Any) -> None:
    """Compared with a search for each secret."""
    for target in kind.targets:
        assert not any(a != b and b.startswith(a) for a in target.classes for b in target.classes)
    rng = np.random.default_rng(0)
    text = "".join(secret.text + rng.choice(["", " ", "1"]) for secret in kind.draw(rng, 5)) + "0123456789012345"
    sizes = [len(target.classes) for target in kind.targets]
    if kind.size < 2e5:
        everything = [kind.secret(labels) for labels in np.ndindex(*sizes)]
        present = {secret.labels for secret in everything if secret.text in text}
        assert kind.find_in_text(text) == present
        remaining = [secret for secret in everything if secret.labels not in present]
        drawn = {secret.labels for secret in kind.draw(rng, len(remaining), present)}
        assert kind.has_single_part or drawn == {secret.labels for secret in remaining}
        for number, target in enumerate(kind.targets):
            share = np.bincount([s.labels[number] for s in remaining], minlength=len(target.classes)) / len(remaining)
            np.testing.assert_allclose(np.exp(kind.posteriors(present)[target.name]), share)


def test_invalid_input_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_with_delimiters("phi")
    traces = [trace(checkpoint, "t", [PROSE, "ab", PROSE])]
    with pytest.raises(UserError, match=r"no trace has a block 2 .* the longest has 3 blocks"):
        plant_secrets(traces, checkpoint, digit_codes(5), 2, 20, hops=1)
    with pytest.raises(UserError, match="no trace has a block -1"):
        plant_secrets(traces, checkpoint, digit_codes(5), -1, 20)
    with pytest.raises(UserError, match=r"block 1 of trace t has 3 tokens and the secret '\d{12}' 4"):
        plant_secrets([trace(checkpoint, "t", [PROSE, "abc", PROSE])], checkpoint, digit_codes(12), 1, 20)
    assert plant_secrets(
        [trace(checkpoint, "t", [PROSE, "abcd", PROSE])], checkpoint, digit_codes(12), 1, 120
    ).samples  # as long as the block
    with pytest.raises(UserError, match="5 samples for 10 classes"):
        plant_secrets(traces, checkpoint, digit_codes(5), 0, 5)
    slow = replace(checkpoint, tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(UserError, match=r"put a tokenizer\.json beside the model"):
        plant_secrets(traces, slow, digit_codes(5), 0, 20)
    file = tmp_path / "words.txt"
    file.write_text("x\n\nx\n")
    with pytest.raises(UserError, match="holds 1 words"):
        secret_kind(f"word:{file}")
    file.write_text("terms\ncode\npear\nplum\n")
    assert plant_secrets(traces, checkpoint, secret_kind(f"word:{file}"), 0, 40).targets[0].classes == (
        "code",
        "pear",
        "plum",
    )
    file.write_text("terms\nFirst\npear\n")
    with pytest.raises(UserError, match="2 of 3 secrets already occur in the traces"):
        plant_secrets(traces, checkpoint, secret_kind(f"word:{file}"), 0, 40)
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


def test_names_of_uneven_length_are_probed_by_the_mean_of_their_tokens() -> None:
    checkpoint = with_random_model(checkpoint_with_delimiters("phi"))
    people = replace(person_names(), targets=(Target("first", FIRST_NAMES[:5]), Target("last", LAST_NAMES[:10])))
    traces = [trace(checkpoint, "t", ["One.", "Two. Three. So it is.", "Four."])]
    even, uneven = (plant_secrets(traces, checkpoint, kind, 1, 45, hops=0) for kind in (digit_codes(2), people))
    assert secret_carrier(even.samples) == Carrier("secret", 0, "all")
    assert secret_carrier(uneven.samples) == Carrier("secret", 0, "mean")
    site_options: dict[str, Any] = {"hops": (0,), "layers": (1,), "kv": ("v",)}
    results = gt.probe(checkpoint, task=uneven, **site_options, mlp=False, within_traces=True).results
    controls = {"swapped", "shuffled", "unerased", "control-task"}
    assert set(results["condition"]) == controls | {"open", "earlier", "decoder", "half-decoder", "text"}
    own = results[results["condition"] == "unerased"]
    assert set(own["carrier"]) == {"secret/mean"} and set(own["target"]) == {"first", "last"}
    assert not results["condition"].eq("exact").any()


@requires_data(QWEN, *TRACES)
def test_real_traces() -> None:
    checkpoint = checkpoint_with_delimiters("qwen")
    traces = load_traces(checkpoint, [str(DATA / name) for name in TRACES])
    for block in range(3):
        task = plant_secrets(traces, checkpoint, digit_codes(5), block, samples=60, hops=1, seed=block)
        assert len(task.samples) == 120 and set(task.exact_log_posteriors) == {f"digit-{index}" for index in range(5)}
        for sample in task.samples:
            (base,) = [item for item in traces if item.name == sample.base]
            assert len(blocks_of(checkpoint, sample.ids)) == block + 2
            text, original = block_text(checkpoint, sample.ids, block), block_text(checkpoint, base.ids, block)
            assert text.count(sample.secret) == 1 and len(text) - len(original) < 60
            assert original not in text or text.startswith(original) or text.endswith(original)
            assert [checkpoint.tokenizer.decode(sample.ids[index]) for index in sample.secret_indices] == list(
                sample.secret
            )
