"""A whole grid of linear probes at once: softmax regression for every feature set and every question.

Each cell (feature set f, target t) minimises, over weight W and a free intercept b,

    mean over samples of -log softmax(offset + x W + b)[label]  +  penalty / 2 * |W|^2

which is convex; scikit-learn's LogisticRegression has the same minimum at C = 1 / (N * penalty). How
it is minimised is in `ghosttrace.probing.solver`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ghosttrace.errors import UserError
from ghosttrace.probing.fitter_utils import base_logits, calibrate, check_finite, cross_entropy, moments, standardised
from ghosttrace.probing.solver import SoftmaxProblem, TargetBatch, solve

CPU_BATCH_FLOATS, GPU_BATCH_FLOATS = (
    2**22,
    2**28,
)  # floats of features and logits worked on together, on a CPU and on a GPU


@dataclass(frozen=True)
class LinearProbe:
    """F feature sets x T targets of linear probes, standardisation inside.

    Attributes:
        mean, scale: float[F, d], of the features fitted on.
        weight: float[F, T, d, C]; 0 for classes that a target does not have.
        bias: float[F, T, C].
        n_classes: of each target; C is the largest.
        gap: float[F, T], nats by which the fit is still above its minimum, as the solver estimates.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    n_classes: tuple[int, ...]
    gap: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """The probe's own, float[F, T, N, C], for features float[F, N, d]."""
        return self._logits(features).transpose(2, 3)

    def log_probabilities(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Natural logarithms, float[F, T, N, C]: -inf for classes that a target does not have.

        Args:
            features: float[F, N, d].
            offset: float[T, N, C], natural-log probabilities to start from.
        """
        base = base_logits(offset, self.n_classes, features.device)
        return (self._logits(features) + base).log_softmax(2).transpose(2, 3)

    def scaled(self, alpha: Tensor) -> "LinearProbe":
        """Logits multiplied by alpha, float[F, T]."""
        return replace(self, weight=self.weight * alpha[..., None, None], bias=self.bias * alpha[..., None])

    def at(self, sets: slice) -> "LinearProbe":
        """The probes of some feature sets."""
        parts = {name: getattr(self, name)[sets] for name in ("mean", "scale", "weight", "bias", "gap")}
        return replace(self, **parts)

    def _logits(self, features: Tensor) -> Tensor:
        """float[F, T, C, N]"""
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
        features: float[F, N, d], on the device to work on.
        labels: int64[T, N]; -1 is missing.
        n_classes: of each target.
        penalty: on the squared weights, greater than 0.
        offset: float[T, N, C], natural-log probabilities that the probe adds to.
        tolerance: nats that the next step must promise for a cell to go on.
        max_passes: over the samples; what has not converged by then says so in `gap`.
        start: probes to begin at.

    Raises:
        UserError: as `fit_path`.
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
    """Fit the grid at several penalties, each begun at the solution before it: give strong ones first.

    Arguments as `fit_grid`. A class of a target that no label names keeps weight 0, and bias 0 where
    there is an offset, else `log(1 / 2N)`.

    Raises:
        UserError: features or offset are not finite; a penalty is not positive; a target has no
            labelled sample or a label that is no class of it; shapes do not belong together.
    """
    _check(features, labels, n_classes, penalties, offset)
    target_batch = TargetBatch.of(labels.to(features.device), n_classes, offset)
    size = features.shape[1] * (features.shape[2] + target_batch.start.numel())
    together = max(1, (CPU_BATCH_FLOATS if features.device.type == "cpu" else GPU_BATCH_FLOATS) // size)
    paths: list[list[LinearProbe]] = []
    for first in range(0, len(features), together):
        chunk = slice(first, first + together)
        begin = None if start is None else (start.weight[chunk], start.bias[chunk])
        paths.append(
            _fit_chunk(features[chunk], target_batch, tuple(n_classes), penalties, tolerance, max_passes, begin)
        )
    return [_joined(parts) for parts in zip(*paths, strict=True)]


def select_penalty(
    path: Sequence[LinearProbe], features: Tensor, labels: Tensor, offset: Tensor | None = None
) -> LinearProbe:
    """Of probes of the same grid, calibrated, the best of each cell by cross-entropy on held-out samples.

    Where none of them helps, alpha is 0 and the cell answers with the offset.

    Args:
        path: as `fit_path` gives it.
        features: float[F, N, d], of validation.
        labels: int64[T, N]; -1 is missing.
        offset: float[T, N, C], as in the fit.
    """
    base = base_logits(offset, path[0].n_classes, features.device)
    labels = labels.to(features.device)
    chosen = []
    for number in range(len(features)):  # a feature set at a time bounds memory
        one = slice(number, number + 1)
        x, losses, scaled = features[one], [], []
        for probe in path:
            part = probe.at(one)
            scaled.append(part.scaled(calibrate(part.logits(x).transpose(2, 3), labels, base)))
            losses.append(cross_entropy(scaled[-1].log_probabilities(x, offset), labels))
        best = torch.stack(losses).nan_to_num(torch.inf).argmin(0)  # [1, T]
        chosen.append(_picked(scaled, best))
    return _joined(chosen)


def _picked(path: Sequence[LinearProbe], best: Tensor) -> LinearProbe:
    """The probe of number best, int64[F, T], in every cell."""

    def pick(name: str) -> Tensor:
        stack = torch.stack([getattr(probe, name) for probe in path])
        index = best[(None, ..., *[None] * (stack.ndim - 3))].expand(1, *stack.shape[1:])
        return stack.gather(0, index)[0]

    return replace(path[0], weight=pick("weight"), bias=pick("bias"), gap=pick("gap"))


def _joined(parts: Sequence[LinearProbe]) -> LinearProbe:
    """Chunks of feature sets as one."""
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
    """The path of some feature sets."""
    mean, scale = moments(features)
    problem = SoftmaxProblem.of(features, mean, scale, target_batch)
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
    """Refuse what cannot be fitted; raises UserError."""
    n, targets = features.shape[1], len(n_classes)
    if labels.shape != (targets, n):
        raise UserError(
            f"labels are {list(labels.shape)}, not [{targets}, {n}]: give one row a target, one column a sample"
        )
    if offset is not None and offset.shape != (targets, n, max(n_classes)):
        raise UserError(
            f"the offset is {list(offset.shape)}, not {[targets, n, max(n_classes)]}: pad it to the most classes"
        )
    if min(penalties) <= 0:
        raise UserError(f"a penalty of {min(penalties):g} has no unique minimum: give one greater than 0")
    for number, (row, classes) in enumerate(zip(labels, n_classes, strict=True)):
        if row.max() < 0:
            raise UserError(f"target {number} has no labelled sample: leave it out, or give more samples")
        if row.max() >= classes:
            raise UserError(f"target {number} has label {int(row.max())} but {classes} classes: count them from 0")
    check_finite(features)
