"""Table and page of `experiments/reproduce_paper.py`: the plan, and the paper's numbers beside those of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from experiments import passcode
from experiments.aime24 import PAPER as PAPER_ACCURACY
from experiments.markdown import interval, markdown_table, number
from experiments.reproduce_plan import DECODING_UTILISATION, TRAINING_UTILISATION, Gpu, StepPlan
from experiments.reproduce_scale import PAPER
from experiments.reproduce_steps import Chain, Step
from ghosttrace.ablation.result import AblationResult
from ghosttrace.probing.result import ProbeResult
from ghosttrace.report.tables import results_table
from ghosttrace.runs.atomic import commit_file
from ghosttrace.runs.folder import read_json

SOURCES = {"memento": "§6.2.1, 64 repetitions"} | dict.fromkeys(
    ("restart", "restart-renumbered", "restart-bare"), "§6.2.1, 8 repetitions"
)
"""Where the paper has the number of an arm; it describes one restart, of which three arms are readings."""
MEMENTOS = {-1: "M₁, before the passcode exists", 0: "M₂, whose block has it", 1: "M₃, one block later"}
NOTHING = (
    "**This is a rehearsal: its figures mean nothing.** The model was trained for a few steps on generated word "
    "problems in place of OpenMementos. Sums stand in for AIME24 and AIME25, and a harness wrote all blocks and "
    "mementos."
)


def plan_table(model: str, planned: list[StepPlan], gpu: Gpu) -> Table:
    """Return the table of a plan, 80 columns wide."""
    table = results_table(
        title=f"{model} on {planned[0].gpus} x {gpu.name}, estimated",
        caption=f"At {100 * TRAINING_UTILISATION:.0f} % of the peak operations and {100 * DECODING_UTILISATION:.0f} % "
        "of the peak bandwidth. GB: memory per GPU. Only training uses more than one GPU.",
    )
    table.add_column("step", no_wrap=True)
    table.add_column("work")
    for name in ("hours", "GPU-hours", "GB", "disk, GB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in planned:
        table.add_row(row.step, row.work, *plan_cells(row.hours, row.gpu_hours, row.memory, row.disk, row.fits))
    hours, gpu_hours, disk = (sum(getattr(row, name) for row in planned) for name in ("hours", "gpu_hours", "disk"))
    table.add_section()
    table.add_row("all", "", f"{hours:,.1f}", f"{gpu_hours:,.1f}", "", f"{disk / 1e9:,.0f}")
    return table


def plan_cells(hours: float, gpu_hours: float, memory: float, disk: float, fits: bool) -> list[str]:
    """Return the figures of one step as text."""
    held = f"{memory / 1e9:,.0f}"
    return [f"{hours:,.1f}", f"{gpu_hours:,.1f}", held if fits else f"{held}: too many", f"{disk / 1e9:,.0f}"]


def write_page(chain: Chain, done: list[Step]) -> Path:
    """Write `page.md` of a finished chain, and return its path."""
    ablation, probes = AblationResult.open(chain.out / "ablation"), ProbeResult.open(chain.out / "probes")
    failures = [f"- ablation: {failure}" for failure in ablation.failures]
    failures += [f"- probes: {failure}" for failure in probes.failures]
    title = "Rehearsal of the paper's chain" if chain.rehearsal else f"The paper's chain, from {chain.model}"
    parts = [
        f"# {title}",
        *([NOTHING] if chain.rehearsal else []),
        "Paper: Kontonis et al., arXiv 2604.09852; its numbers are of Qwen3-8B unless a column says otherwise. "
        "Intervals are 95 %.",
        *(["**Invalid**: controls failed, so do not rely on these figures.", "\n".join(failures)] if failures else []),
        "## Training",
        training_table(chain),
        "## Restart ablation on AIME24, pass@1 in %",
        ablation_table(ablation.results),
        "The paper has 64 repetitions of normal decoding and 8 of restart, unpaired. Here both have the same number "
        "and the same random draws, and problems are resampled. The paper's text describes `restart-renumbered`, a "
        "fresh prefill of prompt and mementos; its vLLM overlay does `restart-bare`, without the block's delimiters; "
        "`restart` keeps the original positions. `placebo` recomputes with the blocks visible: what numerics alone do.",
        "## Passcodes, accuracy of a digit in %",
        probe_table(passcode.digit_rows(probes)),
        "Chance is 10. The paper's probe is an MLP. Here a linear probe is at every site, and an MLP at the site of "
        "each memento with the best validation score. A sealed cache holds nothing of the block beyond the text.",
        "## Commands",
        "\n".join(f"- {step.name}: `{step.command}`" for step in done),
        "## Provenance",
        provenance_list(ablation.configuration),
    ]
    path = chain.out / "page.md"
    partial = path.with_suffix(".part")
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    commit_file(partial, path)
    return path


def training_table(chain: Chain) -> str:
    """Return the settings of both stages beside the paper's, and the last loss."""
    rows = []
    for stage in ("full", "memento"):
        folder = chain.out / f"sft-{stage}"
        settings = read_json(folder / "run.json", "arguments")["arguments"]
        examples, summary = read_json(folder / "examples.json"), read_json(folder / "summary.json")
        last = summary["results"][0]
        batch = max(1, chain.gpus) * settings["gradient_accumulation_steps"] * settings["per_device_train_batch_size"]
        found = {
            "rows": (f"{PAPER.rows:,}", f"{examples['used']:,}"),
            "longest row, tokens": (f"{PAPER.max_length:,}", f"{settings['max_length']:,}"),
            "epochs": (str(PAPER.epochs), number(last["epoch"], 1)),
            "rows per step": (str(PAPER.batch), str(batch)),
            "learning rate": (f"{PAPER.learning_rate:g}", f"{settings['learning_rate']:g}"),
            "steps": ("", str(summary["steps"])),
            "last loss": ("", number(last["loss"], 3)),
        }
        rows += [[stage, name, paper, "§4" if paper else "", ours] for name, (paper, ours) in found.items()]
    return markdown_table(["stage", "", "paper", "source", "this run"], rows)


