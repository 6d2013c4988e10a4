"""Claim: probes estimate known information correctly and find nothing where there is none.

Three simulations on Gaussian features, without a model:

1. A planted code with known information: class means in Gaussian noise. Its mutual information is computed from the
   exact posterior of many draws.
2. The same with nothing planted.
3. Whole sweeps with nothing planted, with as many sites and targets as `ghosttrace probe` has. They count how often
   any site is called a leak and how often the run is called invalid.

Writes `experiments/results/probe_calibration.parquet`. `python experiments/probe_calibration.py`: about ten minutes on
two cores.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.probing.evidence import ProbeTarget, Scores, failed_controls, record, summarise
from ghosttrace.probing.fit_and_score import linear_scores
from ghosttrace.probing.split import Split, split

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Code:
    """A Gaussian code: random class means of a given norm in noise of unit variance.

    Attributes:
        classes: Number of classes.
        width: Number of dimensions.
        strength: Norm of the means; 0 plants nothing.
    """

    classes: int
    width: int
    strength: float

    def means(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the class means, float[C, d]."""
        drawn = rng.normal(size=(self.classes, self.width))
        return self.strength * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


CODES = {"3-bit code": Code(8, 16, 3.0), "digit": Code(10, 16, 2.0), "nothing": Code(10, 16, 0.0)}


def information(means: np.ndarray, rng: np.random.Generator, draws: int = 200_000) -> float:
    """Estimate the mutual information of class and features in bits from the exact posterior of fresh draws."""
    labels = rng.integers(0, len(means), draws)
    features = means[labels] + rng.normal(size=(draws, means.shape[1]))
    logits = features @ means.T - (means**2).sum(1) / 2
    posterior = logits[np.arange(draws), labels] - np.logaddexp.reduce(logits, axis=1)
    return float((posterior / np.log(2) + np.log2(len(means))).mean())


def simulated_task(n: int, classes: int, targets: int = 1) -> tuple[Task, Split]:
    """Make a task of n independent samples without tokens, and its split."""
    samples = tuple(Sample((), str(row), str(row), 0, (), (0,) * targets) for row in range(n))
    names = tuple(Target(f"digit-{number}", tuple(map(str, range(classes)))) for number in range(targets))
    return Task("simulated", samples, names), split(samples)


def with_labels(task: Task, labels: np.ndarray) -> Task:
    """Return the task with labels int[N, T]."""
    rows = zip(task.samples, labels, strict=True)
    samples = tuple(Sample((), old.base, old.secret, 0, (), tuple(map(int, row))) for old, row in rows)
    return Task(task.name, samples, task.targets)


def site(layer: int = 0, kv: str = "k", hop: int = 0) -> dict[str, Any]:
    """Return the result columns of a simulated site."""
    return {"carrier": "memento", "hop": hop, "layer": str(layer), "kv": kv, "head": "all", "probe": "linear"}


def uniform_target(name: str, labels: np.ndarray, classes: int) -> ProbeTarget:
    """Make a target whose text baseline is uniform."""
    return ProbeTarget(name, labels, np.full((len(labels), classes), -np.log(classes)))


def simulate(code: Code, n: int, seed: int) -> dict[str, Any]:
    """Estimate the information of one planted code, and return it with the true value."""
    rng = np.random.default_rng([seed, int(100 * code.strength), code.classes])
    task, parts = simulated_task(n, code.classes)
    labels = rng.integers(0, code.classes, n)
    means = code.means(rng)
    features = torch.from_numpy(means[labels] + rng.normal(size=(n, code.width))).float()
    ((scores,),) = linear_scores(features[None], [uniform_target("digit-0", labels, code.classes)], parts, CPU)
    row = summarise([record(scores, condition="open", **site())], with_labels(task, labels[:, None]), parts).iloc[0]
    truth = information(means, rng) if code.strength else 0.0
    estimates = {name: float(row[name]) for name in ("bits", "bits_low", "bits_high", "p", "accuracy")}
    return {"seed": seed, "truth": truth, **estimates}


def empty_sweep(n: int, seed: int, layers: int = 4, hops: int = 3, targets: int = 5, width: int = 24) -> dict[str, Any]:
    """Run a sweep in which nothing is planted, and report its false positives.

    States of one hop are correlated across layers, as in a model.
    """
    rng = np.random.default_rng([seed, 0xE])
    task, parts = simulated_task(n, 10, targets)
    labels = rng.integers(0, 10, (n, targets))
    probe_targets = [uniform_target(f"digit-{number}", labels[:, number], 10) for number in range(targets)]
    records = []
    for hop in range(-1, hops):
        for condition in ("causal",) if hop < 0 else ("open", "sealed"):
            shared = rng.normal(size=(1, n, width))
            states = torch.from_numpy(shared + rng.normal(size=(2 * layers, n, width))).float()
            by_site: list[list[Scores]] = linear_scores(states, probe_targets, parts, CPU)
            for number, site_scores in enumerate(by_site):
                columns = site(number // 2, "kv"[number % 2], hop)
                records += [record(scores, condition=condition, **columns) for scores in site_scores]
    results = summarise(records, with_labels(task, labels), parts)
    open_rows = results[results["condition"] == "open"]
    return {
        "seed": seed,
        "rows": len(open_rows),
        "false_alarm": bool((open_rows["p_holm"] <= 0.05).any()),
        "unadjusted": float((open_rows["p"] <= 0.05).mean()),
        "invalid": bool(failed_controls(results)),
    }


def main() -> None:
    """Run all simulations, write the results and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument(
        "--samples", type=int, default=16_000, help="samples of a planted code; sweeps use a tenth of them"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for name, code in CODES.items():
        rows = [simulate(code, arguments.samples, seed) for seed in range(arguments.simulations)]
        parts.append(pd.DataFrame(rows).assign(simulation=name))
        table = parts[-1]
        close = (table["bits"] / table["truth"].where(table["truth"] > 0) - 1).abs() <= 0.05
        covered = (table["bits_low"] <= table["truth"]) & (table["truth"] <= table["bits_high"])
        print(
            f"{name}: truth {table['truth'].mean():.3f} bits, estimated {table['bits'].mean():.3f}; within 5 %: "
            f"{close.sum()}, true value in the interval: {covered.sum()} of {len(table)}",
            flush=True,
        )
    rows = [empty_sweep(arguments.samples // 10, seed) for seed in range(arguments.simulations)]
    parts.append(pd.DataFrame(rows).assign(simulation="empty sweep"))
    print(
        f"empty sweeps of {rows[0]['rows']} rows: {sum(row['false_alarm'] for row in rows)} with a false positive, "
        f"{sum(row['invalid'] for row in rows)} called invalid, of {len(rows)}"
    )
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    pd.concat(parts, ignore_index=True).to_parquet(ROOT / "experiments" / "results" / "probe_calibration.parquet")


if __name__ == "__main__":
    main()
