"""`story`: its problems, splits, counterfactual blocks, harness, training rows, and what its sealed text allows."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.paths import requires_smollm2
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.story_rows import row, training_story
from ghosttrace.ablation.collect import DonorBlocks
from ghosttrace.bench import BENCH_GROUPS, load_bench
from ghosttrace.bench.benchmark import Counterfactual, Problem
from ghosttrace.bench.story import OMISSIONS, SOURCES, draw_story, grade, story, story_harness
from ghosttrace.bench.story_problem import AMOUNTS, CHAIN_LENGTHS, Story
from ghosttrace.bench.story_texts import NAMES, SETTINGS, WORDINGS, Split
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import load_tokenizer
from ghosttrace.training.examples import IGNORE_INDEX

DELIMITERS = ("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>")
CONDITIONS = [(omission, source) for omission in OMISSIONS for source in SOURCES]
SPLITS: tuple[Split, ...] = ("train", "test")


class Characters:
    """Tokenizer stub: one token per character, and one per delimiter."""

    eos_token_id = 4

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        parts = re.findall("|".join(map(re.escape, DELIMITERS)) + "|.|\n", text)
        return {"input_ids": [DELIMITERS.index(p) if p in DELIMITERS else ord(p) + 10 for p in parts]}

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return f"{turns[0]['content']}\n"


TOKENIZER = Characters()
MARKUP = Markup(0, 1, 2, 3, assistant_header=(ord("\n") + 10,))
POLICY = Policy(mask_delimiters=False)

stories = st.builds(
    lambda seed, split, condition: draw_story(np.random.default_rng(seed), split, *condition),
    st.integers(0, 2**32),
    st.sampled_from(SPLITS),
    st.sampled_from(CONDITIONS),
)


def solve(prompt: str, hidden: int | None = None) -> int:
    """Solve a problem from its prompt alone, sentence by sentence; `hidden` is the amount that the prompt hides."""
    known: dict[str, int] = {}
    everyone = {*NAMES["train"], *NAMES["test"]}
    *facts, question = re.split(r"(?<=\.) |Now say: ", prompt)
    for fact in filter(None, facts):
        people = [word for word in re.findall(r"[A-Z]\w+", fact) if word in everyone]
        if fact.startswith("Compared"):
            people.reverse()
        found = re.search(r"\d+", fact)
        amount = int(found[0]) if found else hidden
        who, *others = people
        assert who not in known and all(other in known for other in others)
        if not others:
            assert amount is not None
            known[who] = amount
        elif "twice" in fact:
            known[who] = 2 * known[others[0]]
        elif len(others) == 2:
            known[who] = known[others[0]] + known[others[1]]
        else:
            assert amount is not None and ("more" in fact) != ("fewer" in fact)
            known[who] = known[others[0]] + (amount if "more" in fact else -amount)
    (asked,) = [word for word in re.findall(r"[A-Z]\w+", question) if word in everyone]
    return known[asked]


def pairs(response: str) -> list[tuple[str, str]]:
    """Return the texts of each block and its memento."""
    return re.findall(r"<\|block_start\|>(.*?)<\|block_end\|><\|summary_start\|>(.*?)<\|summary_end\|>", response)


def hidden_amount(one: Story) -> int | None:
    return one.steps[one.controlled].operand if one.observed else None


@settings(max_examples=200, deadline=None)
@given(stories)
def test_answer_follows_from_the_text(one: Story) -> None:
    assert one.answer == solve(one.prompt, hidden_amount(one)) and 0 < one.answer < 1000
    blocks = pairs(one.response)
    known = {one.names[0]: one.start}
    for number, (block, memento) in enumerate(blocks):
        name, words, first, sign, second, result = re.fullmatch(
            r"(\w+) (\w+ .*?): (\d+)([-+*])(\d+)=(\d+)\.", block
        ).groups()  # type: ignore[union-attr]
        assert {"+": int(first) + int(second), "-": int(first) - int(second), "*": int(first) * int(second)}[
            sign
        ] == int(result)
        assert next(known[other] for other in words.split() if other in known) in (int(first), int(second))
        assert memento == f"{name}: {'known' if number in one.omitted else result}"
        known[name] = int(result)
    assert one.response.endswith(f"<|summary_end|>Answer: {known[one.names[-1]]}")
    assert grade(Problem("", one.prompt, str(one.answer)), one.response).correct


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SPLITS), st.sampled_from(CONDITIONS))
def test_conditions_control_one_step(seed: int, split: Split, condition: tuple[Any, Any]) -> None:
    omission, source = condition
    one = draw_story(np.random.default_rng(seed), split, omission, source)
    assert len(one.needed) in CHAIN_LENGTHS
    assert len(one.steps) == len(one.needed) + (omission == "unneeded")
    assert (one.controlled in one.needed) == (omission != "unneeded")
    assert one.omitted == (frozenset() if omission == "complete" else {one.controlled})
    needed = set()  # by changing each number and seeing whether the answer changes
    for number in range(len(one.steps)):
        changed = replace(one, omitted=frozenset({number}), edit=(number, one.values[number + 1] + 1))
        if changed.answer != one.answer:
            needed.add(number)
    assert needed == one.needed
    assert (str(one.steps[one.controlled].operand) in re.findall(r"\d+", one.prompt)) or one.observed


def test_test_split_shares_no_name_and_no_text_with_training() -> None:
    for data in (NAMES, WORDINGS, SETTINGS):
        assert not set(data["train"]) & set(data["test"])  # type: ignore[index]
    verbs, things = (
        {split: {value for one in SETTINGS[split] for value in values(one)} for split in SPLITS}
        for values in (lambda one: (one.verb,), lambda one: one.things)
    )
    assert not verbs["train"] & verbs["test"] and not things["train"] & things["test"]
    held_out = {*NAMES["test"], *verbs["test"], *things["test"]}
    rng = np.random.default_rng(0)
    for _ in range(300):
        one = training_story(rng)
        assert not held_out & set(re.findall(r"\w+", one.prompt + one.response))
    for _ in range(50):
        prompt = draw_story(rng, "test", "needed", "derived").prompt
        assert held_out & set(re.findall(r"\w+", prompt)) and not set(NAMES["train"]) & set(re.findall(r"\w+", prompt))


@settings(max_examples=150, deadline=None)
@given(stories, st.integers(0, 2**32), st.sets(st.integers(0, 5)))
def test_counterfactual_blocks_keep_length_and_memento(one: Story, seed: int, omitted: set[int]) -> None:
    one = replace(one, omitted=one.omitted | {number for number in omitted if number < len(one.steps)})
    for number in range(len(one.steps)):
        other = one.counterfactual(number, np.random.default_rng(seed))
        assert other.prompt == one.prompt
        assert len(other.block(number)) == len(one.block(number)) and other.block(number) != one.block(number)
        before, after = pairs(one.response), pairs(other.response)
        assert after[:number] == before[:number] and after[number][1] == before[number][1]
        assert after[number][0] == other.block(number)
        assert (other.answer != one.answer) == (number in one.needed & one.omitted)
        if number not in one.omitted:
            assert after[number + 1 :] == before[number + 1 :]
        assert other.response.endswith(f"Answer: {other.answer}") and 0 < other.answer < 1000


@requires_smollm2
def test_counterfactual_blocks_have_as_many_tokens() -> None:
    tokenizer, rng = load_tokenizer("smollm2-135m"), np.random.default_rng(0)
    for _ in range(60):
        one = draw_story(rng, "test", *CONDITIONS[int(rng.integers(len(CONDITIONS)))])
        for number in range(len(one.steps)):
            for other in one.alternatives(number):
                blocks = (Counterfactual(world.block(number), "") for world in (one, other))
                assert len({len(block.token_ids(tokenizer)) for block in blocks}) == 1
        whole, sentence = (tokenizer(text)["input_ids"] for text in (one.block(0), one.sentence(0)))
        assert whole[: len(sentence)] == sentence


def test_every_block_has_a_counterfactual_block() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        one = draw_story(rng, "train", "unneeded", "derived")
        for number in range(len(one.steps)):
            assert list(replace(one, omitted=frozenset({number})).alternatives(number))


def retained_until_omitted(one: Story) -> str:
    """Return the prompt and the retained text up to the memento of the controlled step."""
    return one.prompt + "".join(memento for _, memento in pairs(one.response)[: one.controlled + 1])


@pytest.mark.parametrize(("omission", "source"), CONDITIONS)
def test_ceiling_is_exact(omission: Any, source: Any) -> None:
    """Enumerate all worlds with the same retained text; the best guess is right in the share of the ceiling."""
    bench, rng = story(omission, source, 20), np.random.default_rng([0, 0x570217])
    for problem in bench.problems:
        one = draw_story(rng, "test", omission, source)
        assert problem.prompt == one.prompt
        worlds = [one.with_amount(amount) for amount in AMOUNTS] if source == "observed" else [one]
        same = [world for world in worlds if retained_until_omitted(world) == retained_until_omitted(one)]
        assert len(same) == (len(AMOUNTS) if source == "observed" and omission != "complete" else 1)
        assert len({len(world.block(world.controlled)) for world in same}) == 1
        answers = Counter(world.answer for world in same)
        assert max(answers.values()) / len(same) == bench.ceiling


@settings(max_examples=60, deadline=None)
@given(stories)
def test_harness_forces_observed_sentences_and_omitting_mementos_only(one: Story) -> None:
    harness, tracker = story_harness(one, TOKENIZER), ExpiryTracker(MARKUP, POLICY)
    tokens = TOKENIZER(f"{one.prompt}\n{one.response}")["input_ids"]
    blocks, forced = find_blocks(tokens, MARKUP), []
    for index, token in enumerate(tokens):
        answer = harness(tracker)
        assert answer in (None, token)
        forced += [index] * (answer is not None)
        tracker.push(token)
    expected = []
    for number, block in enumerate(blocks):
        if number == one.controlled and one.observed:
            expected += range(block.start + 1, block.start + 1 + len(one.sentence(number)))
        if number in one.omitted:
            expected += range(block.memento_start + 1, block.memento_end + 1)
    assert forced == expected


def test_training_rows_learn_what_the_model_writes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = training_story(rng)
        for learn in (False, True):
            made = row(one, TOKENIZER, "llama", MARKUP, learn_omissions=learn)
            unlearned = [t for t, label in zip(made["input_ids"], made["labels"], strict=True) if label == IGNORE_INDEX]
            text = "".join(chr(t - 10) for t in unlearned if t >= 10)
            tool = [one.sentence(one.controlled)] if one.observed else []
            mementos = [] if learn else [one.memento(number) for number in sorted(one.omitted)]
            assert text.startswith(f"{one.prompt}\n") and len(text) == len(one.prompt) + 1 + sum(
                map(len, tool + mementos)
            )
            assert all(part in text for part in tool + mementos)
            assert made["input_ids"][-1] == made["labels"][-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("text", "extracted"),
    [("…<|summary_end|>Answer: 42", "42"), ("Answer: 042\n", "42"), ("Answer: 4 2", None), ("42", None), ("", None)],
)
def test_grading(text: str, extracted: str | None) -> None:
    result = grade(Problem("", "", "42"), text)
    assert (result.extracted, result.correct) == (extracted, extracted == "42")


def test_group_and_seeds() -> None:
    benches = load_bench("story", 5)
    assert tuple(bench.name for bench in benches) == BENCH_GROUPS["story"] and len(benches) == 6
    few, many, other = story("needed", "derived", 5), story("needed", "derived", 9), story("needed", "derived", 5, 1)
    assert few.problems == many.problems[:5] and few.problems != other.problems
    answers = {bench.name: [problem.answer for problem in bench.problems] for bench in benches}
    assert answers["story-complete-derived"] == answers["story-needed-observed"] == answers["story-needed-derived"]


def test_swap_changes_the_controlled_block() -> None:
    bench, rng = story("needed", "observed", 8), np.random.default_rng([0, 0x570217])
    donors = DonorBlocks(bench, TOKENIZER, seed=0)
    for index in range(8):
        one, key = draw_story(rng, "test", "needed", "observed"), (0, index, 0)
        for number in range(len(one.steps)):
            donor = donors(key, number, len(one.block(number)))
            assert (donor is not None) == (number == one.controlled)
        assert donors.answers[key] != bench.problems[index].answer
        assert donors(key, one.controlled, len(one.block(one.controlled)) + 1) is None