def ablation_table(results: pd.DataFrame) -> str:
    """Return accuracy and paired drop of each arm beside the paper's."""
    rows = []
    for _, row in results.iterrows():
        arm, paper, drop = row["arm"], "", ""
        if arm in SOURCES:
            published = PAPER_ACCURACY["memento" if arm == "memento" else "restart"]
            paper = f"{published:.1f}"
            drop = "" if arm == "memento" else f"{published - PAPER_ACCURACY['memento']:+.1f}"
        ours = "" if arm == "memento" else percents(row, "effect")
        cells = [paper, SOURCES.get(arm, ""), percents(row, "accuracy"), drop, ours]
        rows.append([f"`{arm}`", *cells, number(row["blocks"], 1)])
    header = ["arm", "paper", "source", "this run", "drop, paper", "drop, this run", "blocks per response"]
    return markdown_table(header, rows)


def probe_table(results: pd.DataFrame) -> str:
    """Return the accuracy at each memento and layer beside the paper's Table 4."""
    layers = sorted({layer for layer in results["layer"] if layer.isdigit()}, key=int)
    sites = {"fourth": "3", "last": layers[-1], "both": "joint"}
    rows = []
    for hop, memento in MEMENTOS.items():
        for layer, site in sites.items():
            published = passcode.PAPER.get((hop, layer))
            linear, mlp = (passcode.accuracies(results, hop, site, kind) for kind in ("linear", "mlp"))
            paper = ["", "", ""] if published is None else [*(f"{value:.1f}" for value in published), "Table 4"]
            ours = [percents(found["open"], "accuracy") if found else "" for found in (linear, mlp)]
            sealed = percents(linear["sealed"], "accuracy") if "sealed" in linear else ""
            rows.append([memento, layer, *paper, *ours, sealed])
    header = ["memento", "layers", "paper, 8B", "paper, 32B", "source", "linear, this run", "MLP, this run", "sealed"]
    return markdown_table(header, rows)


def percents(row: Mapping[str, Any] | pd.Series, name: str) -> str:
    """Return an estimate with its interval in percent."""
    return interval((100 * row[f"{name}{end}"] for end in ("", "_low", "_high")), 1)


def provenance_list(configuration: Mapping[str, Any]) -> str:
    """Return the hash of the trained weights, the problems and the versions as a list."""
    entries = [("weights, sha256", configuration["sha256"]["model"])]
    entries += [(name, bench["origin"]) for name, bench in configuration["benches"].items()]
    entries += list(configuration["versions"].items())
    return "\n".join(f"- {name}: {value}" for name, value in entries)
