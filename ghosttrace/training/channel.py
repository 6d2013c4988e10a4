"""What training does to the ghost channel: measurements of the policy on fixed problems, step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import Trainer, TrainerCallback

from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.ablation.run import ablate
from ghosttrace.bench import Bench
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.ghost_bits.likelihood import first_measured_index, log2_probabilities
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.runs.atomic import commit_file
from ghosttrace.runs.figures import save_figure
from ghosttrace.stats import ratio_estimate
from ghosttrace.training.examples import TokenKind, token_kinds
from ghosttrace.training.sft import base_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE, FIGURE = "channel.parquet", "channel.png"
TRACES_PER_PASS = 16


def answer_bits(checkpoint: Checkpoint, traces: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the ghost bits at the answer of each trace: log2 p(answer | normal cache) - log2 p(answer | sealed cache).

    The answer is what follows the last memento, an unfinished block included. Under another law than Memento's it is
    all that follows an erasure.

    Args:
        checkpoint: The model and its law.
        traces: Token ids of each trace, prompt and response.

    Returns:
        float64[n], in bits per trace; 0 where nothing was erased.
    """
    found = []
    for begin in range(0, len(traces), TRACES_PER_PASS):
        part = traces[begin : begin + TRACES_PER_PASS]
        opened, sealed = (log2_probabilities(checkpoint, arm, part) for arm in (Memento(), Restart()))
        for ids, first, second in zip(part, opened, sealed, strict=True):
            found.append(float((first - second)[answer_indices(ids, checkpoint.law) - 1].sum()))
    return np.array(found)


def answer_indices(ids: Sequence[int], law: Law) -> np.ndarray:
    """Return the token indices of a trace's answer (see `answer_bits`) that an erasure can have changed, int64[n]."""
    begin = first_measured_index(ids, law)
    indices = np.arange(begin, len(ids))
    if isinstance(law, MementoLaw):
        return indices[token_kinds(ids, law)[begin:] == TokenKind.ANSWER]
    return indices


@dataclass(frozen=True)
class ChannelMeasure:
    """Measurement of a policy on fixed problems: accuracy, cache, drop under `restart` and ghost bits at the answer.

    Attributes:
        benches: The problems.
        checkpoint: Function of a model under training to the checkpoint under the law.
        sampling: Fields of `ghosttrace.Sampling` that replace those of the benchmarks' protocols.
        every: Number of training steps between two measurements.
    """

    benches: tuple[Bench, ...]
    checkpoint: Callable[[Any], Checkpoint]
    sampling: Mapping[str, float | int | None]
    every: int

    @torch.no_grad()
    def __call__(self, model: Any) -> pd.DataFrame:
        """Measure the policy, which is in evaluation mode meanwhile.

        Returns:
            One row per benchmark. `accuracy` (under `memento`), `sealed` (under `restart`), `drop` (their paired
            difference), `content` (the drop less that where the retained text suffices, see
            `ghosttrace.ablation.decomposition`) and `answer_bits` each with `_low` and `_high` (95 %); `peak_kv_tokens`
            and `compression`. What a benchmark does not permit is missing.
        """
        training = model.training
        model.eval()
        checkpoint = self.checkpoint(model)
        run = ablate(checkpoint, self.benches, ("restart",), sampling=self.sampling)
        by_arm = {arm: rows.set_index("bench") for arm, rows in run.results.groupby("arm")}
        content = self._content(run) if checkpoint.other_law is None else {}
        rows = []
        for bench in self.benches:
            opened, sealed = (by_arm[arm].loc[bench.name] for arm in ("memento", "restart"))
            row = {"bench": bench.name, "problems": len(bench.problems)}
            row |= _with_interval("accuracy", opened, "accuracy") | _with_interval("sealed", sealed, "accuracy")
            row |= _with_interval("drop", sealed, "effect") | content.get(bench.name, {})
            row |= self._answer_bits(checkpoint, bench) | _cache(run.samples, bench.name)
            rows.append(row)
        model.train(training)
        return pd.DataFrame(rows)

    def _content(self, run: Any) -> dict[str, dict[str, float]]:
        """Return the component `content` of the benchmarks whose mementos omit a needed value, by name."""
        if not any(bench.condition is not None and bench.condition.omits_needed for bench in self.benches):
            return {}
        table = run.decompose()
        rows = table[(table["component"] == "content") & table["estimate"].notna()].set_index("bench")
        return {name: _with_interval("content", row, "estimate", "low", "high") for name, row in rows.iterrows()}

    def _answer_bits(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, float]:
        if bench.response is None:
            return {}
        traces = [trace.ids for trace in reference_traces(checkpoint, bench)]
        mean = ratio_estimate(answer_bits(checkpoint, traces), np.ones(len(traces)))  # bits are no shares
        return {"answer_bits": mean.value, "answer_bits_low": mean.low, "answer_bits_high": mean.high}


