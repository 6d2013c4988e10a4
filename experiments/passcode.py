"""Claim: a passcode in an erased block can be read from the mementos after it (the paper's Figure 10 and Table 4).

    python -m experiments.passcode --model CHECKPOINT --traces FILE --keep-delimiters
    python -m experiments.passcode --rehearse

The first command plants random five-digit codes in the second block of each trace, as the paper does with AIME25
traces (arXiv 2604.09852, section 6.2.2). It probes concatenated keys and values at the memento before the block, the
block's own memento and the memento one block later, at the fourth layer, the last, and both. It adds two measures
that the paper lacks: the same sites over a sealed cache, and bits beyond the retained text.

The second command needs no memento checkpoint. It runs the same code on a random model with the real Qwen tokenizer
and the real traces in the folder that GHOSTTRACE_DATA names, which only checks that every step works, and on
`toy-open`, where the five note digits of a block are the passcode. Both commands write
`experiments/results/passcode.parquet` and `figures/passcode.{png,svg}`.
"""

import argparse
import os
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedConfig

from experiments.aime24 import random_checkpoint
from ghosttrace.bench.ledger import ledger_task
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import load_traces
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.probing.planting import plant_secrets
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe
from ghosttrace.probing.secrets import digit_codes
from ghosttrace.report.ablation.table import percent
from ghosttrace.runs.figures import write_figure
from ghosttrace.runs.folder import is_finished
from ghosttrace.runs.progress import Progress

ROOT = Path(__file__).parent.parent
BLOCK, HOPS = 1, (0, 1)  # block T_2; memento M_1 is hop -1, M_2 hop 0, M_3 hop 1
TRACES = ("memento_blog_example_response.json", "memento_blog_example_code.json")
PAPER = {  # accuracy in %, of Qwen3-8B and 32B, by hop and layer: the fourth, the last, both
    (-1, "both"): (10.8, 10.7),
    (0, "fourth"): (51.6, 53.8),
    (0, "last"): (64.9, 68.7),
    (0, "both"): (65.2, 71.2),
    (1, "fourth"): (10.8, 12.8),
    (1, "last"): (26.5, 22.4),
    (1, "both"): (26.7, 23.0),
}
COLOURS = {-1: "#888888", 0: "#0072b2", 1: "#d55e00"}
NAMES = {-1: "M₁, before the code (causal control)", 0: "M₂, direct", 1: "M₃, one block later"}


