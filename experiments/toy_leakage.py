"""The claim: trained, the paper's toy keeps nothing of an erased block past its own memento but what the text tells.

The paper trains a small model to write running sums of random digits, probes a memento's keys and values for the digits
of an erased block, and finds 26.2 % one block later against a chance of 10 % (arXiv 2604.09852, appendix A.4.2). But
the retained sums tell the digits too: 16.0 %. Here the toy is trained again, with loss on all tokens and with loss on
what can be predicted alone, and every probe stands beside the exact posterior given the retained text: bits are those
beyond it. The network before training is probed as well.

Writes `experiments/results/toy_leakage.parquet` and `figures/toy_leakage.{png,svg}`; goes on where it stopped.
`python -m experiments.toy_leakage`: on one core about 35 minutes of training, then 20 of probing.
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
from ghosttrace.probing.evidence import ALPHA, NEGLIGIBLE_BITS, ProbeTarget, record, summarise
from ghosttrace.probing.features import StateSelection, extract_features
from ghosttrace.probing.fit_and_score import linear_scores, probe_scores
from ghosttrace.probing.probes import MLP
from ghosttrace.probing.split import split
from ghosttrace.probing.sweep import MIN_LOG_POSTERIOR, ProbeSite
from ghosttrace.stats import holm

ROOT = Path(__file__).parent.parent
SNAPSHOTS = (0, 200, 400, 800, 1200, 1600, 2000, 2400, 3200, 4000, 4800)
RECIPES = {"all": Recipe("all", 1.0, SNAPSHOTS), "mementos": Recipe("mementos", 0.0, SNAPSHOTS[:8])}
BLOCK, LAST_LAYER = 2, 3  # the third block of ten: one memento cannot know, its own can, seven follow; the last layer
SAMPLES, INTERMEDIATE_SAMPLES = 12_000, 6_000  # for models at the end and at the start of training, and in between
CAUSAL_CARRIER, MEMENTOS = Carrier("memento", -1), tuple(Carrier("memento", hop) for hop in range(8))
DELIMITERS = Carrier("delimiters", 0), Carrier("delimiters", 1)
NEAR_MEMENTOS = MEMENTOS[:2]
MODELS: dict[str, dict[str, Any]] = {
    "all tokens": {"recipe": "all", "step": RECIPES["all"].snapshots[-1]},
    "mementos only": {"recipe": "mementos", "step": RECIPES["mementos"].snapshots[-1]},
    "untrained": {"recipe": "all", "step": 0},
    "untrained, delimiters erased": {"recipe": "all", "step": 0, "delimiters": "erased"},
}
COLOURS = dict(zip(MODELS, ("#1b6e53", "#8c6bb1", "#d8a24a", "#a0522d"), strict=True))
RED, PAPER_HOPS, PAPER_FIRST_LAYER, PAPER_TRAINING = "#b5303c", {1: 0.262, 2: 0.214, 7: 0.13}, 0.131, (0.17, 0.19)


@dataclass(frozen=True)
class Job:
    """One model under one law, with one cache: what is probed of it.

    Attributes:
        recipe, step: which snapshot.
        cache: open or sealed.
        samples: how many sequences.
        carriers: probed in the last layer.
        full_sweep: probe `NEAR_MEMENTOS` in the layers below as well, and by an MLP in the last.
        delimiters: `kept`, as trained, or `erased` with their block.
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
        """Of its file."""
        return f"{self.recipe}-{self.step:05d}-{self.cache}-{self.delimiters}"

    @property
    def feature_request(self) -> StateSelection:
        """What is read."""
        return StateSelection(
            self.cache, self.carriers, tuple(range(LAST_LAYER + 1)) if self.full_sweep else (LAST_LAYER,)
        )

    @property
    def sites(self) -> list[ProbeSite]:
        """What is probed."""
        below = (
            [ProbeSite(carrier, (layer,), "kv") for carrier in NEAR_MEMENTOS for layer in range(LAST_LAYER)]
            if self.full_sweep
            else []
        )
        return below + [ProbeSite(carrier, (LAST_LAYER,), "kv") for carrier in self.carriers]


def jobs() -> list[Job]:
    """The trained models, the untrained one (both recipes start from the same weights), and those in between."""
    first, *_, last = RECIPES["all"].snapshots
    everywhere = (CAUSAL_CARRIER, *MEMENTOS, *DELIMITERS)
    found = [
        Job("all", last, "open", SAMPLES, everywhere, full_sweep=True),
        Job("all", last, "sealed", SAMPLES, MEMENTOS),
        Job("all", first, "open", SAMPLES, everywhere, full_sweep=True),
        Job("all", first, "open", SAMPLES, (CAUSAL_CARRIER, *MEMENTOS), delimiters="erased"),
        Job("all", first, "sealed", SAMPLES, NEAR_MEMENTOS),
        Job("mementos", RECIPES["mementos"].snapshots[-1], "open", SAMPLES, everywhere),
    ]
    between = ((name, step) for name, recipe in RECIPES.items() for step in recipe.snapshots[1:-1])
    return found + [Job(name, step, "open", INTERMEDIATE_SAMPLES, NEAR_MEMENTOS) for name, step in between]


