"""Claim: in the paper's trained toy, mementos after an erased block's own reveal no more about it than the text does.

The paper trains a small model to write running sums of random digits and probes later mementos for the digits of an
erased block (arXiv 2604.09852, appendix A.4.2). It compares the probes with chance, although the retained sums also
predict the digits. Here the toy is retrained, once with loss on all tokens and once with loss on predictable tokens
only. Every probe is compared with the exact posterior given the retained text, so bits are bits beyond the text. The
untrained network is probed as well.

Writes `experiments/results/toy_leakage.parquet` and `figures/toy_leakage.{png,svg}`; resumes an interrupted run.
`python -m experiments.toy_leakage`: about 35 minutes of training and 20 of probing on one core.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cumsum import DIGITS, POLICY, Recipe, checkpoint, cumsum_task, snapshot, text_information, train
from ghosttrace.data.task import Task
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.evidence import NEGLIGIBLE_BITS, ProbeTarget, record, summarise
from ghosttrace.probing.features import StateSelection, extract_features
from ghosttrace.probing.fit_and_score import linear_scores, probe_scores
from ghosttrace.probing.probes import MLP
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import MIN_LOG_POSTERIOR
from ghosttrace.report.looks import GREY, LOOKS
from ghosttrace.runs.figures import write_figure
from ghosttrace.stats import ALPHA, holm

ROOT = Path(__file__).parent.parent
SNAPSHOTS = (0, 200, 400, 800, 1200, 1600, 2000, 2400, 3200, 4000, 4800)
RECIPES = {"all": Recipe("all", 1.0, SNAPSHOTS), "mementos": Recipe("mementos", 0.0, SNAPSHOTS[:8])}
BLOCK, LAST_LAYER = 2, 3  # third block of ten: an earlier memento serves as control, and seven follow its own
SAMPLES, INTERMEDIATE_SAMPLES = 12_000, 6_000  # for trained and untrained models; for snapshots in between
CAUSAL_CARRIER, MEMENTOS = Carrier("memento", -1), tuple(Carrier("memento", hop) for hop in range(8))
DELIMITERS = Carrier("delimiters", 0), Carrier("delimiters", 1)
NEAR_MEMENTOS = MEMENTOS[:2]
MODELS: dict[str, dict[str, Any]] = {
    "all tokens": {"recipe": "all", "step": RECIPES["all"].snapshots[-1]},
    "mementos only": {"recipe": "mementos", "step": RECIPES["mementos"].snapshots[-1]},
    "untrained": {"recipe": "all", "step": 0},
    "untrained, delimiters erased": {"recipe": "all", "step": 0, "delimiters": "erased"},
}
COLOURS = {model: look["color"] for model, look in zip(MODELS, LOOKS, strict=True)}
MARKERS = {model: look["marker"] for model, look in zip(MODELS, LOOKS, strict=True)}
RED, PAPER_HOPS, PAPER_FIRST_LAYER, PAPER_TRAINING = "#b5303c", {1: 0.262, 2: 0.214, 7: 0.13}, 0.131, (0.17, 0.19)


@dataclass(frozen=True)
class Job:
    """The probes of one snapshot with one policy and one kind of cache.

    Attributes:
        recipe, step: The snapshot.
        cache: `open` or `sealed`.
        samples: Number of sequences.
        carriers: Carriers to probe in the last layer.
        full_sweep: Also probe `NEAR_MEMENTOS` in the lower layers, and with an MLP in the last layer.
        delimiters: `kept`, as in training, or `erased` with their block.
    """

    recipe: str
    step: int
    cache: str
    samples: int
    carriers: tuple[Carrier, ...]
    full_sweep: bool = False
    delimiters: str = "kept"

    @property
    def name(self) -> str:
        """Name of its results file."""
        return f"{self.recipe}-{self.step:05d}-{self.cache}-{self.delimiters}"

    @property
    def feature_request(self) -> StateSelection:
        """The states to extract."""
        layers = tuple(range(LAST_LAYER + 1)) if self.full_sweep else (LAST_LAYER,)
        return StateSelection(self.cache, self.carriers, layers)

    @property
    def sites(self) -> list[ProbeSite]:
        """The sites to probe."""
        lower_sites = (
            [ProbeSite(carrier, (layer,), "kv") for carrier in NEAR_MEMENTOS for layer in range(LAST_LAYER)]
            if self.full_sweep
            else []
        )
        return lower_sites + [ProbeSite(carrier, (LAST_LAYER,), "kv") for carrier in self.carriers]


def jobs() -> list[Job]:
    """Return the jobs of the trained models, the untrained one (shared by both recipes) and the snapshots between."""
    first, *_, last = RECIPES["all"].snapshots
    everywhere = (CAUSAL_CARRIER, *MEMENTOS, *DELIMITERS)
    main_jobs = [
        Job("all", last, "open", SAMPLES, everywhere, full_sweep=True),
        Job("all", last, "sealed", SAMPLES, MEMENTOS),
        Job("all", first, "open", SAMPLES, everywhere, full_sweep=True),
        Job("all", first, "open", SAMPLES, (CAUSAL_CARRIER, *MEMENTOS), delimiters="erased"),
        Job("all", first, "sealed", SAMPLES, NEAR_MEMENTOS),
        Job("mementos", RECIPES["mementos"].snapshots[-1], "open", SAMPLES, everywhere),
    ]
    between = ((name, step) for name, recipe in RECIPES.items() for step in recipe.snapshots[1:-1])
    return main_jobs + [Job(name, step, "open", INTERMEDIATE_SAMPLES, NEAR_MEMENTOS) for name, step in between]


def measure(checkpoint: Checkpoint, task: Task, job: Job, folder: Path) -> pd.DataFrame:
    """Probe a model's keys and values at the sites of a job, with and without the exact text posterior.

    Args:
        checkpoint: The model.
        task: Sequences with their exact posterior.
        job: The sites and probes.
        folder: Folder for the features; removed afterwards.

    Returns:
        A row of `summarise` per site, probe and `given`, as means over the five digits. With `given` = `text`, bits
        are beyond the text; with `nothing`, they include what the text predicts.
    """
    parts, device = split(task.samples), torch.device("cpu")
    flat = np.full((len(task.samples), 10), -np.log(10))
    named = [(target.name, task.labels(number)) for number, target in enumerate(task.targets)]
    targets = {
        "text": [
            ProbeTarget(name, labels, np.maximum(task.exact_log_posteriors[name], MIN_LOG_POSTERIOR))
            for name, labels in named
        ]
    }
    targets |= {"nothing": [ProbeTarget(name, labels, flat) for name, labels in named]}
    features = extract_features(checkpoint, task, job.feature_request, folder)
    rows = []
    for site in job.sites:
        states = site.read(features)
        (scores,) = linear_scores(states[None], [*targets["text"], *targets["nothing"]], parts, device)
        by_probe = {("linear", "text"): scores[:DIGITS], ("linear", "nothing"): scores[DIGITS:]}
        if job.full_sweep and site.carrier in NEAR_MEMENTOS and site.layers == (LAST_LAYER,):
            for given, given_targets in targets.items():
                by_probe["mlp", given] = probe_scores(MLP(), states, given_targets, parts, 0, device)
        condition = "causal" if site.carrier.hop < 0 else job.cache
        for (probe, given), digit_scores in by_probe.items():
            records = [record(s, condition=condition, probe=probe, **site.result_columns) for s in digit_scores]
            rows.append(summarise(records, task, parts).query("target == 'digit-*'").assign(given=given))
    rmtree(folder)
    return pd.concat(rows, ignore_index=True)


def measure_or_load(job: Job, work: Path) -> pd.DataFrame:
    """Return the rows of `measure` with their snapshot's columns, from the results file if it exists."""
    path = work / f"{job.name}.parquet"
    if not path.exists():
        state = torch.load(snapshot(work / job.recipe, job.step))
        model = checkpoint(work / job.recipe, job.step, replace(POLICY, mask_delimiters=job.delimiters == "erased"))
        rows = measure(model, cumsum_task(job.samples, 0, BLOCK), job, work / f"features-{job.name}")
        origin = {"recipe": job.recipe, "delimiters": job.delimiters}
        rows.assign(**origin, **{key: state[key] for key in ("step", "exact", "minutes")}).to_parquet(path)
    return pd.read_parquet(path)


