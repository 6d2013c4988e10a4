"""The claim: a passcode in an erased block can be read from the mementos behind it (the paper's Figure 10, Table 4).

    python -m experiments.passcode --model CHECKPOINT --traces FILE --keep-delimiters
    python -m experiments.passcode --rehearse

The first line plants random five-digit codes in the second block of each trace, as the paper does with AIME25
traces (arXiv 2604.09852, section 6.2.2), and probes keys and values, side by side, at the mementos before it,
behind it, and one block later, at the fourth layer, the last, and both. What the paper lacks stands beside:
the same sites over a sealed cache, and bits beyond the retained text.

The second runs the same code where no memento checkpoint is needed: on a random model with the real Qwen
tokenizer and the real traces in the folder that GHOSTTRACE_DATA names, whose figures prove that every step
holds and nothing else; and on `toy-open`, where the five note digits of a block are the passcode. It writes
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
from ghosttrace.runs.folder import is_finished

ROOT = Path(__file__).parent.parent
BLOCK, HOPS = 1, (0, 1)  # T_2; M_1 is hop -1, M_2 hop 0, M_3 hop 1
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


def layers_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The fourth and the last; all of them where there are no more than four."""
    count = CacheGeometry.from_config(checkpoint.model.config).layers
    return (3, count - 1) if count > 4 else tuple(range(count))


def passcodes(checkpoint: Checkpoint, traces: list[str], samples: int, seed: int) -> Task:
    """Traces with a code each, so many of every base trace; what follows M_3 is cut off."""
    return plant_secrets(load_traces(checkpoint, traces), checkpoint, digit_codes(5), BLOCK, samples, max(HOPS), seed)


def measure(
    checkpoint: Checkpoint, task: Task, folder: Path, pool: Literal["all", "mean"] = "mean", within_traces: bool = False
) -> pd.DataFrame:
    """Probe a task, or go on where that stopped, and return its results, the mean over the digits.

    Keys and values are averaged over the tokens of a memento, as mementos differ in length; those of
    `ledger` do not, and stand side by side (`pool="all"`).
    """
    if not is_finished(folder):
        begun = (folder / "run.json").exists()
        probe(
            checkpoint,
            task=task,
            hops=HOPS,
            layers=layers_of(checkpoint),
            kv=("kv",),
            joint=True,
            pool=pool,
            within_traces=within_traces,
            out=None if begun else folder,
            resume=folder if begun else None,
        )
    found = ProbeResult.open(folder).results
    found = found[found["target"].isin(["digit-*", "note-*"])]
    return found.assign(model=Path(checkpoint.name).name, layers=len(layers_of(checkpoint)))


def accuracies(results: pd.DataFrame, hop: int, layer: str, probe: str = "linear") -> dict[str, dict[str, Any]]:
    """The rows of one site by condition; M_1 knows no sealed cache, as it is the same there."""
    rows = results[(results["hop"] == hop) & (results["layer"] == layer) & (results["probe"] == probe)]
    rows = rows[rows["carrier"].str.startswith("memento") & rows["condition"].isin(["open", "sealed", "causal"])]
    found = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    return {row["condition"].replace("causal", "open"): row for row in found}


