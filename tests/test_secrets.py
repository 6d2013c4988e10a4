"""Planted secrets: where they stand, and what no text tells of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.paths import DATA, requires_data
from helpers.text_traces import PROSE, QWEN, TRACES, checkpoint, inside, model_for, pairs_of, trace
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
def test_nothing_but_the_block_changes_and_the_tokens_spell_the_secret(name: str, kind: Any) -> None:
    at = checkpoint(name)
    traces = [trace(at, f"t{number}", [f"{PROSE} {number} {i}." for i in range(4)]) for number in range(6)]
    task = plant_secrets(traces, at, kind, block=1, samples=30, hops=1, seed=3)
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
        text, sentences = inside(at, after, 1), [carrier.format(secret.text) for carrier in kind.sentence_templates]
        (sentence,) = [sentence for sentence in sentences if sentence in text]
        assert text.replace(sentence, "").split() == inside(at, before, 1).split()
        spelled = decode(at.tokenizer, [after[place] for place in sample.secret_indices])
        assert secret.text in spelled and len(spelled) < len(secret.text) + 4
        assert decode(at.tokenizer, after).count(secret.text) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab1 .\n$`{}()\\é🙂漢"), max_size=80), code=st.from_regex("[0-9]{3,7}", fullmatch=True)
)
def test_any_block_reads_back_with_the_sentence_in_it(name: str, text: str, code: str) -> None:
    at = checkpoint(name)
    (base,) = base_traces([trace(at, "t", ["first block", text, "third"])], at, 1, 1)
    for insertion_point in sentence_boundaries(text):
        ids, where = insert_secret(base, code, "The code {} it is.", insertion_point, at.tokenizer)
        found = inside(at, ids, 1)
        sentence = f"The code {code} it is."
        assert found == insert_sentence(text, sentence, insertion_point)[0] and sentence in found
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
def test_boundaries(text: str, insertion_points: list[str]) -> None:
    """`insertion_points` are the pieces between them, those that are only blank shown where they matter."""
    cuts = sentence_boundaries(text)
    assert cuts[0] == 0
    pieces = [text[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    assert [piece.strip(" ") if piece.strip(" ") else piece for piece in pieces] == [
        s.strip(" ") for s in insertion_points
    ]


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
def test_a_sentence_gets_a_line_or_a_space_of_its_own(text: str, insertion_point: int, found: str) -> None:
    assert insert_sentence(text, "S.", insertion_point) == (found, found.index("S."))


@requires_data(QWEN)
def test_a_code_is_five_tokens_for_qwen_and_names_differ_in_length() -> None:
    at = checkpoint("qwen")
    traces = [trace(at, f"t{i}", [PROSE] * 3) for i in range(3)]
    codes = plant_secrets(traces, at, digit_codes(5), 1, samples=60)
    assert {len(sample.secret_indices) for sample in codes.samples} == {5} and len(codes.exact_log_posteriors) == 5
    uneven = replace(secret_words(), targets=(Target("word", ("apple", "Kowalski", "Lindqvist")),))
    people = plant_secrets(traces, at, uneven, 1, samples=20)
    assert {len(sample.secret_indices) for sample in people.samples} == {1, 3, 4} and not people.exact_log_posteriors


def test_a_code_is_two_tokens_where_digits_are_grouped_by_three() -> None:
    at = checkpoint("phi")
    task = plant_secrets(
        [trace(at, f"t{i}", [PROSE] * 3) for i in range(3)], at, digit_codes(4), 1, samples=300, seed=1
    )
    assert [target.classes for target in task.targets] == [tuple("0123456789")] * 4
    assert {len(sample.secret_indices) for sample in task.samples} == {2}


def test_secrets_are_uniform_independent_of_the_trace_and_used_once() -> None:
    at = checkpoint("phi")
    task = plant_secrets(
        [trace(at, f"t{i}", [PROSE] * 2) for i in range(4)], at, digit_codes(5), 0, samples=500, seed=5
    )
    assert len({sample.secret for sample in task.samples}) == 2000
    for number, target in enumerate(task.targets):
        for base in range(4):
            counts = np.bincount(task.labels(number)[base * 500 : (base + 1) * 500], minlength=10)
            assert ((counts - 50) ** 2 / 50).sum() < 33  # chi-squared with 9 degrees of freedom: p = 1e-4
        assert task.exact_log_posteriors[target.name].shape == (2000, 10)
        np.testing.assert_allclose(np.exp(task.exact_log_posteriors[target.name]).sum(1), 1)


def test_the_same_seed_plants_the_same() -> None:
    at = checkpoint("phi")
    one, same, other = (
        plant_secrets([trace(at, "t", [PROSE] * 3)], at, digit_codes(5), 1, 100, seed=seed) for seed in (1, 1, 2)
    )
    assert one.samples == same.samples
    assert {s.secret for s in one.samples}.isdisjoint({s.secret for s in other.samples})
    assert len({s.secret_indices for s in one.samples}) > 3  # places and sentences vary


def test_a_sentence_goes_to_any_boundary_whichever_sentence_it_is() -> None:
    at = checkpoint("phi")
    task = plant_secrets([trace(at, "t", [PROSE] * 2)], at, digit_codes(5), 0, 400)
    found = [(s.secret, inside(at, s.ids, 0)) for s in task.samples]
    for sentence in digit_codes(5).sentence_templates:
        places = {text.index(sentence.format(secret)) for secret, text in found if sentence.format(secret) in text}
        assert places == {
            insert_sentence(PROSE, sentence, insertion_point)[1] for insertion_point in sentence_boundaries(PROSE)
        }
        assert len(places) > 4


def test_secrets_that_stand_in_a_trace_are_not_drawn() -> None:
    at = checkpoint("phi")
    used = " ".join(f"{number:03}" for number in range(1, 1000, 2))
    traces = [trace(at, "t", [PROSE] * 2, "{}"), trace(at, "u", [PROSE, used], "{}")]
    left = [f"{number:03}" for number in range(0, 1000, 2)]
    task = plant_secrets(traces, at, digit_codes(3), 0, 200, hops=1)
    assert {sample.secret for sample in task.samples} <= set(left)
    counts = Counter(code[0] for code in left)
    want = np.log([counts[digit] / len(left) for digit in "0123456789"])
    np.testing.assert_allclose(task.exact_log_posteriors["digit-0"], np.tile(want, (400, 1)))
    np.testing.assert_allclose(np.exp(task.exact_log_posteriors["digit-2"][7]), [0.2, 0] * 5)
    fruit = replace(secret_words(), targets=(Target("word", ("apple", "lemon", "peach")),))
    free = plant_secrets([trace(at, "t", [PROSE] * 2, "An apple {}.")], at, fruit, 0, 30)
    assert free.targets == (Target("word", ("lemon", "peach")),)
    np.testing.assert_allclose(free.exact_log_posteriors["word"], -np.log(2))
    assert {sample.labels[0] for sample in free.samples} == {0, 1}
    with pytest.raises(UserError, match="only 500: take at most so many"):
        plant_secrets(traces, at, digit_codes(3), 0, 251)


@pytest.mark.parametrize("kind", [*KINDS, digit_codes(2)], ids=lambda kind: kind.name)
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
        assert kind.find_in_text(text) == found
        left = [secret for secret in everything if secret.labels not in found]
        drawn = {secret.labels for secret in kind.draw(rng, len(left), found)}
        assert kind.has_single_part or drawn == {secret.labels for secret in left}
        for place, target in enumerate(kind.targets):
            share = np.bincount([s.labels[place] for s in left], minlength=len(target.classes)) / len(left)
            np.testing.assert_allclose(np.exp(kind.posteriors(found)[target.name]), share)


def test_refusals(tmp_path: Path) -> None:
    at = checkpoint("phi")
    traces = [trace(at, "t", [PROSE, "ab", PROSE])]
    with pytest.raises(UserError, match=r"no trace has a block 2 .* the longest has 3 blocks"):
        plant_secrets(traces, at, digit_codes(5), 2, 20, hops=1)
    with pytest.raises(UserError, match="no trace has a block -1"):
        plant_secrets(traces, at, digit_codes(5), -1, 20)
    with pytest.raises(UserError, match=r"block 1 of trace t has 3 tokens and the secret '\d{12}' 4"):
        plant_secrets([trace(at, "t", [PROSE, "abc", PROSE])], at, digit_codes(12), 1, 20)
    assert plant_secrets(
        [trace(at, "t", [PROSE, "abcd", PROSE])], at, digit_codes(12), 1, 120
    ).samples  # as long as the block
    with pytest.raises(UserError, match="5 samples for 10 classes"):
        plant_secrets(traces, at, digit_codes(5), 0, 5)
    slow = replace(at, tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(UserError, match=r"put a tokenizer\.json beside it"):
        plant_secrets(traces, slow, digit_codes(5), 0, 20)
    file = tmp_path / "words.txt"
    file.write_text("x\n\nx\n")
    with pytest.raises(UserError, match="holds 1 words"):
        secret_kind(f"word:{file}")
    file.write_text("terms\ncode\npear\nplum\n")
    assert plant_secrets(traces, at, secret_kind(f"word:{file}"), 0, 40).targets[0].classes == ("code", "pear", "plum")
    file.write_text("terms\nFirst\npear\n")
    with pytest.raises(UserError, match="2 of 3 secrets stand in the traces"):
        plant_secrets(traces, at, secret_kind(f"word:{file}"), 0, 40)
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
    at = model_for(checkpoint("phi"))
    people = replace(person_names(), targets=(Target("first", FIRST_NAMES[:5]), Target("last", LAST_NAMES[:10])))
    traces = [trace(at, "t", ["One.", "Two. Three. So it is.", "Four."])]
    even, uneven = (plant_secrets(traces, at, kind, 1, 45, hops=0) for kind in (digit_codes(2), people))
    assert secret_carrier(even.samples) == Carrier("secret", 0, "all")
    assert secret_carrier(uneven.samples) == Carrier("secret", 0, "mean")
    where: dict[str, Any] = {"hops": (0,), "layers": (1,), "kv": ("v",)}
    results = gt.probe(at, task=uneven, **where, mlp=False, within_traces=True).results
    assert set(results["condition"]) >= {"open", "sealed", "causal", "shuffled", "unerased", "text"}
    own = results[results["condition"] == "unerased"]
    assert set(own["carrier"]) == {"secret/mean"} and set(own["target"]) == {"first", "last"}
    assert not results["condition"].eq("exact").any()


@requires_data(QWEN, *TRACES)
def test_real_traces() -> None:
    at = checkpoint("qwen")
    traces = load_traces(at, [str(DATA / name) for name in TRACES])
    for block in range(3):
        task = plant_secrets(traces, at, digit_codes(5), block, samples=60, hops=1, seed=block)
        assert len(task.samples) == 120 and set(task.exact_log_posteriors) == {f"digit-{place}" for place in range(5)}
        for sample in task.samples:
            (base,) = [one for one in traces if one.name == sample.base]
            assert len(pairs_of(at, sample.ids)) == block + 2
            text, original = inside(at, sample.ids, block), inside(at, base.ids, block)
            assert text.count(sample.secret) == 1 and len(text) - len(original) < 60
            assert original not in text or text.startswith(original) or text.endswith(original)
            assert [at.tokenizer.decode(sample.ids[place]) for place in sample.secret_indices] == list(sample.secret)
