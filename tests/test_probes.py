"""Nonlinear and user-defined probes, and invalid probes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.probes import ClassMeans, planted, some_offset
from torch import Tensor

import ghosttrace as gt
from experiments.probe_calibration import Code, simulated_task, uniform_target
from ghosttrace.errors import UserError
from ghosttrace.probing.evidence import ProbeTarget, Scores
from ghosttrace.probing.fit_and_score import linear_scores, probe_scores
from ghosttrace.probing.fitter_utils import cross_entropy
from ghosttrace.probing.linear_grid import fit_grid
from ghosttrace.probing.probes import MLP, PROBES, Probe, UnusualTraces
from ghosttrace.probing.probes.mlp import HIDDEN_WIDTHS, fit_mlp
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.split import Split
from ghosttrace.results import open_run

CPU = torch.device("cpu")
MATRIX: dict[str, Probe] = {"mlp": MLP(), "unusual": UnusualTraces(), "class-means": ClassMeans()}
"""Every bundled probe, and one of the user's own."""


def test_matrix_lists_every_bundled_probe() -> None:
    assert PROBES.keys() <= MATRIX.keys()
    assert all(name == probe.name for name, probe in MATRIX.items())


def coded(n: int, strength: float) -> tuple[Tensor, ProbeTarget, Split]:
    """Return features float32[n, 12] with a code of ten classes, the target and a split."""
    rng = np.random.default_rng(0)
    _, parts = simulated_task(n, 10)
    labels = rng.integers(0, 10, n)
    means = Code(10, 12, strength).means(rng)
    return (
        torch.from_numpy(means[labels] + rng.normal(size=(n, 12))).float(),
        uniform_target("digit-0", labels, 10),
        parts,
    )


@pytest.mark.parametrize("name", MATRIX)
def test_probe_reads_a_code_or_falls_back_to_the_text(name: str) -> None:
    smallest = 0.01 if name == "unusual" else 1.0  # it predicts few traces
    for strength, low, high in ((5.0, smallest, 3.33), (0.0, 0.0, 0.0)):
        features, target, parts = coded(1_500, strength)
        (scores,) = probe_scores(MATRIX[name], features, [target], parts, 0, CPU)
        bits = (scores.log2p - scores.text_log2p).mean()
        assert low <= bits <= high, strength
        assert len(scores.sample) == len(parts.test) and scores.n_train == len(parts.train)


@pytest.mark.parametrize(("n", "width", "least"), [(4_000, 48, 0.5), (3_000, 768, 0.4)])
def test_a_code_in_few_traces_is_read_from_unusual_traces(n: int, width: int, least: float) -> None:
    """Two digits in 2 % of traces: the linear probe gains little of their 0.13 bits, that of unusual traces most."""
    rng = np.random.default_rng(0)
    _, parts = simulated_task(n, 10)
    digits = [rng.integers(0, 10, n) for _ in range(2)]
    rows = rng.random(n) < 0.02
    features = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / width**0.5
    for labels in digits:
        features[rows, :48] += (3 * rng.normal(size=(10, 48)))[labels[rows]]
    targets = [uniform_target(f"digit-{k}", labels, 10) for k, labels in enumerate(digits)]
    states = torch.from_numpy(features).float()

    def share_found(scores: Sequence[Scores]) -> float:
        return sum((s.log2p - s.text_log2p).sum() for s in scores) / (2 * np.log2(10) * rows[parts.test].sum())

    by_linear = share_found(linear_scores(states[None], targets, parts, CPU)[0])
    by_unusual = share_found(probe_scores(UnusualTraces(), states, targets, parts, 0, CPU))
    assert by_unusual > max(least, 1.5 * by_linear)


@pytest.mark.parametrize("name", MATRIX)
def test_the_same_seed_gives_the_same_posteriors(name: str) -> None:
    features, target, parts = coded(300, 3.0)
    first, second = (MATRIX[name].fit(features, [target], parts, 1, CPU) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class Returns(Probe):
    """Probe that returns the result of a function of the targets."""

    answer: Callable[[Sequence[ProbeTarget], Split], list[np.ndarray]]
    name = "returns"

    def fit(
        self, features: Tensor, targets: Sequence[ProbeTarget], split: Split, seed: int, device: torch.device
    ) -> list[np.ndarray]:
        return self.answer(targets, split)


def test_probe_never_gets_test_labels() -> None:
    features, target, parts = coded(300, 0.0)
    seen = []

    def spy(targets: Sequence[ProbeTarget], split: Split) -> list[np.ndarray]:
        seen.append(targets[0].labels)
        return [item.text for item in targets]

    probe_scores(Returns(spy), features, [target], parts, 0, CPU)
    known = np.concatenate([parts.train, parts.validation])
    assert (seen[0][parts.test] == -1).all() and np.array_equal(seen[0][known], target.labels[known])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda targets, split: [], "one for each target"),
        (lambda targets, split: [targets[0].text[:5]], "returned arrays of shapes"),
        (lambda targets, split: [targets[0].text + 0.5], "that sum to 1 for each sample"),
        (lambda targets, split: [np.exp(targets[0].text)], "natural logarithms of probabilities"),
        (lambda targets, split: [np.where(targets[0].text < 0, -np.inf, 0.0)], "no log-posterior of digit-0"),
    ],
)
def test_invalid_log_posteriors_are_refused(
    answer: Callable[[Sequence[ProbeTarget], Split], list[np.ndarray]], message: str
) -> None:
    features, target, parts = coded(300, 0.0)
    with pytest.raises(UserError, match=message):
        probe_scores(Returns(answer), features, [target], parts, 0, CPU)


