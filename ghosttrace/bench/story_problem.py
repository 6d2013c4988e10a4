"""One problem of the benchmark `story`: how it is drawn, its numbers, its texts and its counterfactual blocks."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ghosttrace.bench.story_texts import NAMES, SETTINGS, WORDINGS, Setting, Split, Wording

Operation = Literal["more", "fewer", "times", "both"]
DIFFERENCES = ("more", "fewer")
OPERATIONS: tuple[Operation, ...] = ("more", "fewer", "times", "both")
OPERATION_SHARES = (0.35, 0.35, 0.15, 0.15)
AMOUNTS = range(10, 50)
"""Sizes of the controlled difference. Under each of them its result has the same number of digits."""
OTHER_AMOUNTS = range(2, 21)
STARTS = range(10, 91)
LIMIT = 1000
CHAIN_LENGTHS, CHAIN_SHARES = (3, 4, 5), (0.6, 0.25, 0.15)
MULTIPLES = {2: "twice"}


@dataclass(frozen=True)
class Step:
    """One step: the number of one more person follows from earlier ones.

    People are numbered in the order of the prompt: person 0 is given, step i finds the number of person i + 1.

    Attributes:
        operation: How the number follows.
        source: Person whose number it starts from.
        operand: The difference; the multiple; or for `both` the second person.
    """

    operation: Operation
    source: int
    operand: int


@dataclass(frozen=True)
class Story:
    """Content of one problem.

    Attributes:
        setting: What the people have or do.
        wording: Sentences of the prompt.
        things: The noun.
        names: The people; the question is about the last one.
        start: Number of the first person.
        steps: The steps in order; each is one block with its memento.
        controlled: The step that a condition of the benchmark omits or lets a tool report; a difference.
        observed: Whether the prompt hides the amount of the controlled step, so that only its block has it.
        omitted: Steps whose mementos leave out the number.
        edit: Step and number that a counterfactual block shows instead of its own; None in an original.
    """

    setting: Setting
    wording: Wording
    things: str
    names: tuple[str, ...]
    start: int
    steps: tuple[Step, ...]
    controlled: int
    observed: bool = False
    omitted: frozenset[int] = field(default_factory=frozenset)
    edit: tuple[int, int] | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """Number of each person. An edit that its memento omits changes what follows from it."""
        values = [self.start]
        for number in range(len(self.steps)):
            omitted_edit = self.edit is not None and self.edit[0] == number and number in self.omitted
            values.append(self._shown(number, values) if omitted_edit else self._result(number, values))
        return tuple(values)

    def _result(self, number: int, values: Collection[int]) -> int:
        """Return the number that follows from a step, given the numbers of earlier people."""
        step, known = self.steps[number], list(values)
        if step.operation == "times":
            return step.operand * known[step.source]
        if step.operation == "both":
            return known[step.source] + known[step.operand]
        return known[step.source] + (step.operand if step.operation == "more" else -step.operand)

    def _shown(self, number: int, values: Collection[int]) -> int:
        """Return the number that the block of a step shows."""
        return self.edit[1] if self.edit is not None and self.edit[0] == number else self._result(number, values)

    @property
    def answer(self) -> int:
        """Number of the last person."""
        return self.values[-1]

    @property
    def needed(self) -> frozenset[int]:
        """Steps whose number the answer needs."""
        needed = {len(self.steps) - 1}
        for number in reversed(range(len(self.steps))):
            if number in needed:
                step = self.steps[number]
                needed |= {person - 1 for person in self._sources(step) if person > 0}
        return frozenset(needed)

    @staticmethod
    def _sources(step: Step) -> tuple[int, ...]:
        return (step.source, step.operand) if step.operation == "both" else (step.source,)

    @property
    def prompt(self) -> str:
        """User message."""
        common = {"v": self.setting.verb, "t": self.things}
        text = [self.wording.start.format(a=self.names[0], n=self.start, **common)]
        for number, step in enumerate(self.steps):
            hidden = self.observed and number == self.controlled
            sentence = getattr(self.wording, f"hidden_{step.operation}" if hidden else step.operation)
            people = self._people(number)
            text.append(sentence.format(n=step.operand, m=MULTIPLES.get(step.operand), **people, **common))
        asked = self.setting.question.format(a=self.names[-1], t=self.things)
        return " ".join([*text, self.wording.question.format(q=asked)])

    def _people(self, number: int) -> dict[str, str]:
        step = self.steps[number]
        second = self.names[step.operand] if step.operation == "both" else ""
        return {"a": self.names[number + 1], "b": self.names[step.source], "c": second}

    def sentence(self, number: int) -> str:
        """Return the words of a block, up to its arithmetic: what a tool reports in an observed step."""
        step, values = self.steps[number], self.values
        amount = abs(self._shown(number, values) - values[step.source])
        phrase = {
            "more": f"{amount} more than {{b}}",
            "fewer": f"{amount} fewer than {{b}}",
            "times": f"{MULTIPLES.get(step.operand)} as many as {{b}}",
            "both": "as many as {b} and {c} together",
        }[step.operation]
        return f"{{a}} {self.setting.verb} {phrase}:".format(**self._people(number))

    def block(self, number: int) -> str:
        """Return the text of a block, without delimiters."""
        step, values = self.steps[number], self.values
        first, shown = values[step.source], self._shown(number, values)
        arithmetic = {
            "more": f"{first}+{shown - first}",
            "fewer": f"{first}-{first - shown}",
            "times": f"{step.operand}*{first}",
            "both": f"{first}+{values[step.operand] if step.operation == 'both' else 0}",
        }[step.operation]
        return f"{self.sentence(number)} {arithmetic}={shown}."

    def memento(self, number: int) -> str:
        """Return the text of a memento, without delimiters."""
        return f"{self.names[number + 1]}: {'known' if number in self.omitted else self.values[number + 1]}"

    @property
    def response(self) -> str:
        """Response of a perfect model, without the end-of-turn token."""
        pairs = [
            f"<|block_start|>{self.block(number)}<|block_end|><|summary_start|>{self.memento(number)}<|summary_end|>"
            for number in range(len(self.steps))
        ]
        return "".join([*pairs, f"Answer: {self.answer}"])

    def alternatives(self, number: int) -> Iterator["Story"]:
        """Yield the story with every other number that the block of a step could show.

        The number has as many digits as its own. A difference has another amount, one of `AMOUNTS` for the controlled
        step, else one of `OTHER_AMOUNTS` of as many digits; any other step shows another result. All numbers that
        follow lie between 1 and 999. Where the memento of the step omits its number, what follows changes with it.
        """
        step, value = self.steps[number], self.values[number + 1]
        if step.operation in DIFFERENCES:
            amounts = AMOUNTS if number == self.controlled else OTHER_AMOUNTS
            sign, first = (1 if step.operation == "more" else -1), self.values[step.source]
            numbers = [first + sign * a for a in amounts if len(str(a)) == len(str(step.operand))]
        else:
            numbers = list(range(max(1, value - 10), value + 11))
        same_length = (n for n in numbers if n != value and len(str(n)) == len(str(value)))
        others = (replace(self, edit=(number, n)) for n in same_length)
        return (other for other in others if other.is_valid)

    @property
    def is_valid(self) -> bool:
        """Whether all numbers lie between 1 and 999."""
        return all(0 < value < LIMIT for value in self.values)

    def counterfactual(self, number: int, rng: np.random.Generator) -> "Story":
        """Return the story with another number in one block, under the same prompt and the same memento.

        Args:
            number: 0-based number of the block.
            rng: Source of the random choice.
        """
        others = list(self.alternatives(number))
        return others[int(rng.integers(len(others)))]

    def with_amount(self, amount: int) -> "Story":
        """Return the story with another amount in the controlled step."""
        steps = list(self.steps)
        steps[self.controlled] = replace(steps[self.controlled], operand=amount)
        return replace(self, steps=tuple(steps))


def sample_story(rng: np.random.Generator, split: Split, spare_step: bool) -> Story:
    """Draw a problem of three to five dependent steps in which every memento is complete and nothing is observed.

    The amount of the controlled step is uniform over `AMOUNTS` given everything else: a draw is accepted or rejected
    for all amounts alike.

    Args:
        rng: Source of random numbers.
        split: Names, settings and wordings to draw from.
        spare_step: Whether to add one step that nothing needs; it is then the controlled step.
    """
    while True:
        story = _draw(rng, split, spare_step)
        worlds = [story.with_amount(amount) for amount in AMOUNTS]
        digits = {len(str(world.values[story.controlled + 1])) for world in worlds}
        if len(digits) == 1 and all(world.is_valid for world in worlds) and all(map(_can_be_edited, worlds)):
            return story


def _can_be_edited(story: Story) -> bool:
    """Return whether every block has a counterfactual block, even if its memento omits its number."""
    steps = range(len(story.steps))
    return all(any(True for _ in replace(story, omitted=frozenset({n})).alternatives(n)) for n in steps)


def _draw(rng: np.random.Generator, split: Split, spare_step: bool) -> Story:
    """Draw a problem without regard to the size of its numbers."""
    chain = int(rng.choice(CHAIN_LENGTHS, p=CHAIN_SHARES))
    n_steps = chain + spare_step
    controlled = int(rng.integers(n_steps - spare_step))  # the last step is never spare
    steps, on_chain = list[Step](), [0]
    for number in range(n_steps):
        spare = spare_step and number == controlled
        allowed = OPERATIONS[:2] if number == controlled else OPERATIONS if len(on_chain) > 1 else OPERATIONS[:3]
        shares = np.array(OPERATION_SHARES[: len(allowed)])
        operation = allowed[int(rng.choice(len(allowed), p=shares / shares.sum()))]
        source = int(rng.choice(on_chain)) if spare else on_chain[-1]
        amounts = AMOUNTS if number == controlled else OTHER_AMOUNTS
        operand = int(rng.choice(amounts))
        if operation == "times":
            operand = int(rng.choice(list(MULTIPLES)))
        elif operation == "both":
            operand = int(rng.choice(on_chain[:-1]))
        steps.append(Step(operation, source, operand))
        if not spare:
            on_chain.append(number + 1)
    setting = SETTINGS[split][int(rng.integers(len(SETTINGS[split])))]
    wording = WORDINGS[split][int(rng.integers(len(WORDINGS[split])))]
    things = setting.things[int(rng.integers(len(setting.things)))]
    names = tuple(str(name) for name in rng.choice(NAMES[split], n_steps + 1, replace=False))
    return Story(setting, wording, things, names, int(rng.choice(STARTS)), tuple(steps), controlled)
