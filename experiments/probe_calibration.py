"""The claim: the probes' bits are right where the truth is known, and silent where there is nothing.

Three simulations on Gaussian features, no model involved. (1) A planted code of known information: class
means in Gaussian noise, whose mutual information is computed from the exact posterior of many draws.
(2) The same with nothing planted. (3) Whole sweeps over nothing, as many sites and questions as the
command looks at: how often is any of them called a leak, and how often is the run called invalid?
Writes `experiments/results/probe_calibration.parquet`; about ten minutes on two cores:
`python experiments/probe_calibration.py`.
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
    """A Gaussian code: classes at random means of a given length, in unit noise.

    Attributes:
        classes, width: how many, in how many dimensions.
        strength: length of the means; 0 plants nothing.
    """

    classes: int
    width: int
    strength: float

    def means(self, rng: np.random.Generator) -> np.ndarray:
        """float[C, d]."""
        drawn = rng.normal(size=(self.classes, self.width))
        return self.strength * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


CODES = {"3-bit code": Code(8, 16, 3.0), "digit": Code(10, 16, 2.0), "nothing": Code(10, 16, 0.0)}


def information(means: np.ndarray, rng: np.random.Generator, draws: int = 200_000) -> float:
    """Mutual information of class and feature in bits, from the exact posterior of fresh draws."""
    labels = rng.integers(0, len(means), draws)
    features = means[labels] + rng.normal(size=(draws, means.shape[1]))
    logits = features @ means.T - (means**2).sum(1) / 2
    posterior = logits[np.arange(draws), labels] - np.logaddexp.reduce(logits, axis=1)
    return float((posterior / np.log(2) + np.log2(len(means))).mean())


def simulated_task(n: int, classes: int, targets: int = 1) -> tuple[Task, Split]:
    """Samples without a model: n independent ones, and their split."""
    samples = tuple(Sample((), str(row), str(row), 0, (), (0,) * targets) for row in range(n))
    names = tuple(Target(f"digit-{number}", tuple(map(str, range(classes)))) for number in range(targets))
    return Task("simulated", samples, names), split(samples)


def with_labels(task: Task, labels: np.ndarray) -> Task:
    """The task with labels int[N, T]."""
    rows = zip(task.samples, labels, strict=True)
    samples = tuple(Sample((), one.base, one.secret, 0, (), tuple(map(int, row))) for one, row in rows)
    return Task(task.name, samples, task.targets)


def site(layer: int = 0, kv: str = "k", hop: int = 0) -> dict[str, Any]:
    """Names of a simulated site."""
    return {"carrier": "memento", "hop": hop, "layer": str(layer), "kv": kv, "head": "all", "probe": "linear"}


def uniform_target(name: str, labels: np.ndarray, classes: int) -> ProbeTarget:
    """A question of which the text tells nothing."""
    return ProbeTarget(name, labels, np.full((len(labels), classes), -np.log(classes)))


def simulate(code: Code, n: int, seed: int) -> dict[str, Any]:
    """One planted code, estimated and true."""
    rng = np.random.default_rng([seed, int(100 * code.strength), code.classes])
    task, parts = simulated_task(n, code.classes)
    labels = rng.integers(0, code.classes, n)
    means = code.means(rng)
    features = torch.from_numpy(means[labels] + rng.normal(size=(n, code.width))).float()
    ((scores,),) = linear_scores(features[None], [uniform_target("digit-0", labels, code.classes)], parts, CPU)
    row = summarise([record(scores, condition="open", **site())], with_labels(task, labels[:, None]), parts).iloc[0]
    truth = information(means, rng) if code.strength else 0.0
    found = {name: float(row[name]) for name in ("bits", "bits_low", "bits_high", "p", "accuracy")}
    return {"seed": seed, "truth": truth, **found}


def empty_sweep(n: int, seed: int, layers: int = 4, hops: int = 3, targets: int = 5, width: int = 24) -> dict[str, Any]:
    """A sweep in which nothing is planted; layers of one hop are correlated, as those of a model are."""
    rng = np.random.default_rng([seed, 0xE])
    task, parts = simulated_task(n, 10, targets)
    labels = rng.integers(0, 10, (n, targets))
    asked = [uniform_target(f"digit-{number}", labels[:, number], 10) for number in range(targets)]
    cells = []
    for hop in range(-1, hops):
        for condition in ("causal",) if hop < 0 else ("open", "sealed"):
            shared = rng.normal(size=(1, n, width))
            states = torch.from_numpy(shared + rng.normal(size=(2 * layers, n, width))).float()
            found: list[list[Scores]] = linear_scores(states, asked, parts, CPU)
            for number, of_set in enumerate(found):
                names = site(number // 2, "kv"[number % 2], hop)
                cells += [record(scores, condition=condition, **names) for scores in of_set]
    results = summarise(cells, with_labels(task, labels), parts)
    open_rows = results[results["condition"] == "open"]
    return {
        "seed": seed,
        "rows": len(open_rows),
        "false_alarm": bool((open_rows["p_holm"] <= 0.05).any()),
        "unadjusted": float((open_rows["p"] <= 0.05).mean()),
        "invalid": bool(failed_controls(results)),
    }


def main() -> None:
    """Run all simulations, record them, print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16_000, help="of a planted code; sweeps take a tenth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for name, code in {
        "3-bit code": Code(8, 16, 3.0),
        "digit": Code(10, 16, 2.0),
        "nothing": Code(10, 16, 0.0),
    }.items():
        rows = [simulate(code, arguments.samples, seed) for seed in range(arguments.simulations)]
        parts.append(pd.DataFrame(rows).assign(simulation=name))
        table = parts[-1]
        close = (table["bits"] / table["truth"].where(table["truth"] > 0) - 1).abs() <= 0.05
        covered = (table["bits_low"] <= table["truth"]) & (table["truth"] <= table["bits_high"])
        print(
            f"{name}: truth {table['truth'].mean():.3f} bits, estimated {table['bits'].mean():.3f}; within 5 %: "
            f"{close.sum()}, truth in the interval: {covered.sum()} of {len(table)}",
            flush=True,
        )
    rows = [empty_sweep(arguments.samples // 10, seed) for seed in range(arguments.simulations)]
    parts.append(pd.DataFrame(rows).assign(simulation="empty sweep"))
    print(
        f"empty sweeps of {rows[0]['rows']} rows: {sum(row['false_alarm'] for row in rows)} false alarms, "
        f"{sum(row['invalid'] for row in rows)} called invalid, of {len(rows)}"
    )
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    pd.concat(parts, ignore_index=True).to_parquet(ROOT / "experiments" / "results" / "probe_calibration.parquet")


if __name__ == "__main__":
    main()