def measure(checkpoint: Checkpoint, task: Task, job: Job, folder: Path) -> pd.DataFrame:
    """Probe a model's keys and values at the sites of a job, on top of the exact text posterior and alone.

    Args:
        checkpoint: the model.
        task: sequences with their exact posterior.
        job: what to read of them.
        folder: for the features; removed afterwards.

    Returns:
        Means over the five digits: a row as `summarise` gives it per site, probe and `given`, which is
        `text` (bits are beyond it) or `nothing` (bits are all that the features tell).
    """
    parts, device = split(task.samples), torch.device("cpu")
    flat = np.full((len(task.samples), 10), -np.log(10))
    named = [(target.name, task.labels(number)) for number, target in enumerate(task.targets)]
    asked = {
        "text": [
            ProbeTarget(name, labels, np.maximum(task.exact_log_posteriors[name], MIN_LOG_POSTERIOR))
            for name, labels in named
        ]
    }
    asked |= {"nothing": [ProbeTarget(name, labels, flat) for name, labels in named]}
    features = extract_features(checkpoint, task, job.feature_request, folder)
    rows = []
    for site in job.sites:
        states = site.read(features)
        (scores,) = linear_scores(states[None], [*asked["text"], *asked["nothing"]], parts, device)
        found = {("linear", "text"): scores[:DIGITS], ("linear", "nothing"): scores[DIGITS:]}
        if job.full_sweep and site.carrier in NEAR_MEMENTOS and site.layers == (LAST_LAYER,):
            found |= {("mlp", given): probe_scores(MLP(), states, asked[given], parts, 0, device) for given in asked}
        condition = "causal" if site.carrier.hop < 0 else job.cache
        for (probe, given), of_digits in found.items():
            cells = [record(one, condition=condition, probe=probe, **site.result_columns) for one in of_digits]
            rows.append(summarise(cells, task, parts).query("target == 'digit-*'").assign(given=given))
    rmtree(folder)
    return pd.concat(rows, ignore_index=True)


def measure_or_load(job: Job, work: Path) -> pd.DataFrame:
    """What `measure` finds, or found before, with where it comes from."""
    path = work / f"{job.name}.parquet"
    if not path.exists():
        state = torch.load(snapshot(work / job.recipe, job.step))
        model = checkpoint(work / job.recipe, job.step, replace(POLICY, mask_delimiters=job.delimiters == "erased"))
        found = measure(model, cumsum_task(job.samples, 0, BLOCK), job, work / f"features-{job.name}")
        origin = {"recipe": job.recipe, "delimiters": job.delimiters}
        found.assign(**origin, **{key: state[key] for key in ("step", "exact", "minutes")}).to_parquet(path)
    return pd.read_parquet(path)


def run(work: Path) -> pd.DataFrame:
    """Train, measure, and collect; whatever lies in the folder already is taken as done.

    Returns:
        All rows of `measure` with recipe, delimiters, step, exact (the model's share of right mementos) and
        minutes of training; p_holm over the open rows given the text. Rows of condition `exact` are what the
        whole retained text tells (carrier `text`) and what the one sum at a hop does (carrier `sum`).
    """
    for recipe in RECIPES.values():
        train(recipe, work / recipe.name)
    tables = [measure_or_load(job, work) for job in jobs()]
    everything = pd.concat(tables, ignore_index=True).drop(columns=["valid", "selectivity", "p_holm"])
    asked = (everything["condition"] == "open") & (everything["given"] == "text")
    everything.loc[asked, "p_holm"] = holm(everything.loc[asked, "p"].to_list())
    sums = [
        ("text", 0, text_information(DIGITS)),
        *(("sum", hop, text_information(DIGITS * (BLOCK + hop + 1))) for hop in range(8)),
    ]
    exact = pd.DataFrame([{"carrier": carrier, "hop": hop, "accuracy": a, "bits": b} for carrier, hop, (a, b) in sums])
    return pd.concat([everything, exact.assign(condition="exact", given="nothing")], ignore_index=True)


