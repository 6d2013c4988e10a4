"""`story`: word problems in plain English whose ghost channel has a known ground truth.

Each block takes one step in words and arithmetic; each memento keeps the person and the number. Two variables are
controlled, by one step of each problem:

- what its memento omits: nothing (`complete`), a number that a later step or the answer needs (`needed`), or one that
  nothing needs (`unneeded`). A harness writes the memento that omits its number.
- where its number comes from: `derived` from the prompt, at the cost of working it out again, or `observed`: the
  prompt hides the amount, and a harness puts the sentence that has it into the block, like the output of a tool.

    user        Bob has 49 books. Ann has more than Bob. Tim has 7 fewer than Ann. How many books does Tim have?
    assistant   <|block_start|>Ann has 40 more than Bob: 49+40=89.<|block_end|>     observed up to the colon
                <|summary_start|>Ann: known<|summary_end|>                          omitted; 89 is needed
                <|block_start|>Tim has 7 fewer than Ann: 89-7=82.<|block_end|>
                <|summary_start|>Tim: 82<|summary_end|>Answer: 82

A hidden amount is uniform over 40 values given the retained text, and the answer increases or decreases strictly with
it. Where the memento omits a needed observed number, no model can therefore exceed an accuracy of 1/40 over a sealed
cache. Under each amount the block has the same length if the tokenizer splits numbers into digits, so the gap that
erased tokens leave in the positions does not tell it either. The six conditions of one seed share their stories, except
that `unneeded` adds a step.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, get_args

import numpy as np

from ghosttrace.bench.benchmark import Bench, Condition, Counterfactual, Grade, Harness, Problem, Protocol
from ghosttrace.bench.story_problem import AMOUNTS, Story, sample_story
from ghosttrace.bench.story_texts import Split
from ghosttrace.law.expiry import ExpiryTracker

Omission = Literal["complete", "needed", "unneeded"]
Source = Literal["derived", "observed"]
OMISSIONS: tuple[Omission, ...] = get_args(Omission)
SOURCES: tuple[Source, ...] = get_args(Source)
DEFAULT_PROBLEMS = 200
PROBLEM_STREAM = 0x570217  # separates the benchmark problems from training problems
MAX_NEW_TOKENS = 256
ANSWER = re.compile(r"Answer: ([0-9]{1,6})\s*\Z")


def draw_story(rng: np.random.Generator, split: Split, omission: Omission, source: Source) -> Story:
    """Draw a problem of one condition."""
    story = sample_story(rng, split, spare_step=omission == "unneeded")
    omitted = frozenset() if omission == "complete" else frozenset({story.controlled})
    return replace(story, observed=source == "observed", omitted=omitted)


def story(omission: Omission, source: Source, n_problems: int | None = None, seed: int = 0) -> Bench:
    """Generate the benchmark in one condition, from the names and wordings of the test split.

    Args:
        omission: What the memento of the controlled step omits.
        source: Where the number of the controlled step comes from.
        n_problems: Number of problems. None means 200.
        seed: Random seed of the problems.
    """
    rng = np.random.default_rng([seed, PROBLEM_STREAM])
    stories = [draw_story(rng, "test", omission, source) for _ in range(n_problems or DEFAULT_PROBLEMS)]
    name = f"story-{omission}-{source}"
    problems = {f"{name}-{seed}-{i:04d}": story for i, story in enumerate(stories)}

    def counterfactual(problem: Problem, number: int, rng: np.random.Generator) -> Counterfactual:
        other = problems[problem.id].counterfactual(number, rng)
        return Counterfactual(other.block(number), str(other.answer), other.response)

    def harness(problem: Problem, tokenizer: Any) -> Harness:
        return story_harness(problems[problem.id], tokenizer)

    return Bench(
        name=name,
        problems=tuple(Problem(key, story.prompt, str(story.answer)) for key, story in problems.items()),
        protocol=Protocol(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, repetitions=1),
        grade=grade,
        origin=f"generated, seed {seed}",
        response=lambda problem: problems[problem.id].response,
        harness=harness,
        counterfactual=counterfactual,
        swapped_block=lambda problem: problems[problem.id].controlled,
        ceiling=1 / len(AMOUNTS) if (omission, source) == ("needed", "observed") else 1.0,
        condition=Condition(f"story-{source}", omits_needed=omission == "needed"),
    )


def grade(problem: Problem, text: str) -> Grade:
    """Grade a final text, which must end with `Answer: ` and a number."""
    found = ANSWER.search(text)
    number = None if found is None else str(int(found[1]))
    return Grade(number == problem.answer, number, "answer/integer" if found else "none/integer")


def story_harness(story: Story, tokenizer: Any) -> Harness:
    """Return a harness that forces the observed sentence and the mementos that omit their number.

    Args:
        story: The problem.
        tokenizer: Tokenizer with the delimiters; the one that closes a memento is read from the tracker's markup.
    """
    sentence = _token_ids(tokenizer, story.sentence(story.controlled)) if story.observed else []
    mementos = {number: _token_ids(tokenizer, story.memento(number)) for number in story.omitted}

    def force(tracker: ExpiryTracker) -> int | None:
        number, blocks = len(tracker.blocks), tracker.block_tracker
        if blocks.in_block and number == story.controlled:
            return _at(sentence, blocks.block_tokens)
        if len(blocks.open_delimiters) == 3 and number in mementos:
            forced = [*mementos[number], blocks.markup.summary_end]
            return _at(forced, blocks.num_read - blocks.open_delimiters[2] - 1)
        return None

    return force


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


STORY_BENCHES: dict[str, Callable[[int | None, int], Bench]] = {
    f"story-{omission}-{source}": partial(story, omission, source) for omission, source in product(OMISSIONS, SOURCES)
}
"""Functions that generate the benchmark in each condition, by name."""
