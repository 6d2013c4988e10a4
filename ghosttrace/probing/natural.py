"""Natural attributes: what a block says anyway, as a label.

Nothing is planted, so what a memento repeats of it, it repeats in plain text: the text baseline stands
beside every row for that reason.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.planting import decode

INTEGER = re.compile(r"(?<![\w.,])\d+(?!\w|[.,]\d)")
LEFT_OPERAND, RIGHT_OPERAND = r"(?:[\w)}\]]|\\[)\]])\s*", r"(?=\s*[\w({\[\\])"  # operands
OPERATION_PATTERNS = {
    "+": re.compile(LEFT_OPERAND + r"(\+)" + RIGHT_OPERAND),
    "-": re.compile(r"(?:\d|[)}\]]|\b[a-zA-Z])\s*([-−])(?=\s*(?:\d|[({\[\\]|[a-zA-Z]\b))"),  # no hyphens
    "×": re.compile(r"(×|\\times|\\cdot|(?<!\*)\*(?!\*))" + RIGHT_OPERAND),
    "/": re.compile(r"(÷|\\div|\\d?frac|/)" + RIGHT_OPERAND),
}


@dataclass(frozen=True)
class AttributeMatch:
    """An attribute of a text: its label, and the characters that show it."""

    label: str
    span: range


def last_number(text: str) -> AttributeMatch | None:
    """The last digit of the last integer; no decimals, and no numbers that are parts of words."""
    matches = list(INTEGER.finditer(text))
    return AttributeMatch(matches[-1].group()[-1], range(*matches[-1].span())) if matches else None


def operation(text: str) -> AttributeMatch | None:
    """Which of + - × / is written most often, the one that comes first if several are; shown where it first stands."""
    found = {sign: list(pattern.finditer(text)) for sign, pattern in OPERATION_PATTERNS.items()}
    found = {sign: matches for sign, matches in found.items() if matches}
    if not found:
        return None
    sign = min(found, key=lambda one: (-len(found[one]), found[one][0].start(1)))
    return AttributeMatch(sign, range(*found[sign][0].span(1)))


def attribute_finder(spec: str) -> Callable[[str], AttributeMatch | None]:
    """What a command line names: `last-number`, `operation`, or `regex:PATTERN`, whose first group is the label.

    Raises:
        UserError: no such attribute, or a pattern that is none or has no group.
    """
    if spec in ("last-number", "operation"):
        return last_number if spec == "last-number" else operation
    kind, _, source = spec.partition(":")
    if kind != "regex":
        raise UserError(f"no attribute {spec!r}: give last-number, operation or regex:PATTERN")
    try:
        pattern = re.compile(source)
    except re.error as error:
        raise UserError(f"{source!r} is no regular expression ({error}): give one with a group") from error
    if not pattern.groups:
        raise UserError(f"{source!r} has no group: put the part that is the label in parentheses")

    def first(text: str) -> AttributeMatch | None:
        match = pattern.search(text)
        return AttributeMatch(match.group(1), range(*match.span(1))) if match and match.group(1) else None

    return first


def natural_task(
    traces: Sequence[TokenTrace], checkpoint: Checkpoint, spec: str, hops: int = 1, classes: int = 10
) -> Task:
    """A sample for every block but the first that has an attribute and enough blocks after it.

    Before the first block no memento stands, in which the causal control could look.

    Args:
        traces: the traces as they are.
        checkpoint: whose tokenizer and markup to use.
        spec: see `attribute_finder`.
        hops: how many blocks after it are needed; what follows the last one's memento is dropped.
        classes: how many labels to keep, the commonest.

    Returns:
        A task with one target, named as the attribute.

    Raises:
        UserError: no such attribute, none of the blocks has it, or a label that occurs once.
    """
    find = attribute_finder(spec)
    section = checkpoint.policy.require_assistant_section
    found: list[tuple[str, Sample]] = []
    for trace in traces:
        ids = trace.ids
        pairs = find_blocks(ids, checkpoint.markup, section)
        for number, pair in list(enumerate(pairs))[1 : max(0, len(pairs) - hops)]:
            inside = ids[pair.start + 1 : pair.end]
            hit = find(decode(checkpoint.tokenizer, inside))
            if hit:
                cut = ids[: pairs[number + hops].memento_end + 1]
                where = tuple(pair.start + 1 + at for at in token_range(inside, hit.span, checkpoint.tokenizer))
                found.append((hit.label, Sample(cut, trace.name, "", number, where, ())))
    labels = [label for label, _ in Counter(label for label, _ in found).most_common(classes)]
    if not labels:
        raise UserError(f"no block that {hops} more follow has {spec}: give other traces, or fewer hops")
    samples = [
        Sample(s.ids, s.base, s.secret, s.block, s.secret_indices, (labels.index(label),))
        for label, s in found
        if label in labels
    ]
    name = spec.partition(":")[0]
    task = Task(name, tuple(samples), (Target(name, tuple(labels)),))
    task.check()
    return task


def token_range(ids: Sequence[int], span: range, tokenizer: Any) -> range:
    """Which tokens spell some characters of the text that they decode to.

    AttributeMatch by decoding beginnings, as tokens that a model has chosen need not be those its tokenizer would.

    Args:
        ids: int[T].
        span: characters.
        tokenizer: that decodes.
    """

    def characters(count: int) -> int:
        return len(decode(tokenizer, ids[:count]))

    first = bisect_right(range(len(ids) + 1), span.start, key=characters) - 1
    return range(first, bisect_left(range(len(ids) + 1), span.stop, key=characters))
