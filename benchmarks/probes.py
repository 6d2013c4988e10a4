"""Speed of the grid fitter relative to scikit-learn: `OMP_WAIT_POLICY=passive python benchmarks/probes.py`.

Both fit the same softmax regressions, one per feature set (layers x heads) and digit, on the same samples. They run
alternately (A B C A B C …), so only ratios matter. A feature set is the concatenated key and value of one head.
Features are random: each set has a random covariance with variances over four decades, like cached states, and codes
of all digits with a random strength from undetectable to nearly certain.

scikit-learn gets favourable conditions: float32, features standardised outside the measured time (the grid fitter
standardises inside), and its default tolerance and number of iterations. There are two comparisons: CPU time of the
whole loop on one core, and wall time on all cores, where joblib runs one fit per core. The grid is timed at its default
tolerance and at `LOOSE_TOLERANCE`, whose solutions are still at least as close to the minimum as scikit-learn's. The
differences between the solutions, and from the exact minimum (scikit-learn's Newton solver in float64), are measured
on test samples. `OMP_WAIT_POLICY=passive` stops idle threads from occupying cores.
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
FEATURE_SCALE_DECADES = 4.0  # ratio of the variances of the first and last principal component, as log10
PENALTIES = (1e-4, 1e-3, 1e-2)  # at 10,000 samples, scikit-learn's C = 1 (its default), 0.1 and 0.01
TOLERANCE, LOOSE_TOLERANCE = 1e-8, 1e-6  # nats; the first is the default of `fit_grid`
N_REFERENCE_FITS = 6  # fits that are also solved to the exact minimum in float64


def make(sets: int, samples: int, width: int, digits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make features float[F, N, d] and labels int64[T, N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (digits, samples))
    features = np.empty((sets, samples, width), dtype=np.float32)
    spread = 10 ** (-FEATURE_SCALE_DECADES / 2 * np.arange(width) / width)
    for number in range(sets):
        x = rng.standard_normal((samples, width), dtype=np.float32)
        for row, strength in zip(labels, rng.uniform(0, 0.3, digits), strict=True):
            x += strength * rng.standard_normal((CLASSES, width), dtype=np.float32)[row]
        rotation = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
        features[number] = (x * spread.astype(np.float32)) @ rotation
    return torch.from_numpy(features), torch.from_numpy(labels)


def fit_one(x: np.ndarray, y: np.ndarray, penalty: float, **options: Any) -> LogisticRegression:
    """Fit a scikit-learn model, without convergence warnings; `agreement` counts fits that ran out of iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / (len(y) * penalty), **options).fit(x, y)


class Grid:
    """The data of one grid and the variants that fit it.

    Attributes:
        features, labels: Training data, float[F, N, d] and int64[T, N].
        x: Standardised features for scikit-learn.
        test, test_x, test_labels: The same for the test samples.
        fits: All pairs of feature set and target.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        n, sets = chosen.samples, chosen.layers * chosen.heads
        features, labels = make(sets, n + chosen.test, 2 * chosen.head_dim, chosen.digits)
        self.features, self.test = features[:, :n], features[:, n:]
        self.labels, self.test_labels = labels[:, :n], labels[:, n:]
        mean, scale = self.features.mean(1, keepdim=True), self.features.std(1, keepdim=True, correction=0)
        self.x, self.test_x = (((part - mean) / scale).numpy() for part in (self.features, self.test))
        self.fits = [(f, t) for f in range(sets) for t in range(chosen.digits)]

    def fit_grid_at_once(self, penalty: float, tolerance: float, threads: int) -> LinearProbe:
        """Fit the whole grid at once."""
        torch.set_num_threads(threads)
        return fit_grid(self.features, self.labels, [CLASSES] * len(self.labels), penalty, tolerance=tolerance)

    def sequential(self, penalty: float) -> list[LogisticRegression]:
        """Fit scikit-learn models one after another."""
        with threadpool_limits(1):
            return [fit_one(self.x[f], self.labels[t].numpy(), penalty) for f, t in self.fits]

    def parallel(self, penalty: float) -> list[LogisticRegression]:
        """Fit scikit-learn models in parallel, one thread per core."""
        jobs = (delayed(fit_one)(self.x[f], self.labels[t].numpy(), penalty) for f, t in self.fits)
        return Parallel(n_jobs=os.cpu_count())(jobs)


def distance(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Return the maximum and mean absolute difference of log-probabilities."""
    return {"max": float((a - b).abs().max()), "mean": float((a - b).abs().mean())}


