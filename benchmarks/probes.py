"""The grid fitter against a loop over scikit-learn: `OMP_WAIT_POLICY=passive python benchmarks/probes.py`.

Both fit the same softmax regressions, layers x heads feature sets x digits, on the same samples, in
turns (A B C D A B C D …), so that only ratios matter. A feature set is what one head caches of a
token, its key and value together. Features are made up: each set has a random covariance whose
variances fall over four decades, as cached states' do, and all digits planted in it at a strength that
is drawn for each, from invisible to nearly certain.

scikit-learn gets what helps it: float32, features standardised beforehand and outside the measured time
(ours standardises inside it), its own default tolerance and number of iterations. Two comparisons:
on one core, processor time of the whole loop against that of the grid; on all cores, wall time of one
fit a core (joblib) against the grid on as many threads. The grid is timed at its own tolerance and at
`LOOSE_TOLERANCE`, which still ends no further from the minimum than scikit-learn does. How far the solutions are
apart, and from the exact minimum (scikit-learn's Newton solver in float64), is measured on test samples.
The passive wait keeps threads from burning a core that another process needs.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ghosttrace.probing.linear_grid import LinearProbe, fit_grid

CLASSES = 10
FEATURE_SCALE_DECADES = 4.0  # of variance, from the first principal component to the last
PENALTIES = (1e-4, 1e-3, 1e-2)  # at 10,000 samples, scikit-learn's C = 1 (its default), 0.1 and 0.01
TOLERANCE, LOOSE_TOLERANCE = 1e-8, 1e-6  # nats; the first is `fit_grid`'s own
N_REFERENCE_FITS = 6  # fits that are also solved to the exact minimum, in float64


def make(sets: int, samples: int, width: int, digits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float[F, N, d] and labels int64[T, N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (digits, samples))
    features = np.empty((sets, samples, width), dtype=np.float32)
    spread = 10 ** (-FEATURE_SCALE_DECADES / 2 * np.arange(width) / width)
    for number in range(sets):
        x = rng.standard_normal((samples, width), dtype=np.float32)
        for row, strength in zip(labels, rng.uniform(0, 0.3, digits), strict=True):
            x += strength * rng.standard_normal((CLASSES, width), dtype=np.float32)[row]
        turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
        features[number] = (x * spread.astype(np.float32)) @ turn
    return torch.from_numpy(features), torch.from_numpy(labels)


def fit_one(x: np.ndarray, y: np.ndarray, penalty: float, **options: Any) -> LogisticRegression:
    """scikit-learn's fit; running out of iterations is counted instead of warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / (len(y) * penalty), **options).fit(x, y)


class Grid:
    """One grid and the ways to fit it.

    Attributes:
        features, labels: float[F, N, d] and int64[T, N], to train on.
        x: the features, standardised, for scikit-learn.
        test, test_x, test_labels: the same of the test samples.
        cells: all pairs of feature set and target.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        n, sets = chosen.samples, chosen.layers * chosen.heads
        every, labels = make(sets, n + chosen.test, 2 * chosen.head_dim, chosen.digits)
        self.features, self.test = every[:, :n], every[:, n:]
        self.labels, self.test_labels = labels[:, :n], labels[:, n:]
        mean, scale = self.features.mean(1, keepdim=True), self.features.std(1, keepdim=True, correction=0)
        self.x, self.test_x = (((part - mean) / scale).numpy() for part in (self.features, self.test))
        self.cells = [(f, t) for f in range(sets) for t in range(chosen.digits)]

    def fit_grid_at_once(self, penalty: float, tolerance: float, threads: int) -> LinearProbe:
        """The grid at once."""
        torch.set_num_threads(threads)
        return fit_grid(self.features, self.labels, [CLASSES] * len(self.labels), penalty, tolerance=tolerance)

    def sequential(self, penalty: float) -> list[LogisticRegression]:
        """One fit after another."""
        with threadpool_limits(1):
            return [fit_one(self.x[f], self.labels[t].numpy(), penalty) for f, t in self.cells]

    def parallel(self, penalty: float) -> list[LogisticRegression]:
        """A fit on each core; joblib gives each one thread."""
        jobs = (delayed(fit_one)(self.x[f], self.labels[t].numpy(), penalty) for f, t in self.cells)
        return Parallel(n_jobs=os.cpu_count())(jobs)


def distance(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Between log-probabilities."""
    return {"max": float((a - b).abs().max()), "mean": float((a - b).abs().mean())}


