"""Training examples: a trace laid out for one forward pass, with the labels that carry loss.

Training stages (arXiv 2604.09852, section 4):

- `full`: full attention; nothing is erased.
- `memento`: what the law erases is masked; under Memento's law, each block when it expires.
- `sealed`: as `memento`, with a sealed cache. Each carrier occurs again in the layout after each erasure (see
  `ghosttrace.law.layout`); under Memento's law, each memento occurs twice.

Each token of the completion carries loss once. In the stage `sealed`, the first copy of a carrier carries the loss: it
sees what will be erased, as a memento sees its block when it is generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, Policy, expiry
from ghosttrace.law.law import KeepAll, Law
from ghosttrace.law.layout import Layout, open_layout, sealed_layout, sealed_length
from ghosttrace.law.markup import DELIMITERS, Block, Markup, delimiter_events, find_blocks

Stage = Literal["full", "memento", "sealed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
SealedArm = Literal["restart", "restart-bare", "restart-renumbered"]
SEALED_ARMS: tuple[SealedArm, ...] = get_args(SealedArm)
IGNORE_INDEX = -100
DELIMITER_OF_LETTER = dict(zip("BESM", DELIMITERS, strict=True))


class TokenKind(IntEnum):
    """Kind of a token; the trainer logs a loss for each kind. Under another law than Memento's, every token is text."""

    TEXT = 0  # before and between the pairs of block and memento
    BLOCK = 1
    MEMENTO = 2
    DELIMITER = 3
    ANSWER = 4


@dataclass(frozen=True)
class Example:
    """Trace laid out in C columns, one token per column.

    Attributes:
        input_ids: int64[C], token ids.
        labels: int64[C], the token id of the same column if it carries loss, else -100; not shifted.
        position_ids: int64[C], RoPE positions.
        expiry: int64[C], the first column that no longer sees each column; C if it is never erased.
        kind: int64[C], values of `TokenKind`.
        token_index: int64[C], the token of the trace that each column holds.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    expiry: np.ndarray
    kind: np.ndarray
    token_index: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def stage_policy(policy: Policy, stage: Stage) -> Policy:
    """Return the policy that applies in a training stage.

    The stage `full` never erases. The other stages keep `keep_last_n_blocks` of the policy, except that -1 (never
    erase) becomes 0 (erase each finished block at once).
    """
    if stage == "full":
        return replace(policy, keep_last_n_blocks=-1)
    return replace(policy, keep_last_n_blocks=max(0, policy.keep_last_n_blocks))


def stage_law(law: Law, stage: Stage) -> Law:
    """Return the law that applies in a training stage.

    The stage `full` never erases. In the other stages, Memento's law has the policy of `stage_policy`, and any other
    law applies unchanged.
    """
    if isinstance(law, MementoLaw):
        return replace(law, policy=stage_policy(law.policy, stage))
    return KeepAll() if stage == "full" else law


def lay_out(tokens: Sequence[int], law: Law, sealed_arm: SealedArm | None) -> Layout:
    """Return the columns of a trace, with an open cache or with the cache of a sealing arm.

    Args:
        tokens: int[T], prompt and response.
        law: the law of the stage.
        sealed_arm: the arm of `ghosttrace ablate` whose cache the later tokens see; None leaves the cache open.

    Raises:
        UserError: see `sealed_layout`.
    """
    if sealed_arm is None:
        return open_layout(tokens, law)
    if sealed_arm == "restart-bare":
        law = bare_law(law)
    return sealed_layout(tokens, law, renumber=sealed_arm == "restart-renumbered")


def bare_law(law: Law) -> Law:
    """Return the law under which the delimiters of a block leave with it, as in the arm `restart-bare`.

    Raises:
        UserError: another law than Memento's, or one whose delimiters leave anyway.
    """
    if not isinstance(law, MementoLaw) or law.policy.mask_delimiters:
        raise UserError("restart-bare needs blocks whose delimiters are retained: leave it out of --sealed-arms")
    return replace(law, policy=replace(law.policy, mask_delimiters=True))


def make_example(
    tokens: Sequence[int], labels: Sequence[int], law: Law, stage: Stage, sealed_arm: SealedArm = "restart"
) -> Example:
    """Return the example of a trace in a training stage.

    Args:
        tokens: int[T], prompt and response.
        labels: int[T], the token itself if it carries loss, else -100.
        law: the checkpoint's law, adapted to the stage by `stage_law`.
        stage: one of `STAGES`.
        sealed_arm: in the stage `sealed`, the arm whose cache the later tokens see.

    Raises:
        UserError: if the stage is `sealed` and Memento's policy keeps finished blocks, or the law cannot hold for the
            trace (see `ghosttrace.law.law.Law.erasures`).
    """
    layout = lay_out(tokens, stage_law(law, stage), sealed_arm if stage == "sealed" else None)
    column_labels = np.full(len(layout.token_index), IGNORE_INDEX, dtype=np.int64)
    indices, first_columns = np.unique(layout.token_index, return_index=True)
    column_labels[first_columns] = np.asarray(labels, dtype=np.int64)[indices]
    kind = token_kinds(tokens, law)[layout.token_index]
    column_expiry = np.minimum(layout.expiry, len(layout.token_index))
    return Example(layout.tokens, column_labels, layout.positions, column_expiry, kind, layout.token_index)


def token_kinds(tokens: Sequence[int], law: Law) -> np.ndarray:
    """Return the kind of each token of a trace, int64[T] with values of `TokenKind`."""
    kinds = np.full(len(tokens), TokenKind.TEXT, dtype=np.int64)
    blocks = _blocks(tokens, law)
    for block in blocks:
        kinds[block.start : block.end] = TokenKind.BLOCK
        kinds[block.memento_start : block.memento_end] = TokenKind.MEMENTO
        kinds[list(block)] = TokenKind.DELIMITER
    if blocks:
        kinds[blocks[-1].memento_end + 1 :] = TokenKind.ANSWER
    return kinds


def _blocks(tokens: Sequence[int], law: Law) -> list[Block]:
    """Return the finished blocks of a trace; none under another law than Memento's."""
    if not isinstance(law, MementoLaw):
        return []
    return find_blocks(tokens, law.markup, law.policy.require_assistant_section)


