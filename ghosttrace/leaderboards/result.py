"""The leaderboard as an object: table, page, and the files of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ghosttrace.errors import UserError
from ghosttrace.leaderboards.columns import SCHEMA
from ghosttrace.leaderboards.join import rows_of
from ghosttrace.leaderboards.measurements import Measurement, measurements
from ghosttrace.report.leaderboard.page import leaderboard_page
from ghosttrace.report.leaderboard.table import leaderboard_findings
from ghosttrace.results import open_run
from ghosttrace.runs.atomic import commit_file, write_text
from ghosttrace.runs.paths import check_path

TABLE_FILE, PAGE_FILE = "leaderboard.parquet", "leaderboard.html"


@dataclass(frozen=True, repr=False)
class Leaderboard:
    """Finished runs side by side.

    Attributes:
        rows: one row per model, law, benchmark and defence (columns: `ghosttrace.leaderboards.columns.SCHEMA`).
        folder: the folder of its files; None if it was not written.
    """

    rows: tuple[Mapping[str, Any], ...]
    folder: Path | None = field(default=None, compare=False)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        frame: pd.DataFrame = self._arrow().to_pandas()
        return frame

    @property
    def findings(self) -> list[str]:
        """What is compared, and which runs are invalid, in sentences; the command prints the same."""
        return leaderboard_findings(self.rows)

    def page(self) -> str:
        """Return the leaderboard as one HTML page."""
        return leaderboard_page(self.rows, self.findings)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page and return its path.

        Args:
            path: output file; leaderboard.html in the leaderboard's folder by default.

        Raises:
            UserError: the leaderboard has no folder and no path is given, or the page cannot be written.
        """
        if path is None and self.folder is None:
            raise UserError("this leaderboard was kept in memory: give report a path, or make it with out=FOLDER")
        output = Path(path) if path is not None else self.folder / PAGE_FILE  # type: ignore[operator]
        write_text(output, self.page())
        return output

    def write(self, folder: str | Path) -> "Leaderboard":
        """Write leaderboard.parquet and leaderboard.html into a folder; those of an earlier leaderboard are replaced.

        Args:
            folder: a new or empty folder, or that of a leaderboard.

        Returns:
            The leaderboard with its folder.

        Raises:
            UserError: the folder holds other files or cannot be written to.
        """
        written = Leaderboard(self.rows, checked_folder(Path(folder)))
        assert written.folder is not None
        try:
            written.folder.mkdir(parents=True, exist_ok=True)
            partial = written.folder / f"{TABLE_FILE}.part"
            parquet.write_table(self._arrow(), partial)
            commit_file(partial, written.folder / TABLE_FILE)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): give --out another folder") from error
        written.report()
        return written

    def _arrow(self) -> pa.Table:
        return pa.Table.from_pylist([dict(row) for row in self.rows], SCHEMA)

    def __repr__(self) -> str:
        location = f", {self.folder}" if self.folder else ""
        return f"<Leaderboard: {len(self.rows)} rows{location}>"

    def _repr_html_(self) -> str:
        """Return the findings and the table as HTML, for notebooks."""
        table = self.table.dropna(axis="columns", how="all").drop(columns="runs")
        return f"<p>{' '.join(self.findings)}</p>{table.to_html(max_rows=40, index=False, na_rep='')}"


def checked_folder(folder: Path) -> Path:
    """Return a folder into which a leaderboard can be written.

    Raises:
        UserError: the path cannot be used, is no folder, or holds other files than those of a leaderboard.
    """
    check_path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give --out a new folder")
    parts = {f"{name}{end}" for name in (TABLE_FILE, PAGE_FILE) for end in ("", ".part")}
    if folder.exists() and {path.name for path in folder.iterdir()} - parts:
        raise UserError(f"{folder} holds other files: give --out a new folder, or that of a leaderboard")
    return folder


def leaderboard(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Leaderboard:
    """Gather finished runs of `ablate`, `bits` and `audit` into one table.

    Runs of one model (by the hash of its weights), law, benchmark and defence share a row where they measured different
    things (see `ghosttrace.leaderboards.join.join`). Invalid runs are shown without a rank.

    Args:
        runs: folders of finished runs.
        out: folder for leaderboard.parquet and leaderboard.html. None writes nothing.

    Returns:
        The leaderboard.

    Raises:
        UserError: a folder is no finished run of these commands, or is given twice; or see `Leaderboard.write`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ghosttrace import ablate
        >>> with TemporaryDirectory() as folder:
        ...     run = ablate("toy-mixed", "ledger-h1", ["restart"], limit=4, out=folder)
        ...     leaderboard(folder).table[["benchmark", "model", "defence", "accuracy", "effect"]]
           benchmark      model  defence  accuracy  effect
        0  ledger-h1  toy-mixed     none       1.0     NaN
        1  ledger-h1  toy-mixed  restart       0.0    -1.0
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise UserError("no run given: give the folders of finished runs of ablate, bits or audit")
    if out is not None:
        checked_folder(Path(out))
    found: list[Measurement] = []
    seen: set[Path] = set()
    for folder in folders:
        check_path(folder)
        if folder.resolve() in seen:
            raise UserError(f"{folder} is given twice: give each run once")
        seen.add(folder.resolve())
        if not (folder / "run.json").is_file():
            check_no_run(folder)
        found += measurements(open_run(folder), folder.resolve().name)
    board = Leaderboard(tuple(rows_of(found)))
    return board if out is None else board.write(out)


def check_no_run(folder: Path) -> None:
    """Say what a folder without a run.json holds, if it is a leaderboard or holds runs.

    Raises:
        UserError: it is one of these.
    """
    if (folder / TABLE_FILE).exists():
        raise UserError(f"{folder} is a leaderboard and no run: leave it out")
    if folder.is_dir() and any((inside / "run.json").is_file() for inside in folder.iterdir()):
        raise UserError(f"{folder} holds runs and is none itself: give {folder}/*")