def _with_interval(name: str, row: Any, value: str, low: str = "", high: str = "") -> dict[str, float]:
    columns = {"": value, "_low": low or f"{value}_low", "_high": high or f"{value}_high"}
    return {name + suffix: float(row[column]) for suffix, column in columns.items()}


def _cache(samples: pd.DataFrame, bench: str) -> dict[str, float]:
    """Return the mean peak of the normal cache, and the mean share of tokens that were not held at the peak."""
    rows = samples[(samples["bench"] == bench) & (samples["arm"] == "memento")]
    tokens = rows["prompt_ids"].str.len() + rows["response_tokens"]
    peak = rows["peak_kv_tokens"]
    return {"peak_kv_tokens": float(peak.mean()), "compression": float((1 - peak / tokens).mean())}


@dataclass
class ChannelCallback(TrainerCallback):
    """Trainer callback that measures the channel at the start, every few steps, and at the end.

    The table goes to the run folder after every measurement, and the measurements to the log. A resumed run keeps those
    up to the step at which it goes on. `finish` is called after the training.

    Attributes:
        trainer: The trainer.
        measure: What is measured, and how often.
        folder: The run folder.
    """

    trainer: Any
    measure: ChannelMeasure
    folder: Path
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read what a resumed run has measured, and measure the policy before the first step."""
        self._read(state)
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every few steps."""
        if state.global_step % self.measure.every == 0:
            self._measure(state, control)

    def finish(self) -> None:
        """Measure the trained policy, also after a run that was killed in its last measurement; draw the figure."""
        state = self.trainer.state
        self._read(state)
        self._measure(state, self.trainer.control)
        if state.is_world_process_zero:
            save_figure(channel_figure(self.table), self.folder / FIGURE, "png", dpi=150)

    def _read(self, state: Any) -> None:
        """Read the measurements up to the current step."""
        if (self.folder / FILE).exists():
            table = pd.read_parquet(self.folder / FILE)
            self.table = table[table["step"] <= state.global_step]

    def _measure(self, state: Any, control: Any) -> None:
        """Measure the policy in the main process, unless this step has been measured."""
        step = state.global_step
        if not state.is_world_process_zero or (len(self.table) and (self.table["step"] == step).any()):
            return
        found = self.measure(base_model(self.trainer.accelerator.unwrap_model(self.trainer.model)))
        self.table = pd.concat([self.table, found.assign(step=step)], ignore_index=True)
        partial = self.folder / "channel.part"
        self.table.to_parquet(partial, index=False)
        commit_file(partial, self.folder / FILE)
        due = control.should_log
        for row in found.to_dict("records"):
            bench = row.pop("bench")
            logs = {f"channel/{bench}/{name}": value for name, value in row.items() if value == value}
            Trainer.log(self.trainer, logs)  # TRL's own would take its metrics of this step into the row
        control.should_log = due  # a row in the log counts as the log of this step


def channel_figure(table: pd.DataFrame) -> "Figure":
    """Draw accuracy and ghost bits by step, one panel per benchmark.

    Args:
        table: Content of channel.parquet.
    """
    from matplotlib.figure import Figure

    benches = list(dict.fromkeys(table["bench"]))
    figure = Figure(figsize=(3.4 * len(benches) + 0.6, 5.0), layout="constrained")
    axes = figure.subplots(2, len(benches), squeeze=False, sharex=True, sharey="row")
    curves = (
        (0, "accuracy", "memento: open cache", "#1b6e53", "-", "o"),
        (0, "sealed", "restart: sealed cache", "#b3392f", "--", "s"),
        (1, "answer_bits", "ghost bits at the answer", "#3b5b92", "-", "o"),
    )
    for column, bench in enumerate(benches):
        rows = table[table["bench"] == bench].sort_values("step")
        axes[0, column].set_title(bench, fontsize=10)
        axes[1, column].set_xlabel("step")
        for number, name, label, colour, line, marker in curves:
            if name not in rows:
                continue
            axis, scale = axes[number, column], 1 if name == "answer_bits" else 100
            axis.plot(rows["step"], scale * rows[name], line, marker=marker, color=colour, markersize=4, label=label)
            low, high = (scale * rows[f"{name}{end}"] for end in ("_low", "_high"))
            axis.fill_between(rows["step"], low, high, color=colour, alpha=0.15, linewidth=0)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy, %")
    axes[1, 0].set_ylabel("bits per trace")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
