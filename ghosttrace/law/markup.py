"""Markup of blocks and mementos, and the search for them in token sequences.

A trace is `<|block_start|> T_i <|block_end|> <|summary_start|> M_i <|summary_end|> ...` inside an assistant's turn
(arXiv 2604.09852, section 3). A block-memento pair counts only if its four delimiters come in this order with no
other delimiter between them. A model may emit anything, so unclosed, nested or misordered delimiters are treated as
plain text. `find_blocks` reads a complete sequence and `BlockTracker` reads one token at a time; the tests check
that both agree on arbitrary sequences.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import find_assistant_header, find_sequence, find_turn_end

DELIMITERS = ("block_start", "block_end", "summary_start", "summary_end")


@dataclass(frozen=True)
class Markup:
    """Token ids that structure a trace.

    Attributes:
        block_start, block_end, summary_start, summary_end: the four delimiters.
        assistant_header: the token ids that open an assistant's turn (ChatML: `<|im_start|>assistant\\n`).
        turn_end: the token id that closes a turn (ChatML: `<|im_end|>`), if the chat format has one.
    """

    block_start: int
    block_end: int
    summary_start: int
    summary_end: int
    assistant_header: tuple[int, ...] = ()
    turn_end: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.delimiters)) != 4 or {*self.assistant_header, self.turn_end} & set(self.delimiters):
            raise UserError(f"the four delimiters must have four ids that nothing else in the markup uses, not {self}")

    @property
    def delimiters(self) -> tuple[int, int, int, int]:
        """The four delimiter ids, in the order of `DELIMITERS`."""
        return self.block_start, self.block_end, self.summary_start, self.summary_end

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Markup":
        """Build the markup from its entry in run.json."""
        return cls(**{**stored, "assistant_header": tuple(stored["assistant_header"])})

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, names: Mapping[str, str] | None = None) -> "Markup":
        """Find the delimiters and the assistant header in a Hugging Face tokenizer.

        Args:
            tokenizer: a tokenizer with the four delimiters as single tokens.
            names: other spellings of the delimiters, e.g. `{"block_start": "<think_block>"}`.

        Raises:
            UserError: a delimiter is not a token of the tokenizer, or the chat template shows no assistant header.
        """
        spelled = spell_delimiters(names)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in spelled.values() if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}: give the tokens that it uses instead with "
                "--map-delimiters, e.g. --map-delimiters block_start=<|fim_prefix|>,block_end=…, or add them with "
                "ghosttrace init-tokens"
            )
        return cls.of_any_tokenizer(tokenizer, names)

    @classmethod
    def of_any_tokenizer(cls, tokenizer: Any, names: Mapping[str, str] | None = None) -> "Markup":
        """Find delimiters and assistant header; delimiters that the tokenizer lacks get ids that no token has.

        Args:
            tokenizer: see `from_tokenizer`.
            names: see `from_tokenizer`.
        """
        header, vocabulary = find_assistant_header(tokenizer), tokenizer.get_vocab()
        turn_end = find_turn_end(tokenizer) if header else None
        spelled = enumerate(spell_delimiters(names).items(), 1)
        ids = {name: vocabulary.get(token, -number) for number, (name, token) in spelled}
        return cls(**ids, assistant_header=header, turn_end=turn_end)

    @property
    def has_delimiters(self) -> bool:
        """Whether the tokenizer has the four delimiters; a stock model's has none."""
        return min(self.delimiters) >= 0


def spell_delimiters(names: Mapping[str, str] | None) -> dict[str, str]:
    """Return the token of each delimiter by its name in `DELIMITERS`.

    Args:
        names: spellings that differ from Memento's.
    """
    return {name: (names or {}).get(name, f"<|{name}|>") for name in DELIMITERS}


class Block(NamedTuple):
    """A finished block-memento pair, as the token indices of its four delimiters."""

    start: int
    end: int
    memento_start: int
    memento_end: int


def find_turns(tokens: np.ndarray, markup: Markup) -> tuple[np.ndarray, np.ndarray]:
    """Find the turns of a chat.

    Args:
        tokens: int64[T].
        markup: token ids of the assistant header and of the end of a turn.

    Returns:
        Token indices where an assistant's turn opens (the last token of its header), and where any turn ends.

    Raises:
        UserError: the markup has no assistant header.
    """
    if not markup.assistant_header:
        raise UserError(
            "the assistant header is unknown: add a chat template to the tokenizer, "
            "or set require_assistant_section=False"
        )
    opens = find_sequence(tokens, markup.assistant_header)
    ends = np.flatnonzero(tokens == (-1 if markup.turn_end is None else markup.turn_end))
    return opens, ends


