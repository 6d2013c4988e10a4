"""Planting secrets: inserts a sentence with a secret into one block of a trace, or into a turn of a chat.

The text of the block is tokenized again; all other tokens keep their ids. The sentence is inserted at a random
boundary of sentences or lines, never inside code, mathematics or after the number of a list item. Secrets and
boundaries are drawn independently of the trace. Secrets that already occur in the traces are excluded.

The positions of retained tokens reveal the length of an erased block. If all secrets have the same number of
tokens, the length is independent of the secret, and the exact posterior given the retained text is known.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghosttrace.data.spans import decode
from ghosttrace.data.task import Sample, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.places import Place, PlaceFinder, Role
from ghosttrace.probing.secrets import Secret, SecretKind

STREAM = 0x5EC2E7  # of random numbers
CODE_OR_MATH = re.compile(r"```.*?(?:(?P<fence>```)|\Z)|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$\n]*\$", re.DOTALL)
BOXED = re.compile(r"\\boxed\s*\{")
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)")
NOT_SENTENCE_END = re.compile(
    r"^\s*\d+\.$|\b(?:e\.g|i\.e|vs|cf|etc|Eq|Fig|Mr|Mrs|Ms|Dr)\.$"
)  # the number of a list item, and abbreviations


@dataclass(frozen=True)
class BaseTrace:
    """A trace to plant secrets in, cut after the last memento that is probed.

    Attributes:
        name: Name of the trace.
        ids: int[T], prompt and response.
        place: Where the secret goes.
        text: Text of the place.
    """

    name: str
    ids: list[int]
    place: Place
    text: str


def base_traces(
    traces: Sequence[TokenTrace], checkpoint: Checkpoint, block: int, hops: int, role: Role = "tool"
) -> list[BaseTrace]:
    """Return the traces that have a given block and enough blocks after it, or a given turn of a chat.

    Args:
        traces: The traces.
        checkpoint: Provides the tokenizer and the law.
        block: Index of the block, or of the turn of `role`, counted from 0.
        hops: Number of blocks required after it.
        role: Role of the turns, under other laws than Memento's.

    Raises:
        UserError: No trace has them.
    """
    finder, bases = PlaceFinder(checkpoint, hops, role), []
    for trace in traces:
        places = finder.find(trace.ids)
        if 0 <= block < len(places):
            place = places[block]
            text = decode(checkpoint.tokenizer, trace.ids[place.tokens.start : place.tokens.stop])
            bases.append(BaseTrace(trace.name, trace.ids[: place.end], place, text))
    if not bases:
        raise UserError(finder.none_found(block, (trace.ids for trace in traces)))
    return bases


def plant_secrets(
    traces: Sequence[TokenTrace],
    checkpoint: Checkpoint,
    kind: SecretKind,
    block: int,
    samples: int,
    hops: int = 1,
    seed: int = 0,
    role: Role = "tool",
) -> Task:
    """Return a task of traces with random secrets planted in one block, or in one turn of a chat.

    Args:
        traces: The base traces; those with too few blocks or turns are skipped.
        checkpoint: Provides the tokenizer and the law.
        kind: Kind of secret.
        block: Index of the finished pair that receives the secret, or of the turn of `role`, counted from 0.
        samples: Number of samples per base trace.
        hops: Number of blocks required after it; tokens after the memento of the last one are removed.
        seed: Random seed of secrets, sentences and insertion points.
        role: Role of the turns that receive secrets, under other laws than Memento's.

    Returns:
        A task with one target per part of the secret; `ids` are arrays of 32-bit integers.

    Raises:
        UserError: No trace has the block, a secret is longer than its text, there are too few secrets or samples,
            or the tokenizer does not return character offsets.
    """
    tokenizer, finder = checkpoint.tokenizer, PlaceFinder(checkpoint, hops, role)
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {checkpoint.name} returns no character offsets: put a tokenizer.json beside the model"
        )
    bases = base_traces(traces, checkpoint, block, hops, role)
    rng = np.random.default_rng([seed, STREAM])
    all_text = "\n".join(decode(tokenizer, base.ids) for base in bases)
    kind = kind.without_words_in(all_text)
    excluded = set() if kind.has_single_part else kind.find_in_text(all_text)
    secrets = kind.draw(rng, samples * len(bases), excluded)
    planted = []
    for row, base in enumerate(bases):
        insertion_points = finder.within(base.text, sentence_boundaries(base.text))
        for secret in secrets[row * samples : (row + 1) * samples]:
            _check_room(base, secret, block, finder.what, tokenizer)
            sentence, first = str(rng.choice(kind.sentence_templates)), int(rng.choice(insertion_points))
            for point in dict.fromkeys((first, *insertion_points)):
                ids, secret_indices = insert_secret(base, secret.text, sentence, point, tokenizer)
                if finder.leaves(ids, secret_indices):
                    break
            group = "" if kind.has_single_part else secret.text
            planted.append(Sample(ids, base.name, group, base.place.block, secret_indices, secret.labels))
    same_length = len({len(sample.secret_indices) for sample in planted}) == 1
    posteriors = kind.posteriors(excluded) if same_length else {}
    exact = {name: np.tile(posterior, (len(planted), 1)) for name, posterior in posteriors.items()}
    task = Task(kind.name, tuple(planted), kind.targets, exact)
    task.check()
    return task


def _check_room(base: BaseTrace, secret: Secret, block: int, what: str, tokenizer: Any) -> None:
    """Raise UserError if the secret has more tokens than the place."""
    secret_tokens = len(tokenizer(secret.text, add_special_tokens=False)["input_ids"])
    if secret_tokens > len(base.place.tokens):
        raise UserError(
            f"{what} {block} of trace {base.name} has {len(base.place.tokens)} tokens and the secret "
            f"{secret.text!r} {secret_tokens}: choose another {what} or a shorter secret"
        )


def sentence_boundaries(text: str) -> list[int]:
    """Return the character indices where a sentence may be inserted: start, end, and line or sentence boundaries.

    Boundaries inside code fences, mathematics and `\\boxed{}`, and after the number of a list item, are excluded.
    """
    insertion_points = {0, len(text), *(match.end() for match in re.finditer("\n", text))}
    for match in SENTENCE_END.finditer(text):
        if not NOT_SENTENCE_END.search(text[text.rfind("\n", 0, match.start()) + 1 : match.start()]):
            insertion_points.add(match.start())
    closed = [range(m.start() + 1, m.end()) for m in CODE_OR_MATH.finditer(text)]
    closed += [range(m.start() + 1, len(text) + 1) for m in CODE_OR_MATH.finditer(text) if _is_open(m)]
    closed += [range(m.start() + 1, _index_after_brace(text, m.end())) for m in BOXED.finditer(text)]
    return sorted(
        insertion_point for insertion_point in insertion_points if not any(insertion_point in span for span in closed)
    )


def _is_open(match: re.Match[str]) -> bool:
    """Return whether a match of `CODE_OR_MATH` is a code fence without an end."""
    return match.group().startswith("```") and match["fence"] is None


def _index_after_brace(text: str, index: int) -> int:
    """Return the index after the brace that closes the one before `index`; `len(text) + 1` if none does."""
    depth = 1
    while depth and index < len(text):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        index += 1
    return index + (depth > 0)


def insert_sentence(text: str, sentence: str, insertion_point: int) -> tuple[str, int]:
    """Insert a sentence into a text, on a line of its own if the insertion point begins a line.

    Args:
        text: The text.
        sentence: The sentence.
        insertion_point: Character index, one of `sentence_boundaries(text)`.

    Returns:
        The new text, and the character index where the sentence begins in it.
    """
    if insertion_point == 0 or text[insertion_point - 1] == "\n":
        after = "" if text[insertion_point : insertion_point + 1] in ("", "\n") else "\n"
        return text[:insertion_point] + sentence + after + text[insertion_point:], insertion_point
    before = "" if text[insertion_point - 1].isspace() else " "
    return text[:insertion_point] + before + sentence + text[insertion_point:], insertion_point + len(before)


def insert_secret(
    base: BaseTrace, secret: str, template: str, insertion_point: int, tokenizer: Any
) -> tuple[Sequence[int], tuple[int, ...]]:
    """Insert a sentence with a secret into a place of a base trace.

    Args:
        base: The trace.
        secret: Text of the secret.
        template: A sentence with `{}` in place of the secret.
        insertion_point: Character index in the place's text, one of its `sentence_boundaries`.
        tokenizer: A fast tokenizer.

    Returns:
        The token ids of the new trace, int32[T'], and the indices of all tokens that contain a character of the
        secret. Tokens at its ends may also contain neighbouring characters.
    """
    text, start = insert_sentence(base.text, template.format(secret), insertion_point)
    start += template.index("{}")
    stop = start + len(secret)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin = base.place.tokens.start
    ids = array("i", [*base.ids[:begin], *encoded["input_ids"], *base.ids[base.place.tokens.stop :]])
    secret_indices = [
        begin + offset for offset, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > start
    ]
    return ids, tuple(secret_indices)
