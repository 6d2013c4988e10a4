"""Rows of a run, kept from the moment they are done: in memory, or in a log that survives a killed run.

The file, `samples.jsonl`, only ever grows by whole lines, each flushed to the disk before the next is
begun; a line that a crash cut short is dropped when the file is opened again. Once a run is finished
its rows go into `samples.parquet`, in the order of the plan whatever order they were sampled in.
"""

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ghosttrace.errors import RunWarning

ROWS_AT_ONCE = 256

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """What rows look like.

    Attributes:
        schema: the columns.
        key: the columns that say which sample a row is.
    """

    schema: pa.Schema
    key: tuple[str, ...]


def settle(partial: Path, path: Path) -> None:
    """Give a file its name once it is on the disk, and wait until the name is there too.

    A file appears complete or not at all, and what is done afterwards happened afterwards, whatever
    dies in between.
    """
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Records:
    """Samples in memory.

    Args:
        layout: of their rows.

    Attributes:
        unlike: samples that came out otherwise when they were taken again.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.unlike: list[Key] = []
        self._rows: dict[Key, dict[str, Any]] = {}

    def key_of(self, row: dict[str, Any]) -> Key:
        """The key of a row."""
        return tuple(row[name] for name in self.layout.key)

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[Key]:
        """The keys of all samples that are here."""
        return list(self._rows)

    def get(self, key: Key) -> dict[str, Any]:
        """The row of a sample that is here."""
        return self._rows[key]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished sample. One that is here already stays as it was; a difference is noted."""
        key = self.key_of(row)
        if key not in self:
            self._keep(key, row)
        elif self.get(key) != row:
            self.unlike.append(key)

    def _keep(self, key: Key, row: dict[str, Any]) -> None:
        self._rows[key] = row

    def tables(self, order: Iterable[Key]) -> Iterator[pa.Table]:
        """The samples in this order, a few hundred rows at a time."""
        rows: list[dict[str, Any]] = []
        for key in order:
            rows.append(self.get(key))
            if len(rows) == ROWS_AT_ONCE:
                yield pa.Table.from_pylist(rows, self.layout.schema)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, self.layout.schema)

    def write(self, order: Iterable[Key], path: Path) -> None:
        """Write the samples in this order as one Parquet file, which appears complete or not at all."""
        partial = path.with_suffix(".part")
        with parquet.ParquetWriter(partial, self.layout.schema, compression="zstd") as writer:
            for table in self.tables(order):
                writer.write_table(table)
        settle(partial, path)

    def frame(self, order: Iterable[Key], columns: Iterable[str] | None = None) -> pd.DataFrame:
        """The samples in this order; of their columns some, or all."""
        names = self.layout.schema.names if columns is None else list(columns)
        tables = [table.select(names) for table in self.tables(order)]
        return pa.concat_tables([self.layout.schema.empty_table().select(names), *tables]).to_pandas()


class Log(Records):
    """Samples in a file: what was done before is found again.

    Args:
        path: the file; made if it is not there.
        layout: of the rows.

    Warns:
        RunWarning: a record cannot be read; its sample is taken again.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(layout)
        self.path = path
        self._places: dict[Key, int] = {}
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

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[Key]:
        return list(self._places)

    def get(self, key: Key) -> dict[str, Any]:
        """The row of a sample that is here, read back."""
        with self.path.open("rb") as file:
            file.seek(self._places[key])
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def _keep(self, key: Key, row: dict[str, Any]) -> None:
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._places[key] = place

    def finish(self, order: Iterable[Key], path: Path) -> None:
        """Write the samples as one Parquet file, which appears complete or not at all, and end the log."""
        self.write(order, path)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def _read(self, line: bytes) -> Key | None:
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
