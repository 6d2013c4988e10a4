"""The result of a measurement: the same object from the run itself and from its finished folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.errors import UserError
from ghosttrace.runs.folder import is_finished, read_configuration, read_json
from ghosttrace.runs.samples import Samples, StoredSamples


@dataclass(frozen=True, eq=False, repr=False)
class RunResult(ABC):
    """What a run measured. Two results are equal if configuration, summary and samples are.

    Attributes:
        configuration: everything that decides the run, as run.json holds it.
        summary: what was found, as summary.json holds it.
        source: where the samples are read from.
        folder: of the run; None if it was kept in memory.
    """

    command: ClassVar[str]
    required_summary_keys: ClassVar[tuple[str, ...]] = ("valid", "failures", "results")  # in summary.json
    required_result_columns: ClassVar[tuple[str, ...]] = ()  # in each of its results, beside what every version wrote
    configuration: Mapping[str, Any]
    summary: Mapping[str, Any]
    source: Samples
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The result of a finished run folder.

        Raises:
            UserError: the folder is no finished run of this command.
        """
        configuration = read_configuration(folder, cls.command)
        if not is_finished(folder):
            raise UserError(f"{folder} is unfinished: go on with it with ghosttrace {cls.command} --resume {folder}")
        summary = read_json(folder / "summary.json", *cls.required_summary_keys)
        first = next(iter(summary["results"]), dict.fromkeys(cls.required_result_columns))
        if set(cls.required_result_columns) - first.keys() or not isinstance(configuration.get("arms", {}), dict):
            raise UserError(f"{folder} is not what this version writes: make the run again")
        return cls(configuration, summary, StoredSamples(folder / "samples.parquet"), folder)

    @cached_property
    def results(self) -> pd.DataFrame:
        """What was found, one row per finding; the columns depend on the command."""
        return pd.DataFrame(self.summary["results"])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per sample (or trace, or fitted probe); the columns depend on the command."""
        return self.source.frame()

    @property
    def failures(self) -> tuple[str, ...]:
        """The controls that did not hold, in words."""
        return tuple(self.summary["failures"])

    @property
    def valid(self) -> bool:
        """Whether every control held; if not, no conclusion may be drawn from the results."""
        return bool(self.summary["valid"])

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """What draws each figure, by name."""
        return {}

    def figure(self, name: str) -> Figure:
        """One figure of the run.

        Raises:
            UserError: there is no figure of this name.
        """
        known = self.figures()
        if name not in known:
            raise UserError(f"no figure {name!r}: this run has {', '.join(known) or 'none'}")
        return known[name]()

    @abstractmethod
    def page(self) -> str:
        """The report as one HTML page."""

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, one HTML page that needs no other file.

        Args:
            path: where to; report.html in the run's folder by default.

        Raises:
            UserError: the run has no folder and no path is given, or the page cannot be written.
        """
        if path is None and self.folder is None:
            raise UserError("this run was kept in memory: give report a path, or run it with out=FOLDER")
        page = Path(path) if path is not None else self.folder / "report.html"  # type: ignore[operator]
        text = self.page()
        try:
            page.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{page} cannot be written ({error.strerror}): make room or rights") from error
        return page

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        same = self.configuration == other.configuration and self.summary == other.summary
        return same and self.samples.equals(other.samples)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        state = "valid" if self.valid else "INVALID"
        where = f", {self.folder}" if self.folder else ""
        return f"<{type(self).__name__} of {self.configuration['model']}: {len(self.results)} rows, {state}{where}>"

    def _repr_html_(self) -> str:
        """The verdict on the controls and the table of results, for notebooks."""
        if self.valid:
            state = "<p>All controls held.</p>"
        else:
            state = f"<p><b>INVALID:</b> {escape('; '.join(self.failures))}</p>"
        return f"{state}{self.results.to_html(max_rows=40, index=False)}"