def comparison(results: pd.DataFrame, title: str) -> Table:
    """One model beside the paper's Table 4."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        caption="right digits in %, chance 10, with 95 % intervals; an MLP at the site where the linear probe did best "
        "on validation. Paper: an MLP on Qwen3-8B and 32B, no sealed cache, no text baseline.",
    )
    table.add_column("memento", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for name in ("8B, 32B", "here", "sealed", "bits beyond text"):
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
    here, sealed = found["open"], found.get("sealed")
    return [
        percent(here["accuracy"], here["accuracy_low"], here["accuracy_high"]),
        f"{100 * sealed['accuracy']:.1f}" if sealed else "",
        f"{here['bits']:+.3f}",
    ]


def draw(results: pd.DataFrame) -> Figure:
    """Accuracy by layer and hop, one panel a model, a sealed cache beside."""
    models = list(dict.fromkeys(results["model"]))
    figure = Figure(figsize=(4.4 * len(models), 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, model in zip(panels, models, strict=True):
        _panel(axis, results[results["model"] == model], model)
    panels[0].set_ylabel("digits right, linear probe")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
    )
    return figure


def _panel(axis: Axes, results: pd.DataFrame, model: str) -> None:
    layers = sorted({layer for layer in results["layer"] if layer.isdigit()}, key=int)
    places = [*layers, "joint"]
    for hop, colour in COLOURS.items():
        for condition, style in (("open", "o-"), ("sealed", "x--")):
            found = {layer: accuracies(results, hop, layer).get(condition) for layer in places}
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
    axis.set(title=model, xlabel="layer", xticks=range(len(places)), xticklabels=places, ylim=(0, 1.05))
    axis.spines[["top", "right"]].set_visible(False)


def rehearse(folder: Path, data: Path, samples: int, problems: int) -> pd.DataFrame:
    """A random Qwen3 on the real traces, and `toy-open` on its notes."""
    model = folder / "random-qwen3"
    if not model.exists():
        partial = folder / "model.part"  # until it is whole
        random_checkpoint(partial, data / "tokenizers" / "qwen3")
        partial.replace(model)
    random, toy = load(str(model)), load("toy-open")
    task = passcodes(random, [str(data / "traces" / name) for name in TRACES], samples, seed=0)
    parts = [measure(random, task, folder / "random", within_traces=True)]
    parts.append(measure(toy, ledger_task(toy, problems, block=BLOCK, level=0), folder / "toy", "all"))
    return pd.concat(parts, ignore_index=True)


def record(results: pd.DataFrame) -> None:
    """The results and the figure, where the project keeps them."""
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    results.to_parquet(ROOT / "experiments" / "results" / "passcode.parquet", index=False)
    figure = draw(results)
    for kind in ("png", "svg"):
        figure.savefig(ROOT / "figures" / f"passcode.{kind}", dpi=150)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """The command line above; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id of a memento checkpoint")
    parser.add_argument("--traces", nargs="+", help="files or run folders with base traces")
    parser.add_argument("--rehearse", action="store_true", help="a random model and toy-open instead")
    parser.add_argument("--out", type=Path, default=Path("runs/passcode"))
    parser.add_argument("--samples", type=int, default=500, help="codes a trace")
    parser.add_argument("--problems", type=int, default=4000, help="problems of ledger, with --rehearse")
    parser.add_argument(
        "--within-traces", action="store_true", help="as the paper's sets: fewer than 34 traces must be"
    )
    parser.add_argument("--keep-delimiters", dest="mask_delimiters", action="store_false", default=None)
    parser.add_argument("--mask-delimiters", dest="mask_delimiters", action="store_true", default=None)
    told = parser.parse_args(arguments)
    if told.rehearse == (told.model is not None) or (told.model is None) != (told.traces is None):
        parser.error("give --model CHECKPOINT and --traces FILE, or --rehearse")
    if told.rehearse:
        data = os.environ.get("GHOSTTRACE_DATA")
        if data is None:
            parser.error("--rehearse needs GHOSTTRACE_DATA to name the folder with traces/ and tokenizers/")
        results = rehearse(told.out, Path(data), told.samples, told.problems)
    else:
        checkpoint = load(told.model, mask_delimiters=told.mask_delimiters)
        task = passcodes(checkpoint, told.traces, told.samples, seed=0)
        results = measure(checkpoint, task, told.out / "run", within_traces=told.within_traces)
    for name, rows in results.groupby("model", sort=False):
        Console().print(comparison(rows, f"{name}, beside the paper's Table 4"))
    return results


if __name__ == "__main__":
    record(main())
