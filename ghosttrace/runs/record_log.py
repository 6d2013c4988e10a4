"""The log of an unfinished run: records in a file that survives a killed process.

The file `samples.jsonl` grows by whole lines. Each line is flushed to disk before the next is written. A line that a
crash cut short is dropped when the file is opened again. When the run finishes, its rows are written to
`samples.parquet` in the order of the plan, independent of the order of sampling.
"""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ghosttrace.errors import RunWarning
from ghosttrace.runs.records import RecordKey, RecordLayout, Records


class RecordLog(Records):
    """Records in a JSONL file. Opening the file of an interrupted run restores its records.

    Args:
        path: the file; created if it does not exist.
        layout: columns and key of the rows.

    Warns:
        RunWarning: a record cannot be read and is dropped; its sample is computed again.
    """

    def __init__(self, path: Path, layout: RecordLayout) -> None:
        super().__init__(layout)
        self.path = path
        self._offsets: dict[RecordKey, int] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        end = valid_end = 0
        for line in self._file:
            key = self._parse_key(line)
            if key is None:
                message = f"{path.name}, byte {end}: dropped a damaged record; its sample is computed again"
                warnings.warn(message, RunWarning, stacklevel=2)
            else:
                self._offsets[key] = end
                valid_end = end + len(line)
            end += len(line)
        self._file.truncate(valid_end)  # drop a last line cut short by a crash; damaged lines before it remain

    def __contains__(self, key: RecordKey) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self) -> list[RecordKey]:
        return list(self._offsets)

    def get(self, key: RecordKey) -> dict[str, Any]:
        """Read the row of a recorded sample from the file."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[key])
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def _keep(self, key: RecordKey, row: dict[str, Any]) -> None:
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._offsets[key] = offset

    def finish(self, order: Iterable[RecordKey], path: Path) -> None:
        """Write the samples as one Parquet file atomically, then close and delete the log.

        Args:
            order: keys of the samples, in the order of the rows.
            path: of the Parquet file.
        """
        self.write(order, path)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Close the file without deleting it."""
        self._file.close()

    def _parse_key(self, line: bytes) -> RecordKey | None:
        """Return the key of a line, or None if the line is not a complete row of the layout."""
        if not line.endswith(b"\n"):
            return None
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or row.keys() != set(self.layout.schema.names):
                return None
            pa.Table.from_pylist([row], self.layout.schema)
        except (ValueError, TypeError, RecursionError, pa.ArrowException):
            return None
        return self.key_of(row)
