"""The grid of linear probes equals scikit-learn and scipy, and calibration falls back to the text."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.probes import planted, some_offset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.probing import linear_grid as grid
from ghosttrace.probing.fitter_utils import EXCLUDED_LOG_PROB, base_logits, calibrate, cross_entropy, moments
from ghosttrace.probing.linear_grid import LinearProbe, fit_grid, fit_path, select_penalty
from ghosttrace.probing.probes.mlp import fit_mlp

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=gpu)]
TIGHT = 1e-11  # nats


def standard(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(scale > 1e-6, scale, 1)


def scikit_learn_log_probs(features: Tensor, labels: Tensor, penalty: float) -> np.ndarray:
    known = (labels >= 0).numpy()
    x = standard(features)
    model = LogisticRegression(C=1 / (known.sum() * penalty), tol=1e-8, max_iter=5000)
    return model.fit(x[known], labels.numpy()[known]).predict_log_proba(x)


def scipy_log_probs(features: Tensor, labels: Tensor, classes: int, penalty: float, offset: np.ndarray) -> np.ndarray:
    """Return log-probabilities from minimising the objective with an offset by L-BFGS."""
    known = (labels >= 0).numpy()
    every = standard(features)
    x, y, base = every[known], np.eye(classes)[labels.numpy()[known]], offset[known]
    size = x.shape[1] * classes

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = theta[:size].reshape(-1, classes), theta[size:]
        log_p = log_softmax(base + x @ weight + bias, axis=1)
        error = (np.exp(log_p) - y) / len(x)
        loss = -(y * log_p).sum() / len(x) + penalty / 2 * (weight**2).sum()
        return loss, np.concatenate([(x.T @ error + penalty * weight).ravel(), error.sum(0)])

    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-9}
    solution = minimize(objective, np.zeros(size + classes), jac=True, method="L-BFGS-B", options=options).x
    return log_softmax(offset + every @ solution[:size].reshape(-1, classes) + solution[size:], axis=1)


def check_log_probs(actual: Tensor, expected: np.ndarray, penalty: float) -> None:
    """Check log-probabilities to 1e-3, or to 4e-3 for small penalties, where the minimum is flat."""
    gap = np.abs(actual.double().numpy() - expected)
    assert gap.max() < (1e-3 if penalty > 1e-3 else 4e-3), gap.max()
    assert gap.mean() < (1e-4 if penalty > 1e-3 else 3e-4), gap.mean()


CASES = {
    "well conditioned": {"signal": 0.3},
    "ill conditioned": {"signal": 0.3, "decay": 14.0},
    "no signal": {"signal": 0.0},
    "strong signal": {"signal": 2.0},
    "imbalanced": {"signal": 0.3, "skew": 0.7},
    "imbalanced, ill conditioned, strong": {"signal": 1.0, "skew": 0.7, "decay": 10.0},
    "fewer samples than features": {"signal": 0.3, "n": 30},
}


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_the_grid_equals_scikit_learn(case: str, penalty: float) -> None:
    settings: dict[str, Any] = {"n": 600, **CASES[case]}
    x, y = planted(sets=2, d=40, classes=(5, 5, 5), **settings)
    probe = fit_grid(x, y, [5, 5, 5], penalty, tolerance=TIGHT)
    actual = probe.log_probabilities(x)
    for f, t in np.ndindex(2, 3):
        check_log_probs(actual[f, t], scikit_learn_log_probs(x[f], y[t], penalty), penalty)
    assert (probe.gap < TIGHT).all()


def test_default_tolerance_gives_the_predictions_of_scikit_learn() -> None:
    x, y = planted(1, 2000, 32, (10, 10), signal=0.3)
    probe = fit_grid(x, y, [10, 10], 1e-3).log_probabilities(x)
    for t in range(2):
        expected = scikit_learn_log_probs(x[0], y[t], 1e-3)
        assert np.abs(probe[0, t].numpy() - expected).mean() < 2e-3
        assert (probe[0, t].argmax(1).numpy() == expected.argmax(1)).mean() > 0.995


def test_missing_labels_and_different_numbers_of_classes() -> None:
    x, y = planted(2, 500, 12, (2, 7, 4), signal=0.4)
    y[0, ::3], y[1, 400:] = -1, -1
    actual = fit_grid(x, y, [2, 7, 4], 0.01, tolerance=TIGHT).log_probabilities(x)
    for f, t in np.ndindex(2, 3):
        classes = [2, 7, 4][t]
        expected = (
            scikit_learn_log_probs(x[f], y[t], 0.01)
            if classes > 2
            else scipy_log_probs(x[f], y[t], 2, 0.01, np.zeros((500, 2)))
        )
        check_log_probs(actual[f, t, :, :classes], expected, 0.01)
        assert (actual[f, t, :, classes:] == -torch.inf).all()


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_offsets_equal_scipy(penalty: float) -> None:
    x, y = planted(1, 400, 16, (4, 4), signal=0.5, skew=0.5)
    y[1, :100] = -1
    offset = some_offset(y, 4)
    offset[0, torch.arange(0, 400, 7), (y[0, ::7] + 1) % 4] = -torch.inf  # classes excluded by the text
    offset[0, 5, y[0, 5]] = -torch.inf  # and one wrongly excluded
    actual = fit_grid(x, y, [4, 4], penalty, offset, tolerance=TIGHT).log_probabilities(x, offset)
    assert actual.isfinite().all()
    for t in range(2):
        check_log_probs(
            actual[0, t],
            scipy_log_probs(x[0], y[t], 4, penalty, offset[t].clamp(min=EXCLUDED_LOG_PROB).double().numpy()),
            penalty,
        )


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(8, 60), d=st.integers(1, 20), classes=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    penalty=st.floats(1e-3, 1.0), seed=st.integers(0, 1000), offsets=st.booleans(), missing=st.booleans(),
)  # fmt: skip
def test_gradient_is_zero_at_the_solution(
    n: int, d: int, classes: list[int], penalty: float, seed: int, offsets: bool, missing: bool
) -> None:
    """The gradient of the convex objective, by autograd, is zero, so the solution is the minimum."""
    x, y = planted(2, n, d, tuple(classes), 0.5, seed)
    if missing:
        y[:, ::4] = -1
    offset = some_offset(y, max(classes)) if offsets else None
    probe = fit_grid(x, y, classes, penalty, offset, tolerance=TIGHT)
    for f, t in np.ndindex(2, len(classes)):
        known = y[t] >= 0
        present = y[t, known].unique()
        xs = torch.from_numpy(standard(x[f]))[known]
        weight = probe.weight[f, t].double()[:, present].requires_grad_()
        bias = probe.bias[f, t].double()[present].requires_grad_()
        base = 0 if offset is None else offset[t].double()[known][:, present]
        log_p = (base + xs @ weight + bias).log_softmax(1)
        is_label = y[t, known][:, None] == present
        loss = -log_p[is_label].mean() + penalty / 2 * weight.square().sum()
        loss.backward()
        assert weight.grad is not None and bias.grad is not None
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 5e-4


def test_path_equals_separate_fits_and_warm_start_is_converged() -> None:
    x, y = planted(3, 400, 20, (4, 6), signal=0.3, decay=6.0)
    penalties = [1.0, 0.1, 1e-2]
    path = fit_path(x, y, [4, 6], penalties, tolerance=TIGHT)
    for penalty, probe in zip(penalties, path, strict=True):
        cold = fit_grid(x, y, [4, 6], penalty, tolerance=TIGHT)
        real = cold.log_probabilities(x).isfinite()
        gap = (probe.log_probabilities(x) - cold.log_probabilities(x))[real].abs()
        assert gap.max() < 2e-3
    warm = fit_grid(x, y, [4, 6], penalties[-1], start=path[-1], max_passes=1)
    assert (warm.gap < 1e-6).all()
    torch.testing.assert_close(warm.weight, path[-1].weight, atol=1e-5, rtol=0)
    assert fit_grid(x, y, [4, 6], penalties[-1], max_passes=1).gap.min() > 1e-3  # a cold start is not converged


def test_results_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(5, 200, 8, (3, 4), signal=0.5)
    expected = fit_grid(x, y, [3, 4], 0.01, tolerance=TIGHT)
    monkeypatch.setattr(grid, "CPU_BATCH_FLOATS", 200 * (8 + 8) * 2)
    parts = fit_grid(x, y, [3, 4], 0.01, tolerance=TIGHT)
    torch.testing.assert_close(expected.weight, parts.weight, atol=1e-3, rtol=0)
    assert parts.weight.shape == (5, 2, 8, 4)


def test_class_missing_in_train_stays_unlikely_and_finite() -> None:
    x, y = planted(1, 300, 6, (4,), signal=1.0)
    y[y == 2] = -1
    probe = fit_grid(x, y, [4], 0.01, tolerance=TIGHT)
    actual, known = probe.log_probabilities(x)[0, 0], y[0] >= 0
    assert actual.isfinite().all()
    assert actual[known, 2].exp().mean() < 0.05
    check_log_probs(actual[:, [0, 1, 3]].log_softmax(1), scikit_learn_log_probs(x[0], y[0], 0.01), 0.01)
    assert (probe.weight[0, 0, :, 2] == 0).all()
    assert probe.bias[0, 0, 2].exp() == pytest.approx(1 / (2 * int(known.sum())))
    offset = some_offset(y, 4)
    with_offset = fit_grid(x, y, [4], 0.01, offset)
    assert (with_offset.weight[0, 0, :, 2] == 0).all()
    assert with_offset.bias[0, 0, 2] == 0  # the text's probability of the class is kept
    moved = replace(with_offset, bias=with_offset.bias + 1)
    assert fit_grid(x, y, [4], 0.01, offset, start=moved).bias[0, 0, 2] == 0  # for any starting point


def test_single_class_is_certain() -> None:
    x, y = planted(1, 50, 3, (3,), signal=0.0)
    probe = fit_grid(x, torch.ones_like(y), [3], 0.1)
    assert (probe.log_probabilities(x)[0, 0, :, 1].exp() > 0.95).all()


def test_constant_features_and_identical_rows() -> None:
    x, y = planted(1, 200, 5, (3,), signal=1.0)
    wide = torch.cat([x, torch.full((1, 200, 1), 1e4 / 3), torch.zeros(1, 200, 1)], 2)
    mean, scale = moments(wide)
    assert (scale[0, 5:] == 1).all()
    assert mean[0, 6] == 0
    actual = fit_grid(wide, y, [3], 0.01, tolerance=TIGHT).log_probabilities(wide)
    torch.testing.assert_close(
        actual, fit_grid(x, y, [3], 0.01, tolerance=TIGHT).log_probabilities(x), atol=2e-3, rtol=0
    )
    same = fit_grid(x[:, :1].expand(-1, 200, -1), y, [3], 0.01)
    shares = torch.bincount(y[0]) / 200
    torch.testing.assert_close(same.log_probabilities(x[:, :1])[0, 0, 0].exp(), shares, atol=1e-4, rtol=0)


def best_alpha(logits: Tensor, labels: Tensor, base: Tensor) -> float:
    """Return the best alpha of a grid search."""
    alphas = torch.linspace(0, 4, 2001)
    log_p = (base + alphas[:, None, None] * logits).log_softmax(-1)
    return float(alphas[cross_entropy(log_p, labels).argmin()])


@pytest.mark.parametrize("sharp", [0.0, 0.1, 1.0, 3.0, -1.0])
def test_calibration_finds_the_best_alpha(sharp: float) -> None:
    y = torch.randint(0, 3, (2, 300), generator=torch.Generator().manual_seed(0))
    y[1, :50] = -1
    offset = some_offset(y, 3)
    logits = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(1))
    logits = logits + sharp * torch.nn.functional.one_hot(y.clamp(min=0), 3)
    alpha = calibrate(logits.mT, y, offset.mT)
    assert sharp >= 0 or (alpha == 0).all()  # exactly zero: the offset itself
    for t in range(2):
        assert abs(float(alpha[t]) - best_alpha(logits[t], y[t], offset[t])) < 3e-3


def test_without_signal_the_probe_falls_back_to_the_offset() -> None:
    x, y = planted(6, 600, 60, (4, 4), signal=0.0)
    offset = some_offset(y, 4)
    train, held = slice(0, 300), slice(300, 600)
    path = fit_path(x[:, train], y[:, train], [4, 4], [1.0, 1e-2], offset[:, train])
    chosen = select_penalty(path, x[:, held], y[:, held], offset[:, held])
    text = cross_entropy(offset[:, held], y[:, held])
    loss = cross_entropy(chosen.log_probabilities(x[:, held], offset[:, held]), y[:, held])
    raw = cross_entropy(path[1].log_probabilities(x[:, held], offset[:, held]), y[:, held])
    assert (loss <= text + 1e-6).all()
    assert (loss > text - 0.02).all()
    assert (raw > text + 0.1).all()  # without calibration


def test_selection_takes_the_best_penalty_of_each_set_and_target() -> None:
    x, y = planted(2, 800, 30, (5, 5), signal=0.4)
    x[1] = torch.randn(800, 30, generator=torch.Generator().manual_seed(3))
    train, held = slice(0, 400), slice(400, 800)
    path = fit_path(x[:, train], y[:, train], [5, 5], [10.0, 0.1, 1e-4])
    chosen = select_penalty(path, x[:, held], y[:, held])
    base = base_logits(None, [5, 5], x.device)
    for f, t in np.ndindex(2, 2):
        feature_set, losses = slice(f, f + 1), []
        for probe in path:
            alpha = calibrate(probe.logits(x[:, held]).mT, y[:, held], base)
            losses.append(cross_entropy(probe.scaled(alpha).log_probabilities(x[:, held]), y[:, held])[f, t])
        loss = cross_entropy(chosen.at(feature_set).log_probabilities(x[feature_set, held]), y[:, held])[0, t]
        assert abs(loss - min(losses)) < 1e-6


def test_scaling_multiplies_the_logits() -> None:
    x, y = planted(2, 100, 4, (3, 2), signal=1.0)
    probe = fit_grid(x, y, [3, 2], 0.1)
    alpha = torch.tensor([[0.0, 2.0], [1.0, 0.5]])
    torch.testing.assert_close(probe.scaled(alpha).logits(x), probe.logits(x) * alpha[..., None, None])


@pytest.mark.parametrize("device", DEVICES)
def test_probes_are_on_the_device_of_the_features(device: str) -> None:
    x, y = planted(2, 200, 5, (3, 4), signal=1.0)
    offset = some_offset(y, 4)
    x, y, offset = (part.to(device) for part in (x, y, offset))
    path = fit_path(x, y, [3, 4], [0.1, 0.01], offset)
    mlp = fit_mlp(x[0], y, [3, 4], torch.arange(150), torch.arange(150, 200), offset, epochs=1)
    assert select_penalty(path, x, y, offset).log_probabilities(x, offset).device.type == device
    assert mlp.log_probabilities(x[0], offset).device.type == device


def test_half_precision_features_are_fitted_in_float32() -> None:
    x, y = planted(1, 300, 5, (3,), signal=1.0)
    half, full = (fit_grid(part, y, [3], 0.1) for part in (x.bfloat16(), x.bfloat16().float()))
    assert half.weight.dtype == torch.float32
    torch.testing.assert_close(half.weight, full.weight)


def bad(**changes: Any) -> dict[str, Any]:
    x, y = planted(2, 20, 3, (3,), signal=0.0)
    return {"features": x, "labels": y, "n_classes": [3], "penalty": 0.1} | changes


NAN = torch.zeros(2, 20, 3)
NAN[1, 4, 2] = torch.nan
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": (bad(features=NAN), "feature set 1 holds NaN or infinity"),
    "infinity": (bad(features=torch.full((2, 20, 3), -torch.inf)), "feature set 0 holds NaN or infinity"),
    "shape": (bad(labels=torch.zeros(2, 20, dtype=torch.long)), r"not \[1, 20\]"),
    "unlabelled": (bad(labels=torch.full((1, 20), -1)), "target 0 has no labelled sample"),
    "class": (bad(n_classes=[2], labels=torch.full((1, 20), 2)), "target 0 has label 2 but 2 classes"),
    "penalty": (bad(penalty=0.0), "greater than 0"),
    "offset shape": (bad(offset=torch.zeros(1, 20, 2)), "pad it"),
    "offset": (bad(offset=torch.full((1, 20, 3), torch.nan)), "the offset holds NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        fit_grid(**arguments)


def test_other_fitters_refuse_invalid_features() -> None:
    x, y = planted(1, 20, 3, (3,), signal=0.0)
    probe = fit_grid(x, y, [3], 0.1)
    rows = torch.arange(20)
    for call in (
        lambda: fit_mlp(NAN[1], y, [3], rows[:10], rows[10:]),
        lambda: probe.log_probabilities(NAN[1:]),
        lambda: fit_mlp(x[0], y, [3], rows[:0], rows),
    ):
        with pytest.raises(UserError):
            call()


def test_probe_of_one_set_equals_the_grid() -> None:
    x, y = planted(3, 60, 4, (3,), signal=1.0)
    probe = fit_grid(x, y, [3], 0.1)
    single = probe.at(slice(1, 2))
    assert isinstance(single, LinearProbe)
    assert torch.equal(single.log_probabilities(x[1:2])[0], probe.log_probabilities(x)[1])


def test_features_that_are_constant_up_to_rounding() -> None:
    """Like first-layer keys of equal texts: LAPACK returns NaN for a matrix of values near 1e-12."""
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(640, generator=generator)
    features = (level + 1e-7 * torch.randn(800, 640, generator=generator))[None]
    labels = torch.randint(0, 10, (3, 800), generator=generator)
    probe = fit_grid(features, labels, [10, 10, 10], 0.01, offset=torch.full((3, 800, 10), 0.1).log())
    assert probe.log_probabilities(features).isfinite().all()
