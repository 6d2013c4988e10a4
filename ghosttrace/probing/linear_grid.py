"""Grids of linear probes: one softmax regression per feature set and target, fitted together.

Each cell (feature set f, target t) minimises, over the weight W and an unpenalised intercept b,

    mean over samples of -log softmax(offset + x W + b)[label]  +  penalty / 2 * |W|^2

which is convex. scikit-learn's LogisticRegression has the same minimum at C = 1 / (N * penalty). The solver is
`ghosttrace.probing.solver`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.probing.fitter_utils import base_logits, calibrate, check_finite, cross_entropy, moments, standardised
from ghosttrace.probing.solver import SoftmaxProblem, TargetBatch, solve

# Maximum number of floats of features and logits per chunk of feature sets.
CPU_BATCH_FLOATS, GPU_BATCH_FLOATS = 2**22, 2**28


@dataclass(frozen=True)
class LinearProbe:
    """A grid of F x T fitted linear probes, for F feature sets and T targets, standardisation included.

    Attributes:
        mean, scale: float[F, d], of the features fitted on.
        weight: float[F, T, d, C]; 0 for classes that a target lacks.
        bias: float[F, T, C].
        n_classes: Number of classes of each target; C is their maximum.
        gap: float[F, T], estimated difference between the final and the minimum loss, in nats.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    n_classes: tuple[int, ...]
    gap: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the probes' own logits, float[F, T, N, C], without an offset, for features float[F, N, d]."""
        return self._logits(features).transpose(2, 3)

    def log_probabilities(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the predicted log-probabilities, float[F, T, N, C]; -inf for classes that a target lacks.

        Args:
            features: float[F, N, d].
            offset: float[T, N, C], natural-log probabilities added to the logits.
        """
        base = base_logits(offset, self.n_classes, features.device)
        return (self._logits(features) + base).log_softmax(2).transpose(2, 3)

    def scaled(self, alpha: Tensor) -> "LinearProbe":
        """Return the probes with weights and biases, and so logits, multiplied by alpha, float[F, T]."""
        return replace(self, weight=self.weight * alpha[..., None, None], bias=self.bias * alpha[..., None])

    def at(self, sets: slice) -> "LinearProbe":
        """Return the probes of the feature sets in a slice."""
        parts = {name: getattr(self, name)[sets] for name in ("mean", "scale", "weight", "bias", "gap")}
        return replace(self, **parts)

    def _logits(self, features: Tensor) -> Tensor:
        """Return logits with classes before samples, float[F, T, C, N]."""
        x = standardised(features, self.mean, self.scale)
        weight = self.weight.transpose(2, 3).flatten(1, 2)  # [F, TC, d]
        logits = torch.baddbmm(self.bias.flatten(1)[..., None], weight, x.transpose(1, 2))
        return logits.unflatten(1, self.bias.shape[1:])


def fit_grid(
    features: Tensor,
    labels: Tensor,
    n_classes: Sequence[int],
    penalty: float,
    offset: Tensor | None = None,
    tolerance: float = 1e-8,
    max_passes: int = 300,
    start: LinearProbe | None = None,
) -> LinearProbe:
    """Fit one probe per feature set and target.

    Args:
        features: float[F, N, d], on the device to fit on.
        labels: int64[T, N]; -1 where a label is missing.
        n_classes: Number of classes of each target.
        penalty: Factor of half the squared weights, greater than 0.
        offset: float[T, N, C], natural-log probabilities added to the logits.
        tolerance: A cell stops if the predicted decrease of its next step is at most this, in nats.
        max_passes: Maximum number of passes over the samples; `gap` exceeds `tolerance` where it was reached.
        start: Probes to start from.

    Returns:
        The fitted grid.

    Raises:
        UserError: See `fit_path`.
    """
    return fit_path(features, labels, n_classes, [penalty], offset, tolerance, max_passes, start)[0]


def fit_path(
    features: Tensor,
    labels: Tensor,
    n_classes: Sequence[int],
    penalties: Sequence[float],
    offset: Tensor | None = None,
    tolerance: float = 1e-8,
    max_passes: int = 300,
    start: LinearProbe | None = None,
) -> list[LinearProbe]:
    """Fit the grid at several penalties, each starting from the previous solution.

    Order the penalties from large to small. The other arguments are those of `fit_grid`. A class without a labelled
    sample has weight 0. Its bias is 0 with an offset, else `log(1 / 2N)`.

    Returns:
        One grid per penalty.

    Raises:
        UserError: Features or offset are not finite, a penalty is not positive, a target has no labelled sample or a
            label outside its classes, or shapes do not match.
    """
    _check(features, labels, n_classes, penalties, offset)
    target_batch = TargetBatch.from_labels(labels.to(features.device), n_classes, offset)
    size = features.shape[1] * (features.shape[2] + target_batch.start.numel())
    sets_per_chunk = max(1, (CPU_BATCH_FLOATS if features.device.type == "cpu" else GPU_BATCH_FLOATS) // size)
    paths: list[list[LinearProbe]] = []
    for first in range(0, len(features), sets_per_chunk):
        chunk = slice(first, first + sets_per_chunk)
        begin = None if start is None else (start.weight[chunk], start.bias[chunk])
        paths.append(
            _fit_chunk(features[chunk], target_batch, tuple(n_classes), penalties, tolerance, max_passes, begin)
        )
    return [_concatenated(parts) for parts in zip(*paths, strict=True)]


def select_penalty(
    path: Sequence[LinearProbe], features: Tensor, labels: Tensor, offset: Tensor | None = None
) -> LinearProbe:
    """Calibrate every probe of a path, and select for each cell the one with the lowest held-out cross-entropy.

    If no probe of a cell improves on the offset, its weights are scaled to 0 and it predicts the offset.

    Args:
        path: Grids that differ in their penalty, as returned by `fit_path`.
        features: float[F, N, d], of the validation samples.
        labels: int64[T, N], of the validation samples; -1 where a label is missing.
        offset: float[T, N, C], of the validation samples, None if the fit had none.

    Returns:
        One grid with the selected probes, calibrated.
    """
    base = base_logits(offset, path[0].n_classes, features.device)
    labels = labels.to(features.device)
    chosen = []
    for number in range(len(features)):  # one feature set at a time, to bound memory
        this_set = slice(number, number + 1)
        x, losses, scaled = features[this_set], [], []
        for probe in path:
            part = probe.at(this_set)
            scaled.append(part.scaled(calibrate(part.logits(x).transpose(2, 3), labels, base)))
            losses.append(cross_entropy(scaled[-1].log_probabilities(x, offset), labels))
        best = torch.stack(losses).nan_to_num(torch.inf).argmin(0)  # [1, T]
        chosen.append(_select_cells(scaled, best))
    return _concatenated(chosen)


def _select_cells(path: Sequence[LinearProbe], best: Tensor) -> LinearProbe:
    """Take every cell from the grid whose index in `path` is given by `best`, int64[F, T]."""

    def pick(name: str) -> Tensor:
        stack = torch.stack([getattr(probe, name) for probe in path])
        index = best[(None, ..., *[None] * (stack.ndim - 3))].expand(1, *stack.shape[1:])
        return stack.gather(0, index)[0]

    return replace(path[0], weight=pick("weight"), bias=pick("bias"), gap=pick("gap"))


def _concatenated(parts: Sequence[LinearProbe]) -> LinearProbe:
    """Concatenate grids along their feature sets."""
    mean, scale, weight, bias, gap = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "scale", "weight", "bias", "gap")
    )
    return LinearProbe(mean, scale, weight, bias, parts[0].n_classes, gap)


def _fit_chunk(
    features: Tensor,
    target_batch: TargetBatch,
    n_classes: tuple[int, ...],
    penalties: Sequence[float],
    tolerance: float,
    max_passes: int,
    begin: tuple[Tensor, Tensor] | None,
) -> list[LinearProbe]:
    """Fit the path of one chunk of feature sets."""
    mean, scale = moments(features)
    problem = SoftmaxProblem.from_features(features, mean, scale, target_batch)
    cells, absent_classes = (len(features), len(n_classes)), target_batch.absent_classes
    theta = torch.zeros(*cells, max(n_classes), features.shape[2] + 1, device=features.device)
    theta[..., -1] = target_batch.start
    if begin is not None:
        theta[..., :-1], theta[..., -1] = begin[0].transpose(2, 3), begin[1].where(~absent_classes, target_batch.start)
    path = []
    for penalty in penalties:
        flat, gap = solve(problem, theta.flatten(0, 1), penalty, tolerance, max_passes)
        theta = flat.unflatten(0, cells)
        weight, bias = theta[..., :-1].transpose(2, 3).contiguous(), theta[..., -1].contiguous()
        path.append(LinearProbe(mean, scale, weight, bias, n_classes, gap.unflatten(0, cells)))
    return path


def _check(
    features: Tensor, labels: Tensor, n_classes: Sequence[int], penalties: Sequence[float], offset: Tensor | None
) -> None:
    """Raise UserError for arguments that cannot be fitted."""
    n, targets = features.shape[1], len(n_classes)
    if labels.shape != (targets, n):
        raise UserError(
            f"labels are {list(labels.shape)}, not [{targets}, {n}]: give one row per target and one column per sample"
        )
    if offset is not None and offset.shape != (targets, n, max(n_classes)):
        raise UserError(
            f"the offset is {list(offset.shape)}, not {[targets, n, max(n_classes)]}: "
            "pad it to the largest number of classes"
        )
    if min(penalties) <= 0:
        raise UserError(f"a penalty of {min(penalties):g} has no unique minimum: give one greater than 0")
    for number, (row, classes) in enumerate(zip(labels, n_classes, strict=True)):
        if row.max() < 0:
            raise UserError(f"target {number} has no labelled sample: remove it, or give at least one")
        if row.max() >= classes:
            raise UserError(f"target {number} has label {int(row.max())} but {classes} classes: count classes from 0")
    check_finite(features)