def run(work: Path) -> pd.DataFrame:
    """Train, measure and collect; existing files in the folder are reused.

    Returns:
        All rows of `measure` with `recipe`, `delimiters`, `step`, `exact` (share of correct mementos) and `minutes` of
        training. `p_holm` is adjusted over the open rows given the text. Rows of condition `exact` hold the accuracy
        and bits of the whole retained text (carrier `text`) and of the single sum at a hop (carrier `sum`).
    """
    for recipe in RECIPES.values():
        train(recipe, work / recipe.name)
    tables = [measure_or_load(job, work) for job in jobs()]
    everything = pd.concat(tables, ignore_index=True).drop(columns=["valid", "selectivity", "p_holm"])
    adjusted = (everything["condition"] == "open") & (everything["given"] == "text")
    everything.loc[adjusted, "p_holm"] = holm(everything.loc[adjusted, "p"].to_list())
    sums = [
        ("text", 0, text_information(DIGITS)),
        *(("sum", hop, text_information(DIGITS * (BLOCK + hop + 1))) for hop in range(8)),
    ]
    exact = pd.DataFrame([{"carrier": carrier, "hop": hop, "accuracy": a, "bits": b} for carrier, hop, (a, b) in sums])
    return pd.concat([everything, exact.assign(condition="exact", given="nothing")], ignore_index=True)