def in_assistant(indices: np.ndarray, opens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return, for each token index, whether it lies in an assistant's turn.

    Args:
        indices: int64[n], token indices.
        opens, ends: as returned by `find_turns`.

    Returns:
        bool[n].
    """
    last_open = np.append(-1, opens)[np.searchsorted(opens, indices)]
    last_end = np.append(-1, ends)[np.searchsorted(ends, indices)]
    return last_open > last_end


def delimiter_events(tokens: np.ndarray, markup: Markup, require_assistant_section: bool) -> tuple[np.ndarray, str]:
    """Reduce a sequence to its delimiters and turn boundaries.

    Args:
        tokens: int64[T].
        markup: token ids of the delimiters and of the assistant header.
        require_assistant_section: count only delimiters in an assistant's turn, and include turn boundaries.

    Returns:
        int64[n], the token indices of the events in ascending order, and a string of n letters, one per event: B, E,
        S, M for the four delimiters in the order of `DELIMITERS`, and `|` for the opening or end of a turn.
    """
    ids = np.array(markup.delimiters)
    indices = np.flatnonzero(np.isin(tokens, ids))
    letters = {int(token): letter for token, letter in zip(ids, "BESM", strict=True)}
    if not require_assistant_section:
        return indices, "".join(letters[int(token)] for token in tokens[indices])
    opens, ends = find_turns(tokens, markup)
    indices = indices[in_assistant(indices, opens, ends)]
    events = [(int(index), letters[int(tokens[index])]) for index in indices]
    events += [(int(index), "|") for index in {*opens.tolist(), *ends.tolist()}]
    events.sort()
    return np.array([index for index, _ in events], dtype=np.int64), "".join(letter for _, letter in events)


def find_blocks(
    token_ids: Sequence[int] | np.ndarray, markup: Markup, require_assistant_section: bool = True
) -> list[Block]:
    """Return every finished, well-formed block-memento pair of a sequence, in order.

    Args:
        token_ids: int[T], one unpadded sequence.
        markup: token ids of the delimiters and of the assistant header.
        require_assistant_section: count only delimiters in an assistant's turn.

    Example:
        >>> markup = Markup(block_start=1, block_end=2, summary_start=3, summary_end=4)
        >>> find_blocks([9, 1, 8, 2, 3, 7, 4, 9], markup, require_assistant_section=False)
        [Block(start=1, end=3, memento_start=4, memento_end=6)]
    """
    tokens = np.asarray(token_ids, dtype=np.int64)
    indices, letters = delimiter_events(tokens, markup, require_assistant_section)
    return [Block(*indices[match.start() : match.end()].tolist()) for match in re.finditer("BESM", letters)]


class BlockTracker:
    """Incremental form of `find_blocks`, fed one token at a time.

    Attributes:
        num_read: number of tokens read so far.
        in_assistant_turn: whether the next token belongs to an assistant's turn.
        open_delimiters: token indices of the delimiters of the current, unfinished pair (0 to 3 of them).
    """

    def __init__(self, markup: Markup, require_assistant_section: bool = True) -> None:
        if require_assistant_section and not markup.assistant_header:
            raise UserError(
                "the assistant header is unknown: add a chat template to the tokenizer, "
                "or set require_assistant_section=False"
            )
        self.markup = markup
        self.num_read = 0
        self.in_assistant_turn = not require_assistant_section
        self.open_delimiters: list[int] = []
        self._require_assistant_section = require_assistant_section
        self._recent_tokens: list[int] = []

    @property
    def in_block(self) -> bool:
        """Whether a block has begun and not ended."""
        return len(self.open_delimiters) == 1

    @property
    def block_tokens(self) -> int:
        """Number of tokens in the current block, without its `<|block_start|>`; 0 outside a block."""
        return self.num_read - self.open_delimiters[0] - 1 if self.in_block else 0

    def push(self, token: int) -> Block | None:
        """Process the next token and return the block-memento pair that it completes, or None."""
        index, self.num_read = self.num_read, self.num_read + 1
        if self._require_assistant_section:
            self._track_turns(token)
        if not self.in_assistant_turn or token not in self.markup.delimiters:
            return None
        if token == self.markup.block_start:
            self.open_delimiters = [index]
        elif self.open_delimiters and token == self.markup.delimiters[len(self.open_delimiters)]:
            self.open_delimiters.append(index)
        else:
            self.open_delimiters = []
        if len(self.open_delimiters) < 4:
            return None
        block, self.open_delimiters = Block(*self.open_delimiters), []
        return block

    def _track_turns(self, token: int) -> None:
        header = self.markup.assistant_header
        self._recent_tokens = [*self._recent_tokens, token][-len(header) :]
        if tuple(self._recent_tokens) == header:
            self.in_assistant_turn, self.open_delimiters = True, []
        elif token == self.markup.turn_end:
            self.in_assistant_turn, self.open_delimiters = False, []
