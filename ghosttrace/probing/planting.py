"""Planting secrets: a sentence with a secret in it, put into one block of a trace.

The block's text is encoded anew, as its author would have had it encoded; all other tokens keep their
ids. The sentence goes to a random boundary of sentences or lines, never into code, mathematics or a
list's number. What a secret is, and where, is drawn independently of the trace, and a secret that
occurs anywhere in the traces is not drawn at all.

How long the block was shows in the positions of what stays. Where all secrets are spelled in the same
number of tokens, that tells nothing about them, and the posterior given the retained text is known.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghosttrace.data.task import Sample, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.markup import Block, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.secrets import Secret, SecretKind

STREAM = 0x5EC2E7
CODE_OR_MATH = re.compile(
    r"```.*?(?:(?P<fence>```)|\Z)|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$\n]*\$", re.DOTALL
)  # code and mathematics
BOXED = re.compile(r"\\boxed\s*\{")
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)")
NOT_SENTENCE_END = re.compile(
    r"^\s*\d+\.$|\b(?:e\.g|i\.e|vs|cf|etc|Eq|Fig|Mr|Mrs|Ms|Dr)\.$"
)  # a list's number, abbreviations


@dataclass(frozen=True)
class BaseTrace:
    """A trace into which secrets go, cut off behind the last memento that is looked at.

    Attributes:
        name: of the trace.
        ids: int[T], prompt and response.
        pair: the block and its memento.
        text: what stands in the block.
    """

    name: str
    ids: list[int]
    pair: Block
    text: str


def base_traces(traces: Sequence[TokenTrace], checkpoint: Checkpoint, block: int, hops: int) -> list[BaseTrace]:
    """The traces that have a block and so many others after it.

    Raises:
        UserError: none has.
    """
    section = checkpoint.policy.require_assistant_section
    found, most = [], 0
    for trace in traces:
        ids = trace.ids
        pairs = find_blocks(ids, checkpoint.markup, section)
        most = max(most, len(pairs))
        if 0 <= block < len(pairs) - hops:
            pair = pairs[block]
            text = decode(checkpoint.tokenizer, ids[pair.start + 1 : pair.end])
            found.append(BaseTrace(trace.name, ids[: pairs[block + hops].memento_end + 1], pair, text))
    if not found:
        raise UserError(
            f"no trace has a block {block} (counted from 0) and {hops} more after it: the longest has {most} blocks, "
            "choose an earlier block or fewer hops"
        )
    return found


def plant_secrets(
    traces: Sequence[TokenTrace],
    checkpoint: Checkpoint,
    kind: SecretKind,
    block: int,
    samples: int,
    hops: int = 1,
    seed: int = 0,
) -> Task:
    """Put secrets into a block of each trace.

    Args:
        traces: the base traces; those without the blocks asked for are left out.
        checkpoint: whose tokenizer and markup to use.
        kind: of secret.
        block: which finished pair the secret goes into, counted from 0.
        samples: how many are made of each base trace.
        hops: how many blocks after it are needed; what follows the last one's memento is dropped.
        seed: of secrets, sentences and places.

    Returns:
        A task with one target a part of the secret; `ids` are arrays of 32-bit integers.

    Raises:
        UserError: no such block, a secret longer than the block, too few secrets or samples, or a
            tokenizer that does not say where its tokens stand.
    """
    tokenizer = checkpoint.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {checkpoint.name} does not say where its tokens stand: put a tokenizer.json beside it"
        )
    bases = base_traces(traces, checkpoint, block, hops)
    rng = np.random.default_rng([seed, STREAM])
    seen = "\n".join(decode(tokenizer, base.ids) for base in bases)
    kind = kind.without_words_in(seen)
    excluded = set() if kind.has_single_part else kind.find_in_text(seen)
    secrets = kind.draw(rng, samples * len(bases), excluded)
    made = []
    for number, base in enumerate(bases):
        insertion_points = sentence_boundaries(base.text)
        for secret in secrets[number * samples : (number + 1) * samples]:
            _check_room(base, secret, block, tokenizer)
            ids, where = insert_secret(
                base,
                secret.text,
                str(rng.choice(kind.sentence_templates)),
                int(rng.choice(insertion_points)),
                tokenizer,
            )
            made.append(
                Sample(ids, base.name, "" if kind.has_single_part else secret.text, block, where, secret.labels)
            )
    same_length = len({len(sample.secret_indices) for sample in made}) == 1
    shares = kind.posteriors(excluded) if same_length else {}
    exact = {name: np.tile(share, (len(made), 1)) for name, share in shares.items()}
    task = Task(kind.name, tuple(made), kind.targets, exact)
    task.check()
    return task


def _check_room(base: BaseTrace, secret: Secret, block: int, tokenizer: Any) -> None:
    spelled, room = len(tokenizer(secret.text, add_special_tokens=False)["input_ids"]), base.pair.end - base.pair.start
    if spelled > room - 1:
        raise UserError(
            f"block {block} of trace {base.name} has {room - 1} tokens and the secret {secret.text!r} {spelled}: "
            "choose another block or a shorter secret"
        )


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as they are spelled, nothing tidied away."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def sentence_boundaries(text: str) -> list[int]:
    """Where a sentence may be put into a text: before it, behind it, and between lines or sentences.

    Left out are places inside code fences, mathematics and `\\boxed{}`, and those behind a list's number.
    """
    insertion_points = {0, len(text), *(match.end() for match in re.finditer("\n", text))}
    for match in SENTENCE_END.finditer(text):
        if not NOT_SENTENCE_END.search(text[text.rfind("\n", 0, match.start()) + 1 : match.start()]):
            insertion_points.add(match.start())
    inside = [range(m.start() + 1, m.end()) for m in CODE_OR_MATH.finditer(text)]
    inside += [range(m.start() + 1, len(text) + 1) for m in CODE_OR_MATH.finditer(text) if _is_open(m)]
    inside += [range(m.start() + 1, _closing(text, m.end())) for m in BOXED.finditer(text)]
    return sorted(
        insertion_point
        for insertion_point in insertion_points
        if not any(insertion_point in closed for closed in inside)
    )


def _is_open(match: re.Match[str]) -> bool:
    return match.group().startswith("```") and match["fence"] is None


def _closing(text: str, place: int) -> int:
    """Behind the brace that closes the one before `place`; behind the text if none does."""
    depth = 1
    while depth and place < len(text):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
    return place + (depth > 0)


def insert_sentence(text: str, sentence: str, insertion_point: int) -> tuple[str, int]:
    """A text with a sentence put in at a boundary, on a line of its own if a line begins there.

    Returns:
        The text, and where the sentence begins in it.
    """
    if insertion_point == 0 or text[insertion_point - 1] == "\n":
        behind = "" if text[insertion_point : insertion_point + 1] in ("", "\n") else "\n"
        return text[:insertion_point] + sentence + behind + text[insertion_point:], insertion_point
    before = "" if text[insertion_point - 1].isspace() else " "
    return text[:insertion_point] + before + sentence + text[insertion_point:], insertion_point + len(before)


def insert_secret(
    base: BaseTrace, secret: str, template: str, insertion_point: int, tokenizer: Any
) -> tuple[Sequence[int], tuple[int, ...]]:
    """A base trace with a secret in its block.

    Args:
        base: the trace.
        secret: what is hidden.
        template: a sentence with `{}` where the secret goes.
        insertion_point: where the sentence goes, one of the `sentence_boundaries` of the block's text.
        tokenizer: a fast one.

    Returns:
        int32[T'], and the places of the tokens that spell any of the secret, as merged with what is beside it.
    """
    text, start = insert_sentence(base.text, template.format(secret), insertion_point)
    start += template.index("{}")
    stop = start + len(secret)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin = base.pair.start + 1
    ids = array("i", [*base.ids[:begin], *encoded["input_ids"], *base.ids[base.pair.end :]])
    where = [begin + at for at, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > start]
    return ids, tuple(where)