def select_rows(results: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Select rows by column values, sorted by layer, hop and step.

    Defaults: linear probes at mementos in the last layer, open cache, kept delimiters. None selects all values.
    """
    defaults = {"condition": "open", "probe": "linear", "delimiters": "kept", "carrier": "memento"}
    defaults |= {"layer": str(LAST_LAYER)}
    for name, value in (defaults | wanted).items():
        if value is not None:
            results = results[results[name] == value]
    return results.sort_values(["layer", "hop", "step"])


def verdict(results: pd.DataFrame) -> list[str]:
    """Return the verdict on bits beyond the text in later mementos, then one sentence per model."""
    sentences, leaking = list[str](), dict[str, int]()
    for label, model in MODELS.items():
        rows = select_rows(results, given="text", **model)
        later = rows[rows["hop"] > 0]
        beyond = later[(later["p_holm"] <= ALPHA) & (later["bits"] > NEGLIGIBLE_BITS)]
        next_hop, best = later.iloc[0], later.iloc[later["bits"].argmax()]
        leaking[label] = len(beyond)
        sentences.append(
            f"{label}: {rows['bits'].iloc[0]:+.3f} bits beyond the text in its own memento, {next_hop['bits']:+.4f} "
            f"[{next_hop['bits_low']:+.4f}, {next_hop['bits_high']:+.4f}] one block later; at most {best['bits']:+.4f} "
            f"later, at hop {best['hop']}; {len(beyond)} of {len(later)} later mementos reveal more than the text"
        )
    alone = select_rows(results, given="nothing", hop=1, **MODELS["all tokens"])["accuracy"].iloc[0]
    right = text_information(DIGITS)[0]
    trained = "survives" if leaking["all tokens"] else "does not survive"
    untrained = "reveals more than the text" if leaking["untrained"] else "reveals no more than the text"
    first = f"after the block's own memento, the leak {trained} the text baseline in the trained toy: one block later "
    first += f"a probe is right {alone:.1%} of the time, the text alone {right:.1%}; the untrained network {untrained}"
    return [first, *sentences]


def figure(results: pd.DataFrame) -> Figure:
    """Draw accuracy (top) and bits beyond the text (bottom) by layer, by hop and over training."""
    drawn = Figure(figsize=(12, 7.2), layout="constrained")
    axes = drawn.subplots(2, 3)
    for column, draw in enumerate((_by_layer, _by_hop, _over_training)):
        for row, (given, measure) in enumerate((("nothing", "accuracy"), ("text", "bits"))):
            draw(axes[row, column], results, given, measure)
    for axis in axes[0]:
        axis.set_yscale("log")
        axis.set_yticks([0.1, 0.13, 0.16, 0.2, 0.26, 0.4, 0.6, 0.8], ["10 %", "13", "16", "20", "26", "40", "60", "80"])
        axis.minorticks_off()
        axis.set_ylim(0.09, 4)  # room for the legend
        axis.axhline(0.1, color="#bbbbbb", linewidth=0.8)
        axis.axhline(
            text_information(DIGITS)[0], color="black", linestyle="--", linewidth=0.9, label="exact, all retained text"
        )
        axis.legend(fontsize=7, frameon=False, loc="upper right")
    for axis in axes[1]:
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        axis.set_ylim(-0.02, 4)
        axis.axhline(0, color="black", linestyle="--", linewidth=0.9)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy of digits read from keys and values")
    axes[1, 0].set_ylabel("bits per digit beyond the text")
    drawn.suptitle("\n".join(wrap(verdict(results)[0], 130)), fontsize=10)
    return drawn


def _line(axis: Axes, rows: pd.DataFrame, x: Any, measure: str, **style: Any) -> None:
    """Draw values with their intervals."""
    errors = [rows[measure] - rows[f"{measure}_low"], rows[f"{measure}_high"] - rows[measure]]
    axis.errorbar(x, rows[measure], yerr=errors, markersize=3, capsize=2, linewidth=1.2, **{"marker": "o"} | style)


def _by_layer(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label in ("all tokens", "untrained"):
        for hop, name, line in ((0, "own memento", "-"), (1, "one block later", ":")):
            rows = select_rows(results, layer=None, given=given, hop=hop, **MODELS[label])
            style = {"color": COLOURS[label], "marker": MARKERS[label], "linestyle": line, "label": f"{label}, {name}"}
            _line(axis, rows, rows["layer"].astype(int) + 1, measure, **style)
    if given == "nothing":
        axis.plot(
            [1, LAST_LAYER + 1], [PAPER_FIRST_LAYER, PAPER_HOPS[1]], "x", color=RED, label="paper, one block later"
        )
    axis.set(title="by layer", xlabel="layer", xticks=range(1, LAST_LAYER + 2))


def _by_hop(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label, model in MODELS.items():
        rows = select_rows(results, given=given, **model)
        _line(axis, rows, rows["hop"], measure, color=COLOURS[label], marker=MARKERS[label], label=label)
    sealed = select_rows(results, given=given, condition="sealed", **MODELS["all tokens"])
    _line(axis, sealed, sealed["hop"], measure, color=GREY, marker="x", label="all tokens, sealed")
    for label in ("all tokens", "untrained"):
        before = select_rows(results, given=given, condition="causal", **MODELS[label])
        _line(axis, before, before["hop"], measure, color=COLOURS[label], marker=MARKERS[label], linestyle="none")
    if given == "nothing":
        sums = results[(results["condition"] == "exact") & (results["carrier"] == "sum")]
        axis.plot(sums["hop"], sums["accuracy"], ":", color="black", linewidth=1, label="exact, single sum")
        axis.plot(list(PAPER_HOPS), list(PAPER_HOPS.values()), "x", color=RED, label="paper")
    axis.set(title="by hop, last layer", xlabel="blocks later (-1: before the digits)", xticks=range(-1, 8))


def _over_training(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label in ("all tokens", "mementos only"):
        recipe = MODELS[label]["recipe"]
        steps = RECIPES[recipe].snapshots
        for hop, name, line in ((0, "own memento", "-"), (1, "one block later", ":")):
            # Both recipes start from the untrained network, which is recorded under one of them.
            rows = select_rows(results, given=given, hop=hop)
            rows = rows[(rows["recipe"] == recipe) | (rows["step"] == 0)].sort_values("step")
            style = {"color": COLOURS[label], "marker": MARKERS[label], "linestyle": line, "label": f"{label}, {name}"}
            _line(axis, rows, [steps.index(step) for step in rows["step"]], measure, **style)
    exact = select_rows(results, given=given, hop=1, recipe="all")
    ticks = [f"{step:.0f}\n{right:.0%}" for step, right in zip(exact["step"], exact["exact"], strict=True)]
    axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
    if given == "nothing":
        axis.axhspan(*PAPER_TRAINING, color=RED, alpha=0.15, linewidth=0, label="paper, masked")
    axis.set(title="over training, last layer", xlabel="step and share of correct mementos (all tokens)")


def main() -> None:
    """Train, measure, write results and figure, and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "toy_leakage", help="folder of intermediate files")
    torch.set_num_threads(1)
    results = run(parser.parse_args().work)
    results.to_parquet(ROOT / "experiments" / "results" / "toy_leakage.parquet")
    drawn = figure(results)
    write_figure(ROOT, "toy_leakage", drawn)
    print(*verdict(results), sep="\n")


if __name__ == "__main__":
    main()
