"""Base class of results: a run returns the same object that its finished folder is opened as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from ghosttrace.errors import UserError
from ghosttrace.runs.folder import CALL_KEY, is_finished, read_configuration, read_json
from ghosttrace.runs.samples import Samples, StoredSamples


@contextmanager
def reading_run(folder: Path | None) -> Iterator[None]:
    """Report what a damaged or edited run.json or summary.json lacks as invalid input.

    Raises:
        UserError: the block could not find or use a value of these files.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UserError(
            f"{folder} is not what this version writes ({type(error).__name__}: {error}): restore copies of its "
            "run.json and summary.json, or repeat the run"
        ) from error


@dataclass(frozen=True, eq=False, repr=False)
class RunResult(ABC):
    """Result of a run.

    Two results are equal if configuration, summary and samples are equal; how a call from Python was spelled does not
    count.

    Attributes:
        configuration: everything that determines the run; the content of run.json.
        summary: the findings; the content of summary.json.
        source: reader of the samples.
        folder: the run folder; None if the run was kept in memory.
    """

    command: ClassVar[str]
    required_summary_keys: ClassVar[tuple[str, ...]] = ("valid", "failures", "results")  # of summary.json
    required_result_columns: ClassVar[tuple[str, ...]] = ()  # of each row of `results`, added since the first version
    configuration: Mapping[str, Any]
    summary: Mapping[str, Any]
    source: Samples
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a finished run folder.

        Raises:
            UserError: the folder is not a finished run of this command.
        """
        configuration = read_configuration(folder, cls.command)
        if not is_finished(folder):
            raise UserError(f"{folder} is unfinished: continue with ghosttrace {cls.command} --resume {folder}")
        summary = read_json(folder / "summary.json", *cls.required_summary_keys)
        with reading_run(folder):
            missing = any(set(cls.required_result_columns) - row.keys() for row in summary["results"])
        if missing or not isinstance(configuration.get("arms", {}), dict):
            raise UserError(f"{folder} is not what this version writes: repeat the run")
        return cls(configuration, summary, StoredSamples(folder / "samples.parquet"), folder)

    @cached_property
    def results(self) -> pd.DataFrame:
        """Table of results, one row per finding; the columns depend on the command."""
        return pd.DataFrame(self.summary["results"])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Table with one row per sample, trace or fitted probe; the columns depend on the command."""
        return self.source.frame()

    @property
    def failures(self) -> tuple[str, ...]:
        """Descriptions of the controls that failed."""
        return tuple(self.summary["failures"])

    @property
    def valid(self) -> bool:
        """Whether every control passed; if False, the results support no conclusion."""
        return bool(self.summary["valid"])

    @property
    @abstractmethod
    def findings(self) -> list[str]:
        """What the run found and whether to trust it, in sentences; the command prints the same."""

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return the functions that draw the figures, by name."""
        return {}

    def figure(self, name: str) -> Figure:
        """Draw one figure of the run.

        Args:
            name: a key of `figures()`.

        Raises:
            UserError: there is no figure of this name.
        """
        known = self.figures()
        if name not in known:
            raise UserError(f"no figure {name!r}: this run has {', '.join(known) or 'no figures'}")
        return known[name]()

    @abstractmethod
    def page(self) -> str:
        """Return the report as one HTML page."""

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report as a self-contained HTML page and return its path.

        Args:
            path: output file; report.html in the run folder by default.

        Raises:
            UserError: the run has no folder and no path is given, or the page cannot be written.
        """
        if path is None and self.folder is None:
            raise UserError("this run was kept in memory: give report a path, or repeat the run with out=FOLDER")
        output = Path(path) if path is not None else self.folder / "report.html"  # type: ignore[operator]
        with reading_run(self.folder):
            text = self.page()
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{output} cannot be written ({error.strerror}): free disk space or change the permissions"
            ) from error
        return output

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        configurations = [{**run.configuration, CALL_KEY: None} for run in (self, other)]
        same = configurations[0] == configurations[1] and self.summary == other.summary
        return same and self.samples.equals(other.samples)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        state = "valid" if self.valid else "INVALID"
        location = f", {self.folder}" if self.folder else ""
        return f"<{type(self).__name__} of {self.configuration['model']}: {len(self.results)} rows, {state}{location}>"

    def _repr_html_(self) -> str:
        """Return the verdict on the controls and the table of results as HTML, for notebooks."""
        if self.valid:
            state = "<p>All controls passed.</p>"
        else:
            state = f"<p><b>INVALID:</b> {escape('; '.join(self.failures))}</p>"
        return f"{state}{self.results.to_html(max_rows=40, index=False)}"