def layers_of(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the indices of the fourth and the last layer, or of all layers if there are at most four."""
    count = CacheGeometry.from_config(config).layers
    return (3, count - 1) if count > 4 else tuple(range(count))


def passcodes(checkpoint: Checkpoint, traces: list[str], samples: int, seed: int) -> Task:
    """Plant `samples` codes in each base trace; traces end after M_3."""
    return plant_secrets(load_traces(checkpoint, traces), checkpoint, digit_codes(5), BLOCK, samples, max(HOPS), seed)


def measure(
    checkpoint: Checkpoint,
    task: Task,
    folder: Path,
    pool: Literal["all", "mean"] = "mean",
    within_traces: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Probe a task, resuming an interrupted run, and return its results as means over the digits.

    Args:
        checkpoint: The model.
        task: Traces with planted codes.
        folder: Run folder.
        pool: `mean` averages states over the tokens of a memento, because mementos differ in length. `all`
            concatenates them, for mementos of equal length as in `ledger`.
        within_traces: Split codes within base traces instead of splitting base traces.
        progress: Called with (description, steps done, total steps).
    """
    if not is_finished(folder):
        begun = (folder / "run.json").exists()
        probe(
            checkpoint,
            task=task,
            hops=HOPS,
            layers=layers_of(checkpoint.model.config),
            kv=("kv",),
            joint=True,
            pool=pool,
            within_traces=within_traces,
            out=None if begun else folder,
            resume=folder if begun else None,
            progress=progress,
        )
    found = digit_rows(ProbeResult.open(folder))
    return found.assign(model=Path(checkpoint.name).name, layers=len(layers_of(checkpoint.model.config)))


def digit_rows(result: ProbeResult) -> pd.DataFrame:
    """Return the results of a run that are means over all digits."""
    results = result.results
    return results[results["target"].isin(["digit-*", "note-*"])]


def accuracies(results: pd.DataFrame, hop: int, layer: str, probe: str = "linear") -> dict[str, dict[str, Any]]:
    """Return the rows of one site by condition; M_1 has no sealed row, because both caches are equal there."""
    rows = results[(results["hop"] == hop) & (results["layer"] == layer) & (results["probe"] == probe)]
    rows = rows[rows["carrier"].str.startswith("memento") & rows["condition"].isin(["open", "sealed", "causal"])]
    records = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    return {row["condition"].replace("causal", "open"): row for row in records}


def comparison(results: pd.DataFrame, title: str) -> Table:
    """Return a table of one model's results beside the paper's Table 4."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        caption="Accuracy of digits in %, chance 10, with 95 % intervals; MLP: at the site with the best validation "
        "score of the linear probe. Paper: MLP on Qwen3-8B and 32B, without sealed cache and text baseline.",
    )
    table.add_column("memento", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for name in ("8B, 32B", "this run", "sealed", "bits beyond text"):
        table.add_column(name, justify="right", no_wrap=True)
    single = sorted({layer for layer in results["layer"] if layer.isdigit()}, key=int)
    spelled = {single[-1]: "last", "joint": "both"} | ({"3": "fourth"} if single[-1] != "3" else {})
    for hop, name in ((-1, "M_1"), (0, "M_2"), (1, "M_3")):
        for layer in (*single, "joint"):
            for kind in ("linear", "mlp"):
                found = accuracies(results, hop, layer, kind)
                if not found:
                    continue
                paper = PAPER.get((hop, spelled.get(layer, "")), ())
                site = f"{layer}, MLP" if kind == "mlp" else layer
                table.add_row(name, site, ", ".join(map(str, paper)), *_cells(found))
    return table


def _cells(found: dict[str, dict[str, Any]]) -> list[str]:
    measured, sealed = found["open"], found.get("sealed")
    return [
        percent(measured["accuracy"], measured["accuracy_low"], measured["accuracy_high"]),
        f"{100 * sealed['accuracy']:.1f}" if sealed else "",
        f"{measured['bits']:+.3f}",
    ]


def draw(results: pd.DataFrame) -> Figure:
    """Draw accuracy by layer and hop, open and sealed, one panel per model."""
    models = list(dict.fromkeys(results["model"]))
    figure = Figure(figsize=(4.4 * len(models), 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, model in zip(panels, models, strict=True):
        _panel(axis, results[results["model"] == model], model)
    panels[0].set_ylabel("accuracy of digits, linear probe")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
    )
    return figure


def _panel(axis: Axes, results: pd.DataFrame, model: str) -> None:
    layers = sorted({layer for layer in results["layer"] if layer.isdigit()}, key=int)
    sites = [*layers, "joint"]
    for hop, colour in COLOURS.items():
        for condition, style in (("open", "o-"), ("sealed", "x--")):
            found = {layer: accuracies(results, hop, layer).get(condition) for layer in sites}
            rows = [(at, row) for at, row in enumerate(found.values()) if row]
            if not rows:
                continue
            value = [row["accuracy"] for _, row in rows]
            errors = [
                [row["accuracy"] - row["accuracy_low"] for _, row in rows],
                [row["accuracy_high"] - row["accuracy"] for _, row in rows],
            ]
            label = NAMES[hop] if condition == "open" else f"{NAMES[hop].split(',')[0]}, sealed"
            axis.errorbar([at for at, _ in rows], value, errors, fmt=style, color=colour, capsize=2, lw=1, label=label)
    axis.axhline(0.1, color="black", lw=0.8, ls=":", label="chance")
    axis.set(title=model, xlabel="layer", xticks=range(len(sites)), xticklabels=sites, ylim=(0, 1.05))
    axis.spines[["top", "right"]].set_visible(False)


def rehearse(folder: Path, data: Path, samples: int, problems: int) -> pd.DataFrame:
    """Measure a random Qwen3 on the real traces and `toy-open` on its note digits."""
    model = folder / "random-qwen3"
    if not model.exists():
        partial = folder / "model.part"  # renamed when complete
        random_checkpoint(partial, data / "tokenizers" / "qwen3")
        partial.replace(model)
    random, toy = load(str(model)), load("toy-open")
    task = passcodes(random, [str(data / "traces" / name) for name in TRACES], samples, seed=0)
    parts = [measure(random, task, folder / "random", within_traces=True)]
    parts.append(measure(toy, ledger_task(toy, problems, block=BLOCK, level=0), folder / "toy", "all"))
    return pd.concat(parts, ignore_index=True)


def record(results: pd.DataFrame) -> None:
    """Write the results and the figure to the repository."""
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    results.to_parquet(ROOT / "experiments" / "results" / "passcode.parquet", index=False)
    figure = draw(results)
    write_figure(ROOT, "passcode", figure)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Run the command line and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id of a memento checkpoint")
    parser.add_argument("--traces", nargs="+", help="files or run folders with base traces")
    parser.add_argument("--rehearse", action="store_true", help="use a random model and toy-open")
    parser.add_argument("--out", type=Path, default=Path("runs/passcode"))
    parser.add_argument("--samples", type=int, default=500, help="codes per base trace")
    parser.add_argument("--problems", type=int, default=4000, help="number of ledger problems, with --rehearse")
    parser.add_argument(
        "--within-traces",
        action="store_true",
        help="split codes within traces, as the paper does; required below 34 traces",
    )
    parser.add_argument("--keep-delimiters", dest="mask_delimiters", action="store_false", default=None)
    parser.add_argument("--mask-delimiters", dest="mask_delimiters", action="store_true", default=None)
    options = parser.parse_args(arguments)
    if options.rehearse == (options.model is not None) or (options.model is None) != (options.traces is None):
        parser.error("set either both --model CHECKPOINT and --traces FILE, or --rehearse")
    if options.rehearse:
        data = os.environ.get("GHOSTTRACE_DATA")
        if data is None:
            parser.error("--rehearse needs GHOSTTRACE_DATA to name the folder with traces/ and tokenizers/")
        results = rehearse(options.out, Path(data), options.samples, options.problems)
    else:
        checkpoint = load(options.model, mask_delimiters=options.mask_delimiters)
        task = passcodes(checkpoint, options.traces, options.samples, seed=0)
        results = measure(checkpoint, task, options.out / "run", within_traces=options.within_traces)
    for name, rows in results.groupby("model", sort=False):
        Console().print(comparison(rows, f"{name} beside the paper's Table 4"))
    return results


if __name__ == "__main__":
    record(main())
