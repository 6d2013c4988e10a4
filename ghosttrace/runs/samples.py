"""Readers of a run's samples, from its records or from its `samples.parquet`."""

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
    """Interface of readers of a run's samples."""

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """Return the samples as a data frame, in the order of the run's plan.

        Args:
            columns: names of the columns to return; all columns if None.
            equal: values of key columns, such as `arm="restart"`; only rows with these values are returned.
        """

    def stored(self) -> AbstractContextManager[Path]:
        """Return a context manager for a Parquet file of the samples, to be read in small batches."""


@dataclass(frozen=True)
class RecordedSamples:
    """Reader of the samples of a run in memory, or of a run that has not written samples.parquet yet."""

    records: Records
    order: Sequence[RecordKey]

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """See `Samples.frame`."""
        names = self.records.layout.key
        filters = {names.index(name): value for name, value in equal.items()}
        keys = [key for key in self.order if all(key[number] == value for number, value in filters.items())]
        return self.records.frame(keys, columns)

    @contextmanager
    def stored(self) -> Iterator[Path]:
        """See `Samples.stored`; the file is temporary and deleted on exit."""
        with tempfile.TemporaryDirectory(prefix="ghosttrace-") as folder:
            path = Path(folder) / "samples.parquet"
            self.records.write(self.order, path)
            yield path


def _unreadable(path: Path) -> UserError:
    """Return the error for a file of samples that is missing or damaged."""
    state = "is damaged" if path.exists() else "is missing, with its run folder moved or deleted"
    return UserError(f"{path} {state}: restore a copy of it, or repeat the run")


@dataclass(frozen=True)
class StoredSamples:
    """Reader of the samples of a finished run folder."""

    path: Path

    def frame(self, columns: Sequence[str] | None = None, **equal: Any) -> pd.DataFrame:
        """See `Samples.frame`.

        Raises:
            UserError: the file cannot be read.
        """
        filters = [(name, "=", value) for name, value in equal.items()] or None
        try:
            frame: pd.DataFrame = parquet.read_table(self.path, columns=columns, filters=filters).to_pandas()
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(self.path) from error
        return frame

    @contextmanager
    def stored(self) -> Iterator[Path]:
        """See `Samples.stored`.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            yield self.path
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(self.path) from error
