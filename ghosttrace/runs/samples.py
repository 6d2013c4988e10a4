"""The samples of a run as tables, wherever they are: in its records, or in its `samples.parquet`."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow
from pyarrow import parquet

from ghosttrace.errors import UserError
from ghosttrace.runs.records import RecordKey, Records


class Samples(Protocol):
    """Where the samples of a run are read from."""

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """Samples as a table, in the order of the run's plan.

        Args:
            columns: which ones; all of them if None.
            equal: only rows with these values in columns of the key, such as `arm="restart"`.
        """

    def stored(self) -> AbstractContextManager[Path]:
        """The samples as a Parquet file, for readers that take a few rows at a time."""


@dataclass(frozen=True)
class RecordedSamples:
    """The samples of a run that keeps them in memory, or has not written samples.parquet yet."""

    records: Records
    order: Sequence[RecordKey]

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """See `Samples.frame`."""
        key = self.records.layout.key
        wanted = {key.index(name): value for name, value in equal.items()}
        chosen = [one for one in self.order if all(one[place] == value for place, value in wanted.items())]
        return self.records.frame(chosen, columns)

    @contextmanager
    def stored(self) -> Iterator[Path]:
        """See `Samples.stored`; the file is gone on exit."""
        with tempfile.TemporaryDirectory(prefix="ghosttrace-") as folder:
            path = Path(folder) / "samples.parquet"
            self.records.write(self.order, path)
            yield path


@dataclass(frozen=True)
class StoredSamples:
    """The samples of a finished run folder."""

    path: Path

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """See `Samples.frame`.

        Raises:
            UserError: the file cannot be read.
        """
        filters = [(name, "=", value) for name, value in equal.items()] or None
        try:
            found: pd.DataFrame = parquet.read_table(self.path, columns=columns, filters=filters).to_pandas()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path} is damaged: put back a copy of it, or make the run again") from error
        return found

    @contextmanager
    def stored(self) -> Iterator[Path]:
        """See `Samples.stored`.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            yield self.path
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path} is damaged: put back a copy of it, or make the run again") from error
