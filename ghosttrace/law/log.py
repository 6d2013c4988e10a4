"""`log:FILE`: evictions that another engine has recorded, replayed on the tokens that it recorded.

The file is JSONL or Parquet with one sequence per row: `token_ids`, and `evicted_at` with, for each token, the token
index of the first query that no longer saw it, or null if it stayed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ghosttrace.errors import UserError
from ghosttrace.law.chat import Chat
from ghosttrace.law.expiry import NEVER
from ghosttrace.law.law import Erasure, SpecifiedLaw, Tokens, Tracker

PARTIAL_COLUMNS = {"layer", "layers", "head", "heads", "kv_head", "kv_heads"}
RETURN_COLUMNS = {"restored_at", "recalled_at", "repaired_at", "readmitted_at", "returned_at"}


@dataclass(frozen=True, eq=False)
class LoggedSequence:
    """One row of a log.

    Attributes:
        tokens: int64[T], token ids.
        evicted_at: int64[T], expiry of each token; `NEVER` if it stayed.
    """

    tokens: np.ndarray
    evicted_at: np.ndarray

    def erasures(self, until: int) -> list[Erasure]:
        """Return the erasures whose `expires_at` is at most `until`, ordered by it."""
        times = np.unique(self.evicted_at[self.evicted_at <= until])
        return [Erasure(np.flatnonzero(self.evicted_at == time), int(time)) for time in times]


@dataclass(frozen=True)
class Log(SpecifiedLaw):
    """Recorded evictions. Sequences that the log does not hold are refused.

    Attributes:
        path: the file.
        digest: SHA-256 of the file.
        sequences: its rows.
    """

    name = "log"
    usage = "log:FILE"
    replayed = True
    path: str
    digest: str
    sequences: tuple[LoggedSequence, ...] = field(repr=False)

    @classmethod
    def parse(cls, arguments: str, chat: Chat) -> "Log":
        path = Path(arguments)
        if not path.is_file():
            raise UserError(f"there is no eviction log {arguments!r}: write {cls.usage} with a JSONL or Parquet file")
        rows = [_sequence(row, f"{path}, row {number}") for number, row in enumerate(_rows(path), 1)]
        if not rows:
            raise UserError(f"{path} is empty: give an eviction log with at least one row")
        return cls(str(path), sha256(path.read_bytes()).hexdigest(), tuple(rows))

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.path}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"sha256": self.digest}

    def erasures(self, token_ids: Tokens) -> list[Erasure]:
        tokens = np.asarray(token_ids, dtype=np.int64)
        length = len(tokens)
        matching = [row for row in self.sequences if np.array_equal(row.tokens[:length], tokens)]
        if not matching:
            self.refuse(length)
        _check_equal(self.path, [np.minimum(row.evicted_at[:length], length + 1) for row in matching], length)
        return matching[0].erasures(length)

    def tracker(self) -> Tracker:
        return LogTracker(self)

    def refuse(self, length: int) -> NoReturn:
        """Raise the error for tokens that the log does not hold.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"no row of {self.path} begins with these {length} tokens: replay the log on the text that it was recorded "
            "from, with the same tokenizer"
        )


class LogTracker(Tracker):
    """Incremental form of `Log`: the rows that begin with the tokens read so far.

    Args:
        law: the law.
    """

    def __init__(self, law: Log) -> None:
        self.law, self.num_read = law, 0
        self._matching = list(law.sequences)

    def push(self, token: int) -> list[Erasure]:
        index, self.num_read = self.num_read, self.num_read + 1
        self._matching = [row for row in self._matching if index < len(row.tokens) and row.tokens[index] == token]
        if not self._matching:
            self.law.refuse(self.num_read)
        time = self.num_read
        due = [np.flatnonzero(row.evicted_at == time) for row in self._matching]
        _check_equal(self.law.path, due, time)
        return [Erasure(due[0], time)] if len(due[0]) else []


def _check_equal(path: str, evictions: list[np.ndarray], length: int) -> None:
    """Check that rows with the same tokens evict alike."""
    if not all(np.array_equal(eviction, evictions[0]) for eviction in evictions):
        raise UserError(
            f"two rows of {path} begin with the same {length} tokens and evict differently: keep one of the two"
        )


def _rows(path: Path) -> Iterable[Any]:
    """Return the rows of a JSONL or Parquet file."""
    import pyarrow  # here, because the import is slow and the command line reads the list of laws when it starts
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            rows: list[Any] = parquet.read_table(path).to_pylist()
            return rows
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is neither JSONL nor Parquet: give one row per sequence") from error


def _sequence(row: Any, where: str) -> LoggedSequence:
    """Convert a row of a log.

    Args:
        row: the row.
        where: file and row, for messages.

    Raises:
        UserError: the row is not a log of whole tokens that leave once, or contradicts itself.
    """
    if not isinstance(row, Mapping) or not {"token_ids", "evicted_at"} <= row.keys():
        raise UserError(f"{where} is no eviction log: give token_ids and evicted_at, one entry per token")
    tokens, times = row["token_ids"], row["evicted_at"]
    if PARTIAL_COLUMNS & row.keys() or (isinstance(times, list) and any(isinstance(time, list) for time in times)):
        raise UserError(f"{where} evicts by head or layer, which is not one expiry per token: it is not covered")
    if RETURN_COLUMNS & row.keys():
        raise UserError(f"{where} brings evicted keys back, which is not one expiry per token: it is not covered")
    if not _integers(tokens) or not isinstance(times, list) or not _integers([t for t in times if t is not None]):
        raise UserError(f"{where} is no eviction log: token_ids holds integers, and evicted_at integers or null")
    if len(tokens) != len(times):
        raise UserError(f"{where} has {len(tokens)} token_ids and {len(times)} times: give one evicted_at per token")
    evicted_at = np.array([NEVER if time is None else time for time in times], dtype=np.int64)
    early = np.flatnonzero(evicted_at <= np.arange(len(times)) + 1)
    if len(early):
        key = int(early[0])
        raise UserError(
            f"{where} evicts token {key} at {evicted_at[key]}, before the token after it was read: evicted_at is the "
            "index of the first token that no longer sees it"
        )
    return LoggedSequence(np.array(tokens, dtype=np.int64), evicted_at)


def _integers(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(type(value) is int and 0 <= value <= NEVER for value in values)
