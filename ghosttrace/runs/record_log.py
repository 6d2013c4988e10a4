"""The log of a run that goes on: rows in a file that survives a killed process.

The file, `samples.jsonl`, only ever grows by whole lines, each flushed to the disk before the next is
begun; a line that a crash cut short is dropped when the file is opened again. Once a run is finished
its rows go into `samples.parquet`, in the order of the plan whatever order they were sampled in.
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
    """Samples in a file: what was done before is found again.

    Args:
        path: the file; made if it is not there.
        layout: of the rows.

    Warns:
        RunWarning: a record cannot be read; its sample is taken again.
    """

    def __init__(self, path: Path, layout: RecordLayout) -> None:
        super().__init__(layout)
        self.path = path
        self._places: dict[RecordKey, int] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        end = whole = 0
        for line in self._file:
            key = self._read(line)
            if key is None:
                dropped = f"{path.name}, byte {end}: dropped a record that cannot be read; its sample is taken again"
                warnings.warn(dropped, RunWarning, stacklevel=2)
            else:
                self._places[key] = end
                whole = end + len(line)
            end += len(line)
        self._file.truncate(whole)  # what a crash cut short at the end; damage further up stays where it is

    def __contains__(self, key: RecordKey) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[RecordKey]:
        return list(self._places)

    def get(self, key: RecordKey) -> dict[str, Any]:
        """The row of a sample that is here, read back."""
        with self.path.open("rb") as file:
            file.seek(self._places[key])
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def _keep(self, key: RecordKey, row: dict[str, Any]) -> None:
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._places[key] = place

    def finish(self, order: Iterable[RecordKey], path: Path) -> None:
        """Write the samples as one Parquet file, which appears complete or not at all, and end the log."""
        self.write(order, path)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def _read(self, line: bytes) -> RecordKey | None:
        """The key of a line, None if it is no whole row of the layout."""
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