def agreement(
    grid: Grid, penalty: float, probes: dict[str, LinearProbe], models: list[LogisticRegression]
) -> dict[str, object]:
    """Compare the probes with scikit-learn on test samples, and both with the exact minimum."""
    sklearn_log_p = torch.from_numpy(
        np.stack([m.predict_log_proba(grid.test_x[f]) for m, (f, _) in zip(models, grid.fits, strict=True)])
    ).unflatten(0, (len(grid.features), -1))
    reference_fits = grid.fits[:: len(grid.fits) // N_REFERENCE_FITS][:N_REFERENCE_FITS]
    newton = {"solver": "newton-cholesky", "tol": 1e-9}
    minima = torch.stack([torch.from_numpy(_minimum(grid, penalty, f, t, **newton)) for f, t in reference_fits])
    accuracy = (sklearn_log_p.argmax(-1) == grid.test_labels).float().mean(-1)

    truth = torch.stack([grid.test_labels[t] for _, t in reference_fits])

    def from_minimum(log_p: torch.Tensor) -> dict[str, float]:
        selected = torch.stack([log_p[fit] for fit in reference_fits])
        difference = ((selected.argmax(-1) == truth).float() - (minima.argmax(-1) == truth).float()).mean(-1)
        return distance(selected, minima) | {"accuracy_difference_max": float(difference.abs().max())}

    result: dict[str, object] = {
        "scikit_learn_accuracy": [float(accuracy.min()), float(accuracy.max())],
        "scikit_learn_iterations_median": statistics.median(int(m.n_iter_[0]) for m in models),
        "scikit_learn_out_of_iterations": sum(int(m.n_iter_[0]) >= m.max_iter for m in models),
        "scikit_learn_from_minimum": from_minimum(sklearn_log_p),
    }
    for name, probe in probes.items():
        grid_log_p = probe.log_probabilities(grid.test)
        difference = (grid_log_p.argmax(-1) == grid.test_labels).float().mean(-1) - accuracy
        result[name] = {
            "accuracy_difference_max": float(difference.abs().max()),
            "accuracy_difference_mean": float(difference.mean()),
            "log_probability_difference": distance(grid_log_p, sklearn_log_p),
            "from_minimum": from_minimum(grid_log_p),
        }
    return result


def _minimum(grid: Grid, penalty: float, f: int, t: int, **options: Any) -> np.ndarray:
    """Return the log-probabilities of test samples, float64[N, C], from a fit in float64."""
    with threadpool_limits(1):
        fitted = fit_one(grid.x[f].astype(np.float64), grid.labels[t].numpy(), penalty, **options)
    return fitted.predict_log_proba(grid.test_x[f].astype(np.float64))


def compare(grid: Grid, penalty: float, turns: int) -> dict[str, object]:
    """Measure time ratios and agreement at one penalty."""
    cores = os.cpu_count() or 1
    single_core: dict[str, Callable[[], Any]] = {  # compared by CPU time
        "scikit_learn": lambda: grid.sequential(penalty),
        "grid": lambda: grid.fit_grid_at_once(penalty, TOLERANCE, 1),
        "grid_loose": lambda: grid.fit_grid_at_once(penalty, LOOSE_TOLERANCE, 1),
    }
    all_cores: dict[str, Callable[[], Any]] = {  # compared by wall time
        "scikit_learn": lambda: grid.parallel(penalty),
        "grid": lambda: grid.fit_grid_at_once(penalty, TOLERANCE, cores),
        "grid_loose": lambda: grid.fit_grid_at_once(penalty, LOOSE_TOLERANCE, cores),
    }
    fitted: dict[str, Any] = {}
    timed = {"one_core": _timed(single_core, time.process_time, turns, fitted)}
    timed["all_cores"] = _timed(all_cores, time.perf_counter, turns, fitted)
    probes = {name: fitted[name] for name in ("grid", "grid_loose")}
    row = {"penalty": penalty, "scikit_learn_C": 1 / (penalty * grid.features.shape[1])}
    return row | timed | agreement(grid, penalty, probes, fitted["scikit_learn"])


def _timed(
    variants: dict[str, Callable[[], Any]], clock: Callable[[], float], turns: int, fitted: dict[str, Any]
) -> dict[str, object]:
    """Time the variants alternately and return seconds and ratios to scikit-learn; store results in `fitted`."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, run in variants.items():
            started = clock()
            fitted[name] = run()
            times[name].append(clock() - started)
    ratios = {
        name: [sklearn_time / own for sklearn_time, own in zip(times["scikit_learn"], part, strict=True)]
        for name, part in times.items()
        if name != "scikit_learn"
    }
    median = {name: statistics.median(part) for name, part in ratios.items()}
    return {"seconds": times, "ratio": median, "ratios": ratios}


def main() -> None:
    """Run the comparison and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"layers": 4, "heads": 8, "digits": 5, "samples": 10_000, "test": 2000, "head-dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--penalties", type=float, nargs="+", default=PENALTIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probes.json")
    chosen = parser.parse_args()
    grid = Grid(chosen)
    # Warm up, so that no variant pays for the first call or for starting processes.
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