def agreement(
    grid: Grid, penalty: float, probes: dict[str, LinearProbe], models: list[LogisticRegression]
) -> dict[str, object]:
    """How far the probes and scikit-learn are apart on test samples, and each from the exact minimum."""
    theirs = torch.from_numpy(
        np.stack([m.predict_log_proba(grid.test_x[f]) for m, (f, _) in zip(models, grid.cells, strict=True)])
    ).unflatten(0, (len(grid.features), -1))
    some = [grid.cells[number] for number in range(0, len(grid.cells), len(grid.cells) // N_REFERENCE_FITS)][
        :N_REFERENCE_FITS
    ]
    newton = {"solver": "newton-cholesky", "tol": 1e-9}
    minima = torch.stack([torch.from_numpy(_minimum(grid, penalty, f, t, **newton)) for f, t in some])
    right = (theirs.argmax(-1) == grid.test_labels).float().mean(-1)

    truth = torch.stack([grid.test_labels[t] for _, t in some])

    def from_minimum(found: torch.Tensor) -> dict[str, float]:
        mine = torch.stack([found[cell] for cell in some])
        apart = ((mine.argmax(-1) == truth).float() - (minima.argmax(-1) == truth).float()).mean(-1)
        return distance(mine, minima) | {"accuracy_difference_max": float(apart.abs().max())}

    told: dict[str, object] = {
        "scikit_learn_accuracy": [float(right.min()), float(right.max())],
        "scikit_learn_iterations_median": statistics.median(int(m.n_iter_[0]) for m in models),
        "scikit_learn_out_of_iterations": sum(int(m.n_iter_[0]) >= m.max_iter for m in models),
        "scikit_learn_from_minimum": from_minimum(theirs),
    }
    for name, probe in probes.items():
        ours = probe.log_probabilities(grid.test)
        apart = (ours.argmax(-1) == grid.test_labels).float().mean(-1) - right
        told[name] = {
            "accuracy_difference_max": float(apart.abs().max()),
            "accuracy_difference_mean": float(apart.mean()),
            "log_probability_difference": distance(ours, theirs),
            "from_minimum": from_minimum(ours),
        }
    return told


def _minimum(grid: Grid, penalty: float, f: int, t: int, **options: Any) -> np.ndarray:
    """Log-probabilities of test samples, float64[N, C], by a fit in float64."""
    with threadpool_limits(1):
        fitted = fit_one(grid.x[f].astype(np.float64), grid.labels[t].numpy(), penalty, **options)
    return fitted.predict_log_proba(grid.test_x[f].astype(np.float64))


def compare(grid: Grid, penalty: float, turns: int) -> dict[str, object]:
    """Ratios of time at one penalty, and agreement."""
    cores = os.cpu_count() or 1
    one: dict[str, Callable[[], Any]] = {  # on one core, by processor time
        "scikit_learn": lambda: grid.sequential(penalty),
        "grid": lambda: grid.fit_grid_at_once(penalty, TOLERANCE, 1),
        "grid_loose": lambda: grid.fit_grid_at_once(penalty, LOOSE_TOLERANCE, 1),
    }
    many: dict[str, Callable[[], Any]] = {  # on all cores, by the clock
        "scikit_learn": lambda: grid.parallel(penalty),
        "grid": lambda: grid.fit_grid_at_once(penalty, TOLERANCE, cores),
        "grid_loose": lambda: grid.fit_grid_at_once(penalty, LOOSE_TOLERANCE, cores),
    }
    found: dict[str, Any] = {}
    timed = {"one_core": _timed(one, time.process_time, turns, found)}
    timed["all_cores"] = _timed(many, time.perf_counter, turns, found)
    probes = {name: found[name] for name in ("grid", "grid_loose")}
    row = {"penalty": penalty, "scikit_learn_C": 1 / (penalty * grid.features.shape[1])}
    return row | timed | agreement(grid, penalty, probes, found["scikit_learn"])


def _timed(
    ways: dict[str, Callable[[], Any]], clock: Callable[[], float], turns: int, found: dict[str, Any]
) -> dict[str, object]:
    """Seconds of each way in turns, and how many times as long scikit-learn took; results go to `found`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, run in ways.items():
            begun = clock()
            found[name] = run()
            times[name].append(clock() - begun)
    ratios = {
        name: [theirs / mine for theirs, mine in zip(times["scikit_learn"], part, strict=True)]
        for name, part in times.items()
        if name != "scikit_learn"
    }
    median = {name: statistics.median(part) for name, part in ratios.items()}
    return {"seconds": times, "ratio": median, "ratios": ratios}


def main() -> None:
    """Run the comparison and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"layers": 4, "heads": 8, "digits": 5, "samples": 10_000, "test": 2000, "head-dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--penalties", type=float, nargs="+", default=PENALTIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probes.json")
    chosen = parser.parse_args()
    grid = Grid(chosen)
    # Warm up, so that nobody pays for a first call or for starting processes.
    Parallel(n_jobs=os.cpu_count())(delayed(fit_one)(grid.x[0, :100], grid.labels[0, :100].numpy(), 0.1) for _ in "ab")
    fit_grid(grid.features[:1], grid.labels, [CLASSES] * chosen.digits, 0.1)
    record: dict[str, object] = {
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
        "cores": os.cpu_count(),
        **{name: getattr(chosen, name) for name in ("layers", "heads", "digits", "samples", "test")},
        "features": grid.features.shape[2],
        "classes": CLASSES,
        "tolerance": TOLERANCE,
        "tolerance_loose": LOOSE_TOLERANCE,
    }
    rows = []
    for penalty in chosen.penalties:
        rows.append(compare(grid, penalty, chosen.turns))
        print(json.dumps(rows[-1]), flush=True)
        chosen.out.parent.mkdir(exist_ok=True)
        chosen.out.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
