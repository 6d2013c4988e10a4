"""Training examples: a trace laid out for one forward pass, and which of its tokens carry loss.

Stages (arXiv 2604.09852, section 4): `full` sees everything, `memento` attends by the law, `sealed` by
the law over a sealed cache, every memento standing twice (see `ghosttrace.law.layout`). Loss is on each token
of the completion once: of a memento's two copies on the one that is generated, which sees its block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy, expiry
from ghosttrace.law.layout import Layout, open_layout, sealed_layout
from ghosttrace.law.markup import DELIMITERS, Markup, delimiter_events, find_blocks

Stage = Literal["full", "memento", "sealed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
IGNORE_INDEX = -100
DELIMITER_OF_LETTER = dict(zip("BESM", DELIMITERS, strict=True))


class TokenKind(IntEnum):
    """What a token is, for losses apart."""

    TEXT = 0  # around the pairs
    BLOCK = 1
    MEMENTO = 2
    DELIMITER = 3
    ANSWER = 4


@dataclass(frozen=True)
class Example:
    """A trace laid out in C columns.

    Attributes:
        input_ids: int64[C].
        labels: int64[C]: the column's own token where it carries loss, else -100.
        position_ids: int64[C], RoPE positions.
        expiry: int64[C], counted in columns; C for what stays to the end.
        kind: int64[C], of `TokenKind`.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    expiry: np.ndarray
    kind: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Its arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def stage_policy(policy: Policy, stage: Stage) -> Policy:
    """The law that a stage trains under: `full` erases nothing, the others as the policy says, blocks at once
    if it says never.
    """
    if stage == "full":
        return replace(policy, keep_last_n_blocks=-1)
    return replace(policy, keep_last_n_blocks=max(0, policy.keep_last_n_blocks))


def make_example(tokens: Sequence[int], labels: Sequence[int], markup: Markup, policy: Policy, stage: Stage) -> Example:
    """Lay a trace out.

    Args:
        tokens: int[T], prompt and response.
        labels: int[T], the tokens themselves where they carry loss, else -100.
        markup: the ids of the delimiters and of the assistant's header.
        policy: the law.
        stage: of `STAGES`.

    Raises:
        UserError: the policy keeps finished blocks and the stage is `sealed`.
    """
    law = stage_policy(policy, stage)
    layout: Layout = (sealed_layout if stage == "sealed" else open_layout)(tokens, markup, law)
    told = np.full(len(layout.token_index), IGNORE_INDEX, dtype=np.int64)
    places, first = np.unique(layout.token_index, return_index=True)
    told[first] = np.asarray(labels, dtype=np.int64)[places]  # of two copies the one that is generated
    kind = token_kinds(tokens, markup, policy)[layout.token_index]
    return Example(layout.tokens, told, layout.token_index, np.minimum(layout.expiry, len(layout.token_index)), kind)


def token_kinds(tokens: Sequence[int], markup: Markup, policy: Policy) -> np.ndarray:
    """int64[T], of `TokenKind`: what each token is."""
    found = np.full(len(tokens), TokenKind.TEXT, dtype=np.int64)
    blocks = find_blocks(tokens, markup, policy.require_assistant_section)
    for block in blocks:
        found[block.start : block.end] = TokenKind.BLOCK
        found[block.memento_start : block.memento_end] = TokenKind.MEMENTO
        found[list(block)] = TokenKind.DELIMITER
    if blocks:
        found[blocks[-1].memento_end + 1 :] = TokenKind.ANSWER
    return found


def delimiter_error(tokens: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> str | None:
    """What is wrong with a trace's delimiters, in words; None if each belongs to a pair that the law sees."""
    section = policy.require_assistant_section
    _, letters = delimiter_events(np.asarray(tokens, dtype=np.int64), markup, section)
    if len(letters.replace("|", "")) == 4 * len(find_blocks(tokens, markup, section)):
        return None
    found = 0  # delimiters in order
    for letter in letters.rstrip("|"):  # a turn that ends last cuts nothing that came later
        due = "BESM"[found % 4]
        if letter == "|" and due != "B":
            return f"a turn begins or ends where {DELIMITER_OF_LETTER[due]} is due"
        if letter not in ("|", due):
            return f"{DELIMITER_OF_LETTER[letter]} where {DELIMITER_OF_LETTER[due]} is due"
        found += letter != "|"
    return f"it ends before {DELIMITER_OF_LETTER['BESM'[found % 4]]}"


def delimiter_outside_turn(tokens: Sequence[int], labels: Sequence[int], markup: Markup, policy: Policy) -> str | None:
    """The first delimiter that would be learned where the law does not look, outside an assistant's turn; in words."""
    ids = np.asarray(tokens, dtype=np.int64)
    told = np.isin(ids, markup.delimiters) & (np.asarray(labels, dtype=np.int64) != IGNORE_INDEX)
    seen, _ = delimiter_events(ids, markup, policy.require_assistant_section)
    told[seen] = False
    if not told.any():
        return None
    place = int(told.argmax())
    return f"{DELIMITERS[markup.delimiters.index(int(ids[place]))]} at token {place}"


def truncated_length(tokens: Sequence[int], markup: Markup, policy: Policy, stage: Stage, width: int) -> int:
    """How many of a trace's tokens fit into so many columns, no pair of block and memento cut in two."""
    law = stage_policy(policy, stage)
    layout: Layout = (sealed_layout if stage == "sealed" else open_layout)(tokens, markup, law)
    if len(layout.token_index) <= width:
        return len(tokens)
    kept = int(layout.token_index[width])  # the first place that has no column, or of which one is lacking
    for block in find_blocks(tokens, markup, policy.require_assistant_section):
        if block.start < kept <= block.memento_end:
            return block.start
    return kept


def check_expiry(given_expiry: Sequence[int], tokens: Sequence[int], markup: Markup, policy: Policy, name: str) -> None:
    """Hold an expiry column that came with the data to the law.

    Args:
        given_expiry: of a row, counted in its tokens.
        tokens: of the row, whole and as they stand: neither cut nor laid out, whatever the stage.
        markup: the ids of the delimiters and of the assistant's header.
        policy: of the run; one that says never is read as erasing at once, as `stage_policy` does.
        name: of the row.

    Raises:
        UserError: they differ; the first place is named.
    """
    length = len(tokens)
    law = np.minimum(expiry(tokens, markup, stage_policy(policy, "memento")), length)
    times = np.minimum(np.asarray(given_expiry, dtype=np.int64), length)
    wrong = np.flatnonzero(times != law) if len(times) == length else np.array([min(len(times), length)])
    if len(wrong):
        raise UserError(
            f"{name}: its expiry column disagrees with its ids at token {wrong[0]}: leave the column out, or make it "
            "with ghosttrace.law.expiry under the policy of this run"
        )