def test_probes_with_equal_names_are_refused() -> None:
    for probes in ((MLP(),), (ClassMeans(), ClassMeans(2.0))):
        with pytest.raises(UserError, match="two probes are called"):
            ProbeSettings(probes=probes)
    ProbeSettings(mlp=False, probes=(MLP(),))
    assert ProbeSettings(probes=(ClassMeans(2.0),)).to_dict()["probes"] == ["ClassMeans(spread=2.0)"]


@pytest.mark.slow
def test_user_defined_probe_runs_with_the_others(tmp_path: Path) -> None:
    """It is fitted at the best site of each hop under every condition, and has the same controls."""
    more = {"samples": 300, "hops": (0, 1), "layers": (2,), "kv": ("v",), "pool": 2, "mlp": False}
    result = gt.probe("toy-open", "ledger-h1", probes=[ClassMeans()], out=tmp_path / "run", **more)  # type: ignore[arg-type]
    class_means = result.results[result.results["probe"] == "class-means"]
    assert set(class_means["condition"]) == {"open", "sealed", "shuffled", "causal"} and set(class_means["hop"]) == {
        -1,
        0,
        1,
    }
    hidden = class_means[(class_means["target"] == "hidden-0") & (class_means["hop"] == 0)].set_index("condition")
    assert hidden.loc["open", "bits"] > 1 and hidden.loc["open", "significant"]
    assert abs(hidden.loc["sealed", "bits"]) < 0.05
    assert result.valid and result.configuration["settings"]["probes"] == ["ClassMeans(spread=1.0)"]
    assert open_run(tmp_path / "run") == result
    names = {text.get_text() for text in result.figure("hops").legends[0].get_texts()}
    assert {"open, class-means", "sealed, class-means"} <= names


def xor(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features and labels: the class is the parity of two signs, which is not linearly decodable."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    x[:, :2] = x[:, :2].sign() + 0.2 * torch.randn(n, 2, generator=generator)
    return x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()[None]


def test_mlp_learns_a_nonlinear_code() -> None:
    x, y = xor(1200, 0)
    train, held, test = torch.arange(600), torch.arange(600, 900), torch.arange(900, 1200)
    mlp = fit_mlp(x, y, [2], train, held, epochs=15)
    line = fit_grid(x[None, train], y[:, train], [2], 1e-3)
    assert [len(bias) for _, bias in mlp.layers] == [*HIDDEN_WIDTHS, 2]
    assert cross_entropy(mlp.log_probabilities(x[test]), y[:, test]) < 0.1
    assert cross_entropy(line.log_probabilities(x[None, test])[0], y[:, test]) > 0.6


def test_mlp_adds_to_the_offset_and_falls_back_to_it() -> None:
    x, y = planted(1, 900, 20, (3, 5), signal=1.0)
    y[1] = torch.randint(0, 5, (900,), generator=torch.Generator().manual_seed(9))  # which no feature predicts
    y[0, ::5] = -1
    offset = some_offset(y, 5)
    train, held, test = torch.arange(400), torch.arange(400, 700), torch.arange(700, 900)
    probe = fit_mlp(x[0], y, [3, 5], train, held, offset, epochs=15)
    log_p = probe.log_probabilities(x[0, test], offset[:, test])
    assert log_p.shape == (2, 200, 5)
    assert (log_p[0, :, 3:] == -torch.inf).all()
    gain = cross_entropy(offset[:, test], y[:, test]) - cross_entropy(log_p, y[:, test])
    assert gain[0] > 0.3
    assert abs(gain[1]) < 0.02


def test_mlp_is_reproducible_and_keeps_the_global_random_state() -> None:
    x, y = xor(200, 1)
    state = torch.random.get_rng_state()
    first, second, other = (
        fit_mlp(x, y, [2], torch.arange(150), torch.arange(150, 200), seed=s, epochs=2) for s in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.log_probabilities(x), second.log_probabilities(x))
    assert not torch.equal(first.log_probabilities(x), other.log_probabilities(x))
