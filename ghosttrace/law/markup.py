"""Traces: the markup of blocks and mementos, and where they lie in a token stream.

A trace is `<|block_start|> T_i <|block_end|> <|summary_start|> M_i <|summary_end|> ...` inside an
assistant's turn (arXiv 2604.09852, section 3). A pair counts only if its four delimiters stand in
that order with no other delimiter between them: a model may emit anything, so whatever is unclosed,
nested or out of order is plain text. `find_blocks` reads a finished sequence, `BlockTracker` is fed one
token at a time; the tests hold them to each other on arbitrary streams.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ghosttrace.errors import UserError

DELIMITERS = ("block_start", "block_end", "summary_start", "summary_end")


@dataclass(frozen=True)
class Markup:
    """Token ids that structure a trace.

    Attributes:
        block_start, block_end, summary_start, summary_end: the four delimiters.
        assistant_header: the ids that open an assistant's turn (ChatML: `<|im_start|>assistant\\n`).
        turn_end: the id that closes a turn (ChatML: `<|im_end|>`), if the format has one.
    """

    block_start: int
    block_end: int
    summary_start: int
    summary_end: int
    assistant_header: tuple[int, ...] = ()
    turn_end: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.delimiters)) != 4 or {*self.assistant_header, self.turn_end} & set(self.delimiters):
            raise UserError(f"the four delimiters must be four ids of their own, found {self}")

    @property
    def delimiters(self) -> tuple[int, int, int, int]:
        """The four delimiter ids, in the order of `DELIMITERS`."""
        return self.block_start, self.block_end, self.summary_start, self.summary_end

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Markup":
        """The markup that a run.json holds."""
        return cls(**{**stored, "assistant_header": tuple(stored["assistant_header"])})

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, names: Mapping[str, str] | None = None) -> "Markup":
        """Find the delimiters and the assistant's header in a Hugging Face tokenizer.

        Args:
            tokenizer: a tokenizer with the four delimiters as single tokens.
            names: other spellings, e.g. `{"block_start": "<think_block>"}`.

        Raises:
            UserError: a delimiter is not a token of the tokenizer.
        """
        spelled = {name: (names or {}).get(name, f"<|{name}|>") for name in DELIMITERS}
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in spelled.values() if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}: name the tokens it uses instead with "
                "--map-delimiters, e.g. --map-delimiters block_start=<|fim_prefix|>,block_end=…"
            )
        header = _assistant_header(tokenizer)
        turn_end = _turn_end(tokenizer) if header else None
        ids = {name: vocabulary[token] for name, token in spelled.items()}
        return cls(**ids, assistant_header=header, turn_end=turn_end)


def _assistant_header(tokenizer: Any) -> tuple[int, ...]:
    """What the chat template adds to invite the assistant's turn; empty without a template."""
    if not tokenizer.chat_template:
        return ()
    turns = [{"role": "user", "content": "?"}]
    plain, invited = (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=invite) for invite in (False, True)
    )
    header = invited.removeprefix(plain).removesuffix("<think>\n").removesuffix("<think>")
    if not invited.startswith(plain) or not header:
        raise UserError(
            "the chat template does not show where the assistant's turn begins: "
            "let it add a header if add_generation_prompt is set, and nothing else"
        )
    return tuple(tokenizer(header, add_special_tokens=False)["input_ids"])


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind an assistant's message, if it does."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
    behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in tokenizer.all_special_ids), None)


class Block(NamedTuple):
    """A finished block and its memento: the positions of the four delimiters, counted from 0."""

    start: int
    end: int
    memento_start: int
    memento_end: int


def find_turns(tokens: np.ndarray, markup: Markup) -> tuple[np.ndarray, np.ndarray]:
    """Positions at which an assistant's turn opens (last id of its header) and at which turns end."""
    width = len(markup.assistant_header)
    if not width:
        raise UserError(
            "no assistant header is known: add a chat template to the tokenizer, or set require_assistant_section=False"
        )
    if len(tokens) < width:
        opens = np.zeros(0, dtype=np.int64)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(tokens, width)
        opens = np.flatnonzero((windows == np.array(markup.assistant_header)).all(axis=1)) + width - 1
    ends = np.flatnonzero(tokens == (-1 if markup.turn_end is None else markup.turn_end))
    return opens, ends


