"""Rows of a run, kept from the moment they are done: what they look like, and where they are while it goes on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ghosttrace.runs.atomic import commit_file

ROWS_PER_TABLE = 256

RecordKey = tuple[Any, ...]


@dataclass(frozen=True)
class RecordLayout:
    """What rows look like.

    Attributes:
        schema: the columns.
        key: the columns that say which sample a row is.
    """

    schema: pa.Schema
    key: tuple[str, ...]


class Records:
    """Samples in memory.

    Args:
        layout: of their rows.

    Attributes:
        changed_on_resume: samples that came out otherwise when they were taken again.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.layout = layout
        self.changed_on_resume: list[RecordKey] = []
        self._rows: dict[RecordKey, dict[str, Any]] = {}

    def key_of(self, row: dict[str, Any]) -> RecordKey:
        """The key of a row."""
        return tuple(row[name] for name in self.layout.key)

    def __contains__(self, key: RecordKey) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[RecordKey]:
        """The keys of all samples that are here."""
        return list(self._rows)

    def get(self, key: RecordKey) -> dict[str, Any]:
        """The row of a sample that is here."""
        return self._rows[key]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished sample. One that is here already stays as it was; a difference is noted."""
        key = self.key_of(row)
        if key not in self:
            self._keep(key, row)
        elif self.get(key) != row:
            self.changed_on_resume.append(key)

    def _keep(self, key: RecordKey, row: dict[str, Any]) -> None:
        self._rows[key] = row

    def tables(self, order: Iterable[RecordKey]) -> Iterator[pa.Table]:
        """The samples in this order, a few hundred rows at a time."""
        rows: list[dict[str, Any]] = []
        for key in order:
            rows.append(self.get(key))
            if len(rows) == ROWS_PER_TABLE:
                yield pa.Table.from_pylist(rows, self.layout.schema)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, self.layout.schema)

    def write(self, order: Iterable[RecordKey], path: Path) -> None:
        """Write the samples in this order as one Parquet file, which appears complete or not at all."""
        partial = path.with_suffix(".part")
        with parquet.ParquetWriter(partial, self.layout.schema, compression="zstd") as writer:
            for table in self.tables(order):
                writer.write_table(table)
        commit_file(partial, path)

    def frame(self, order: Iterable[RecordKey], columns: Iterable[str] | None = None) -> pd.DataFrame:
        """The samples in this order; of their columns some, or all."""
        names = self.layout.schema.names if columns is None else list(columns)
        tables = [table.select(names) for table in self.tables(order)]
        return pa.concat_tables([self.layout.schema.empty_table().select(names), *tables]).to_pandas()