def delimiter_error(tokens: Sequence[int] | np.ndarray, markup: Markup, policy: Policy) -> str | None:
    """Describe the first misplaced or missing delimiter of a trace.

    With `policy.require_assistant_section`, only delimiters in the assistant's turns are checked.

    Returns:
        The description, or None if every checked delimiter belongs to a finished pair of block and memento.
    """
    section = policy.require_assistant_section
    _, letters = delimiter_events(np.asarray(tokens, dtype=np.int64), markup, section)
    if len(letters.replace("|", "")) == 4 * len(find_blocks(tokens, markup, section)):
        return None
    count = 0
    for letter in letters.rstrip("|"):  # a turn boundary after the last delimiter interrupts no pair
        expected = "BESM"[count % 4]
        if letter == "|" and expected != "B":
            return f"a turn begins or ends where {DELIMITER_OF_LETTER[expected]} is expected"
        if letter not in ("|", expected):
            return f"{DELIMITER_OF_LETTER[letter]} where {DELIMITER_OF_LETTER[expected]} is expected"
        count += letter != "|"
    return f"the trace ends before {DELIMITER_OF_LETTER['BESM'[count % 4]]}"


def delimiter_outside_turn(tokens: Sequence[int], labels: Sequence[int], markup: Markup, policy: Policy) -> str | None:
    """Describe the first delimiter that carries loss outside the assistant's turns; None if there is none.

    Such a delimiter would be learned although it never causes an erasure.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    outside = np.isin(ids, markup.delimiters) & (np.asarray(labels, dtype=np.int64) != IGNORE_INDEX)
    inside, _ = delimiter_events(ids, markup, policy.require_assistant_section)
    outside[inside] = False
    if not outside.any():
        return None
    index = int(outside.argmax())
    return f"{DELIMITERS[markup.delimiters.index(int(ids[index]))]} at token {index}"


def truncated_length(tokens: Sequence[int], law: Law, stage: Stage, width: int) -> int:
    """Return the number of leading tokens of a trace that fit into `width` columns.

    Under Memento's law, truncation never splits a pair of block and memento: a pair that does not fit is removed from
    its block on.
    """
    sealed = stage == "sealed"
    length = sealed_length(tokens, stage_law(law, stage), width) if sealed else min(len(tokens), width)
    if length == len(tokens):
        return length
    for block in _blocks(tokens, law):
        if block.start < length <= block.memento_end:
            return block.start
    return length


def check_expiry(given_expiry: Sequence[int], tokens: Sequence[int], law: Law, name: str) -> None:
    """Raise an error if the expiry column of a row differs from the expiry of its tokens.

    Args:
        given_expiry: int[T], the expiry column in token indices; larger values than T count as T.
        tokens: int[T], all tokens of the row, neither truncated nor laid out for a stage.
        law: the law of the run; the stage `memento` applies it.
        name: name of the row for the error message.

    Raises:
        UserError: if the lengths or the values differ; the message names the first differing token index.
    """
    length = len(tokens)
    expected = np.minimum(expiry(tokens, stage_law(law, "memento")), length)
    given = np.minimum(np.asarray(given_expiry, dtype=np.int64), length)
    wrong = np.flatnonzero(given != expected) if len(given) == length else np.array([min(len(given), length)])
    if len(wrong):
        raise UserError(
            f"{name}: the expiry column disagrees with input_ids at token {wrong[0]}: remove the column, or compute it "
            "with ghosttrace.law.expiry under the law of this run"
        )