def select_rows(results: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows with these values, by layer, hop and step; linear probes, open, kept delimiters unless told otherwise."""
    plain = {
        "condition": "open",
        "probe": "linear",
        "delimiters": "kept",
        "carrier": "memento",
        "layer": str(LAST_LAYER),
    }
    for name, value in (plain | wanted).items():
        if value is not None:
            results = results[results[name] == value]
    return results.sort_values(["layer", "hop", "step"])


def verdict(results: pd.DataFrame) -> list[str]:
    """What a later memento holds beyond the text: one sentence for each model, the verdict first."""
    sentences, leaking = list[str](), dict[str, int]()
    for label, model in MODELS.items():
        rows = select_rows(results, given="text", **model)
        later = rows[rows["hop"] > 0]
        beyond = later[(later["p_holm"] <= ALPHA) & (later["bits"] > NEGLIGIBLE_BITS)]
        one, most = later.iloc[0], later.iloc[later["bits"].argmax()]
        leaking[label] = len(beyond)
        sentences.append(
            f"{label}: {rows['bits'].iloc[0]:+.3f} bits beyond the text in its own memento, {one['bits']:+.4f} "
            f"[{one['bits_low']:+.4f}, {one['bits_high']:+.4f}] one block later; most later on {most['bits']:+.4f}, "
            f"hop {most['hop']}; {len(beyond)} of {len(later)} later mementos tell more than the text"
        )
    alone, right = (
        select_rows(results, given="nothing", hop=1, **MODELS["all tokens"])["accuracy"].iloc[0],
        text_information(DIGITS)[0],
    )
    trained = "survives" if leaking["all tokens"] else "does not survive"
    untrained = "tells more than the text" if leaking["untrained"] else "tells no more than the text"
    first = f"past the block's own memento the leak {trained} the text baseline in the trained toy: one block later a "
    first += f"probe is right {alone:.1%} of the time, the text alone {right:.1%}; the untrained network {untrained}"
    return [first, *sentences]


def figure(results: pd.DataFrame) -> Figure:
    """Three panels, above how often the probe is right, below bits beyond the text."""
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
    axes[0, 0].set_ylabel("digits read rightly from keys and values")
    axes[1, 0].set_ylabel("bits a digit beyond the text")
    drawn.suptitle("\n".join(wrap(verdict(results)[0], 130)), fontsize=10)
    return drawn


def _line(axis: Axes, rows: pd.DataFrame, x: Any, measure: str, **style: Any) -> None:
    """Values with their intervals."""
    around = [rows[measure] - rows[f"{measure}_low"], rows[f"{measure}_high"] - rows[measure]]
    axis.errorbar(x, rows[measure], yerr=around, marker="o", markersize=3, capsize=2, linewidth=1.2, **style)


def _by_layer(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label in ("all tokens", "untrained"):
        for hop, name, line in ((0, "own memento", "-"), (1, "one block later", ":")):
            rows = select_rows(results, layer=None, given=given, hop=hop, **MODELS[label])
            style = {"color": COLOURS[label], "linestyle": line, "label": f"{label}, {name}"}
            _line(axis, rows, rows["layer"].astype(int) + 1, measure, **style)
    if given == "nothing":
        axis.plot(
            [1, LAST_LAYER + 1], [PAPER_FIRST_LAYER, PAPER_HOPS[1]], "x", color=RED, label="paper, one block later"
        )
    axis.set(title="by layer", xlabel="layer", xticks=range(1, LAST_LAYER + 2))


def _by_hop(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label, model in MODELS.items():
        rows = select_rows(results, given=given, **model)
        _line(axis, rows, rows["hop"], measure, color=COLOURS[label], label=label)
    sealed = select_rows(results, given=given, condition="sealed", **MODELS["all tokens"])
    _line(axis, sealed, sealed["hop"], measure, color="#888888", label="all tokens, sealed")
    for label in ("all tokens", "untrained"):
        before = select_rows(results, given=given, condition="causal", **MODELS[label])
        _line(axis, before, before["hop"], measure, color=COLOURS[label], linestyle="none")
    if given == "nothing":
        sums = results[(results["condition"] == "exact") & (results["carrier"] == "sum")]
        axis.plot(sums["hop"], sums["accuracy"], ":", color="black", linewidth=1, label="exact, that sum alone")
        axis.plot(list(PAPER_HOPS), list(PAPER_HOPS.values()), "x", color=RED, label="paper")
    axis.set(title="by hop, last layer", xlabel="blocks later (-1: before the digits)", xticks=range(-1, 8))


def _over_training(axis: Axes, results: pd.DataFrame, given: str, measure: str) -> None:
    for label in ("all tokens", "mementos only"):
        recipe = MODELS[label]["recipe"]
        steps = RECIPES[recipe].snapshots
        for hop, name, line in ((0, "own memento", "-"), (1, "one block later", ":")):
            # The untrained network is on record under one recipe; both start from it.
            rows = select_rows(results, given=given, hop=hop)
            rows = rows[(rows["recipe"] == recipe) | (rows["step"] == 0)].sort_values("step")
            style = {"color": COLOURS[label], "linestyle": line, "label": f"{label}, {name}"}
            _line(axis, rows, [steps.index(step) for step in rows["step"]], measure, **style)
    exact = select_rows(results, given=given, hop=1, recipe="all")
    ticks = [f"{step:.0f}\n{right:.0%}" for step, right in zip(exact["step"], exact["exact"], strict=True)]
    axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
    if given == "nothing":
        axis.axhspan(*PAPER_TRAINING, color=RED, alpha=0.15, linewidth=0, label="paper, masked")
    axis.set(title="over training, last layer", xlabel="step, and right mementos (all tokens)")


def main() -> None:
    """Train, measure, write and draw, and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "toy_leakage", help="folder of intermediate files")
    torch.set_num_threads(1)
    results = run(parser.parse_args().work)
    results.to_parquet(ROOT / "experiments" / "results" / "toy_leakage.parquet")
    drawn = figure(results)
    for kind in ("png", "svg"):
        drawn.savefig(ROOT / "figures" / f"toy_leakage.{kind}", dpi=150)
    print(*verdict(results), sep="\n")


if __name__ == "__main__":
    main()
