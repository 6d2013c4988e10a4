"""Records: the rows of a run, kept in memory while the run is unfinished."""

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
    """Columns and key of the rows of a run.

    Attributes:
        schema: names and types of the columns.
        key: names of the columns that identify a sample.
    """

    schema: pa.Schema
    key: tuple[str, ...]


class Records:
    """Finished samples of a run, in memory.

    Args:
        layout: columns and key of the rows.

    Attributes:
        changed_on_resume: keys of samples that were computed again with a different result.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.layout = layout
        self.changed_on_resume: list[RecordKey] = []
        self._rows: dict[RecordKey, dict[str, Any]] = {}

    def key_of(self, row: dict[str, Any]) -> RecordKey:
        """Return the key of a row."""
        return tuple(row[name] for name in self.layout.key)

    def __contains__(self, key: RecordKey) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[RecordKey]:
        """Return the keys of all recorded samples."""
        return list(self._rows)

    def get(self, key: RecordKey) -> dict[str, Any]:
        """Return the row of a recorded sample."""
        return self._rows[key]

    def copy(self) -> "Records":
        """Return the recorded samples as records in memory."""
        copy = Records(self.layout)
        for key in self.keys():
            copy.add(self.get(key))
        return copy

    def add(self, row: dict[str, Any]) -> None:
        """Record a finished sample.

        If the key is already recorded, the first row is retained. If the rows differ, the key is added to
        `changed_on_resume`.
        """
        key = self.key_of(row)
        if key not in self:
            self._keep(key, row)
        elif self.get(key) != row:
            self.changed_on_resume.append(key)

    def _keep(self, key: RecordKey, row: dict[str, Any]) -> None:
        self._rows[key] = row

    def tables(self, order: Iterable[RecordKey]) -> Iterator[pa.Table]:
        """Yield the samples in the given order, as tables of at most `ROWS_PER_TABLE` rows."""
        rows: list[dict[str, Any]] = []
        for key in order:
            rows.append(self.get(key))
            if len(rows) == ROWS_PER_TABLE:
                yield pa.Table.from_pylist(rows, self.layout.schema)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, self.layout.schema)

    def write(self, order: Iterable[RecordKey], path: Path) -> None:
        """Write the samples in the given order as one Parquet file, atomically."""
        partial = path.with_suffix(".part")
        with parquet.ParquetWriter(partial, self.layout.schema, compression="zstd") as writer:
            for table in self.tables(order):
                writer.write_table(table)
        commit_file(partial, path)

    def frame(self, order: Iterable[RecordKey], columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the samples in the given order as a data frame, with the given columns or all of them."""
        names = self.layout.schema.names if columns is None else list(columns)
        tables = [table.select(names) for table in self.tables(order)]
        return pa.concat_tables([self.layout.schema.empty_table().select(names), *tables]).to_pandas()
