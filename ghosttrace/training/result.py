"""Results of training runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.errors import UserError
from ghosttrace.report.training import draw_log, training_findings
from ghosttrace.runs.result import RunResult

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False, repr=False)
class TrainingResult(RunResult):
    """Result of a training run: `log` is the trainer's log, `results` its last row, `load()` the trained model."""

    required_summary_keys: ClassVar[tuple[str, ...]] = ("valid", "steps", "results")
    plotted: ClassVar[str]  # beginning of the columns of the log that the figure `log` shows

    @property
    def log(self) -> pd.DataFrame:
        """The trainer's log, one row per logged step; the same as `samples`."""
        return self.samples

    @property
    def model(self) -> str:
        """Path of the trained model, which every command takes as `--model`."""
        assert self.folder is not None  # training always writes a run folder
        return str(self.folder / "model")

    def load(self) -> "Checkpoint":
        """Load the trained model with its law."""
        from ghosttrace.model.checkpoint import load  # not above: reports are written without torch

        return load(self.model)

    @property
    def failures(self) -> tuple[str, ...]:
        return () if self.valid else ("some weights of the trained model are not finite",)

    @property
    def findings(self) -> list[str]:
        return training_findings(self.summary)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        return {"log": lambda: draw_log(self.log, self.plotted)}

    def page(self) -> str:
        raise UserError("a training run has no report: look at its log, or run ablate on its model")


@dataclass(frozen=True, eq=False, repr=False)
class SftResult(TrainingResult):
    """Result of `sft`."""

    command: ClassVar[str] = "sft"
    plotted: ClassVar[str] = "loss_"


@dataclass(frozen=True, eq=False, repr=False)
class RLResult(TrainingResult):
    """Result of `rl`."""

    command: ClassVar[str] = "rl"
    plotted: ClassVar[str] = "rewards/"

    @cached_property
    def channel(self) -> pd.DataFrame:
        """Measurements of the ghost channel, one row per step and benchmark (`channel_every`).

        Raises:
            UserError: nothing was measured.
        """
        assert self.folder is not None
        path = self.folder / "channel.parquet"
        if not path.exists():
            raise UserError("the channel was not measured in this run: repeat it with channel_every")
        return pd.read_parquet(path)