def in_assistant(positions: np.ndarray, opens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each position lies in an assistant's turn: a turn opened before it and has not ended."""
    last_open = np.append(-1, opens)[np.searchsorted(opens, positions)]
    last_end = np.append(-1, ends)[np.searchsorted(ends, positions)]
    return last_open > last_end


def delimiter_events(tokens: np.ndarray, markup: Markup, require_assistant_section: bool) -> tuple[np.ndarray, str]:
    """The stream reduced to what matters: positions and one letter each.

    Letters are B, E, S, M for the four delimiters and `|` for the opening or end of a turn. Without
    `require_assistant_section` turns mean nothing and every delimiter counts.
    """
    ids = np.array(markup.delimiters)
    positions = np.flatnonzero(np.isin(tokens, ids))
    letters = {int(token): letter for token, letter in zip(ids, "BESM", strict=True)}
    if not require_assistant_section:
        return positions, "".join(letters[int(token)] for token in tokens[positions])
    opens, ends = find_turns(tokens, markup)
    positions = positions[in_assistant(positions, opens, ends)]
    marks = [(int(p), letters[int(tokens[p])]) for p in positions]
    marks += [(int(p), "|") for p in {*opens.tolist(), *ends.tolist()}]
    marks.sort()
    return np.array([p for p, _ in marks], dtype=np.int64), "".join(letter for _, letter in marks)


def find_blocks(
    token_ids: Sequence[int] | np.ndarray, markup: Markup, require_assistant_section: bool = True
) -> list[Block]:
    """Every finished, well-formed block-memento pair of a sequence, in order.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: the ids of the delimiters and of the assistant's header.
        require_assistant_section: count only what the assistant wrote.
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    positions, letters = delimiter_events(tokens, markup, require_assistant_section)
    return [Block(*positions[m.start() : m.end()].tolist()) for m in re.finditer("BESM", letters)]


class BlockTracker:
    """The same reading, one token at a time.

    Attributes:
        num_read: tokens read so far.
        in_assistant_turn: the next token is the assistant's.
        open_delimiters: positions of the delimiters of the pair under way (0 to 3 of them).
    """

    def __init__(self, markup: Markup, require_assistant_section: bool = True) -> None:
        if require_assistant_section and not markup.assistant_header:
            raise UserError(
                "no assistant header is known: add a chat template to the tokenizer, "
                "or set require_assistant_section=False"
            )
        self.markup = markup
        self.num_read = 0
        self.in_assistant_turn = not require_assistant_section
        self.open_delimiters: list[int] = []
        self._sectioned = require_assistant_section
        self._recent: list[int] = []

    @property
    def in_block(self) -> bool:
        """A block has begun and not ended."""
        return len(self.open_delimiters) == 1

    @property
    def block_tokens(self) -> int:
        """Tokens of the block under way, its `<|block_start|>` left out; 0 outside a block."""
        return self.num_read - self.open_delimiters[0] - 1 if self.in_block else 0

    def push(self, token: int) -> Block | None:
        """Read one token; return the pair it completes, if it does."""
        position, self.num_read = self.num_read, self.num_read + 1
        if self._sectioned:
            self._watch_turns(token)
        if not self.in_assistant_turn or token not in self.markup.delimiters:
            return None
        if token == self.markup.block_start:
            self.open_delimiters = [position]
        elif self.open_delimiters and token == self.markup.delimiters[len(self.open_delimiters)]:
            self.open_delimiters.append(position)
        else:
            self.open_delimiters = []
        if len(self.open_delimiters) < 4:
            return None
        block, self.open_delimiters = Block(*self.open_delimiters), []
        return block

    def _watch_turns(self, token: int) -> None:
        header = self.markup.assistant_header
        self._recent = [*self._recent, token][-len(header) :]
        if tuple(self._recent) == header:
            self.in_assistant_turn, self.open_delimiters = True, []
        elif token == self.markup.turn_end:
            self.in_assistant_turn, self.open_delimiters = False, []
