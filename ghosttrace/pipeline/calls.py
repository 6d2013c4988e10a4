"""Every answer of the endpoint, kept in a database, so that no request is sent again once it was answered.

The key of a call is the SHA-256 of the address and the whole request. The database is SQLite's, in write-ahead mode:
an answer is on disk before the pipeline uses it.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ghosttrace.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY,
    stage TEXT NOT NULL,
    request TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    price_in REAL NOT NULL,
    price_out REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
MOST_IN = "LENGTH(CAST(request AS BLOB))"  # tokens begin from bytes
MOST_OUT = "COALESCE(json_extract(request, '$.max_completion_tokens'), 0)"
USAGE = f"""
SELECT stage, COUNT(*), SUM(COALESCE(prompt_tokens, 0)), SUM(COALESCE(completion_tokens, 0)),
    SUM(prompt_tokens IS NULL OR completion_tokens IS NULL),
    SUM(COALESCE(prompt_tokens, {MOST_IN}) * price_in + COALESCE(completion_tokens, {MOST_OUT}) * price_out) / 1e6
FROM calls GROUP BY stage ORDER BY MIN(rowid)
"""
EXCESS = f"""
SELECT MAX(0, COALESCE(MAX(prompt_tokens - {MOST_IN}), 0)),
    MAX(0, COALESCE(MAX(completion_tokens - {MOST_OUT}), 0))
FROM calls
"""
MISSING_PRICES = """
UPDATE calls SET price_in = ?, price_out = ?
WHERE price_in = 0 AND price_out = 0 AND json_extract(request, '$.model') = ?
"""


@dataclass(frozen=True)
class Answer:
    """Answer of the endpoint.

    Attributes:
        text: the message.
        finish_reason: why it ended; `length` if it was cut off.
        prompt_tokens, completion_tokens: usage; None if the endpoint did not report it.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class StageCost:
    """Usage and cost of the calls of a stage.

    Attributes:
        stage: name of the stage.
        calls: number of answers.
        prompt_tokens, completion_tokens: sums over the answers.
        without_usage: number of answers whose usage the endpoint did not report; they count at most.
        cost: in dollars.
    """

    stage: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    without_usage: int
    cost: float


def request_key(address: str, request: Mapping[str, Any]) -> str:
    """Return the key of a request to an address: the SHA-256 of both as JSON with sorted names."""
    content = {"address": address.rstrip("/"), "request": request}
    return sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class CallCache:
    """The answers of a folder.

    Args:
        path: the database; created if it does not exist.

    Raises:
        UserError: the file is no such database, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def get(self, key: str) -> Answer | None:
        """Return the stored answer, or None."""
        columns = "text, finish_reason, prompt_tokens, completion_tokens"
        row = self._execute(f"SELECT {columns} FROM calls WHERE key = ?", key).fetchone()
        return Answer(*row) if row else None

    def put(
        self, key: str, stage: str, request: Mapping[str, Any], answer: Answer, prices: tuple[float, float]
    ) -> None:
        """Store an answer; it is on disk when this returns.

        Args:
            key: see `request_key`.
            stage: the stage that asked.
            request: the request.
            answer: its answer.
            prices: dollars for a million tokens of prompt and of completion.
        """
        row = (key, stage, json.dumps(request, ensure_ascii=False), answer.text, answer.finish_reason)
        usage = (answer.prompt_tokens, answer.completion_tokens)
        self._execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row, *usage, *prices)

    def setting(self, name: str) -> str | None:
        """Return what was found out about the endpoint, or None."""
        row = self._execute("SELECT value FROM settings WHERE name = ?", name).fetchone()
        return str(row[0]) if row else None

    def set_setting(self, name: str, value: str) -> None:
        """Keep what was found out about the endpoint."""
        self._execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, value)

    def costs(self) -> list[StageCost]:
        """Return the usage and the cost of each stage, over all runs in this folder."""
        return [StageCost(*row) for row in self._execute(USAGE).fetchall()]

    def largest_excess(self) -> tuple[int, int]:
        """Return by how many tokens a prompt and an answer exceeded what was reserved for them, at most."""
        prompt_tokens, completion_tokens = self._execute(EXCESS).fetchone()
        return int(prompt_tokens), int(completion_tokens)

    def set_missing_prices(self, model: str, price_in: float, price_out: float) -> None:
        """Give prices to the calls of a model that were stored without any."""
        self._execute(MISSING_PRICES, price_in, price_out, model)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except (sqlite3.Error, ValueError, OverflowError) as error:  # also text or numbers that SQLite cannot hold
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} cannot be used ({error}): free disk space, change the permissions, or give another --out; "
            "the answers stored so far are kept"
        )
