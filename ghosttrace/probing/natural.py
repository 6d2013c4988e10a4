"""Natural attributes: properties of a block's own text, used as labels.

Nothing is planted, so a memento may repeat an attribute in plain text. Every row of the results is therefore
measured beyond decoders of the text (see `ghosttrace.probing.paired_sweep`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghosttrace.data.spans import decode, token_range
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.places import PlaceFinder, Role

INTEGER = re.compile(r"(?<![\w.,])\d+(?!\w|[.,]\d)")
LEFT_OPERAND, RIGHT_OPERAND = r"(?:[\w)}\]]|\\[)\]])\s*", r"(?=\s*[\w({\[\\])"
OPERATION_PATTERNS = {
    "+": re.compile(LEFT_OPERAND + r"(\+)" + RIGHT_OPERAND),
    "-": re.compile(r"(?:\d|[)}\]]|\b[a-zA-Z])\s*([-−])(?=\s*(?:\d|[({\[\\]|[a-zA-Z]\b))"),  # not hyphens
    "×": re.compile(r"(×|\\times|\\cdot|(?<!\*)\*(?!\*))" + RIGHT_OPERAND),
    "/": re.compile(r"(÷|\\div|\\d?frac|/)" + RIGHT_OPERAND),
}


@dataclass(frozen=True)
class AttributeMatch:
    """An attribute of a text.

    Attributes:
        label: The attribute's value.
        span: Indices of the characters that show it.
    """

    label: str
    span: range


def last_number(text: str) -> AttributeMatch | None:
    """Find the last digit of the last integer, ignoring decimals and numbers inside words; None without an integer."""
    matches = list(INTEGER.finditer(text))
    return AttributeMatch(matches[-1].group()[-1], range(*matches[-1].span())) if matches else None


def operation(text: str) -> AttributeMatch | None:
    """Find the most frequent of the operations + - × / and its first occurrence; None without an operation.

    If several are equally frequent, the one that occurs first is chosen.
    """
    occurrences = {sign: list(pattern.finditer(text)) for sign, pattern in OPERATION_PATTERNS.items()}
    occurrences = {sign: matches for sign, matches in occurrences.items() if matches}
    if not occurrences:
        return None
    best = min(occurrences, key=lambda sign: (-len(occurrences[sign]), occurrences[sign][0].start(1)))
    return AttributeMatch(best, range(*occurrences[best][0].span(1)))


def attribute_finder(spec: str) -> Callable[[str], AttributeMatch | None]:
    """Return the function that finds an attribute in a text.

    Args:
        spec: `last-number`, `operation`, or `regex:PATTERN`, where the first group of the first match is the label.

    Returns:
        A function from a text to its attribute, or to None if it has none.

    Raises:
        UserError: The attribute is unknown, or the pattern is invalid or has no group.
    """
    if spec in ("last-number", "operation"):
        return last_number if spec == "last-number" else operation
    kind, _, source = spec.partition(":")
    if kind != "regex":
        raise UserError(f"no attribute {spec!r}: give last-number, operation or regex:PATTERN")
    try:
        pattern = re.compile(source)
    except re.error as error:
        raise UserError(f"{source!r} is no regular expression ({error}): correct the pattern") from error
    if not pattern.groups:
        raise UserError(f"{source!r} has no group: put the part that is the label in parentheses")

    def find_first(text: str) -> AttributeMatch | None:
        match = pattern.search(text)
        return AttributeMatch(match.group(1), range(*match.span(1))) if match and match.group(1) else None

    return find_first


def natural_task(
    traces: Sequence[TokenTrace],
    checkpoint: Checkpoint,
    spec: str,
    hops: int = 1,
    classes: int = 10,
    role: Role = "tool",
) -> Task:
    """Return a task with one sample per block, or per turn of a chat, that has an attribute.

    The first block of a trace is skipped, because `earlier` rows read the memento before the block.

    Args:
        traces: The traces.
        checkpoint: Provides the tokenizer and the law.
        spec: The attribute, see `attribute_finder`.
        hops: Number of blocks required after the block; tokens after the memento of the last one are removed.
        classes: Maximum number of classes; the most frequent labels are kept.
        role: Role of the turns, under other laws than Memento's.

    Returns:
        A task with one target, which has the name of the attribute.

    Raises:
        UserError: The attribute is unknown, nothing has it, or a label occurs only once.
    """
    find, finder, tokenizer = attribute_finder(spec), PlaceFinder(checkpoint, hops, role), checkpoint.tokenizer
    labelled: list[tuple[str, Sample]] = []
    for trace in traces:
        for place in finder.find(trace.ids):
            inside = trace.ids[place.tokens.start : place.tokens.stop]
            match = find(decode(tokenizer, inside)) if place.block else None
            if match:
                offsets = token_range(inside, match.span, tokenizer)
                indices = tuple(place.tokens.start + offset for offset in offsets)
                labelled.append((match.label, Sample(trace.ids[: place.end], trace.name, "", place.block, indices, ())))
    labels = [label for label, _ in Counter(label for label, _ in labelled).most_common(classes)]
    if not labels:
        after = f" with {hops} more after it" if finder.what == "block" else ""
        raise UserError(f"no {finder.what}{after} has {spec}: give other traces, or fewer hops")
    samples = [
        Sample(s.ids, s.base, s.secret, s.block, s.secret_indices, (labels.index(label),))
        for label, s in labelled
        if label in labels
    ]
    name = spec.partition(":")[0]
    task = Task(name, tuple(samples), (Target(name, tuple(labels)),))
    task.check()
    return task
