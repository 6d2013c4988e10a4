"""Softmax regressions with an L2 penalty, many cells side by side.

A cell is one feature set and one target. What cells can share is shared. A pass over the samples is
two matrix products a feature set, for all of its targets. And L-BFGS (`ghosttrace.probing.lbfgs`) works in
coordinates in which the curvature at the start, with classes and features taken apart, is the identity:

    H0 = (covariance of the classes) x (X'X / N)  +  penalty

so that one eigendecomposition of X'X serves every target and every penalty. Where all samples start
at the same probabilities H0 is exact, and the first step is Newton's. A cell whose next step promises
less than `tolerance` nats leaves the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghosttrace.probing.fitter_utils import base_logits
from ghosttrace.probing.lbfgs import minimise

PASSES_PER_ROUND = 25  # passes until the curvature is taken anew


@dataclass(frozen=True)
class TargetBatch:
    """T targets, ready to be fitted.

    Attributes:
        base: float[T, C, N] or [T, C, 1], added to the logits; -inf for classes that are not fitted.
        weight: float[T, N], sums to 1 over labelled samples; 0 where a label is missing.
        class_weight: float[T, C, N], that weight where the sample has the class.
        start: float[T, C], intercepts to begin at; final for classes that are not fitted.
        absent_classes: bool[T, C], classes that are not fitted.
    """

    base: Tensor
    weight: Tensor
    class_weight: Tensor
    start: Tensor
    absent_classes: Tensor

    @classmethod
    def of(cls, labels: Tensor, n_classes: Sequence[int], offset: Tensor | None) -> "TargetBatch":
        """From int64[T, N] labels, the number of classes of each target, and float[T, N, C] or no offset."""
        classes = torch.arange(max(n_classes), device=labels.device)
        found = labels[:, None] == classes[:, None]
        counts = found.sum(2)
        n = counts.sum(1, keepdim=True)
        weight = (labels >= 0) / n
        # The best intercepts without features; an offset holds them already.
        start = (
            torch.zeros_like(counts, dtype=torch.float32) if offset is not None else (counts.clamp(min=0.5) / n).log()
        )
        start[classes >= torch.tensor(n_classes, device=labels.device)[:, None]] = 0.0
        base = base_logits(offset, n_classes, labels.device).masked_fill((counts == 0)[..., None], -torch.inf)
        return cls(base, weight, found * weight[:, None], start, counts == 0)


@dataclass(frozen=True)
class SoftmaxProblem:
    """The cells of F feature sets and T targets; cell = set * T + target.

    Parameters of cells are float[cells, C, D], D = d + 1, the intercept last. Cells are given as
    int64 on the CPU, in ascending order.

    Attributes:
        x: float[F, N, D], standardised, the last feature 1.
        vectors, values: float[F, D, D] and [F, D], of X'X / N; eigenvectors are columns.
        label_gradient: float[F * T, C, D], what the labels add to the gradient.
        target_batch: the targets.
    """

    x: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor
    label_gradient: Tensor
    target_batch: TargetBatch

    @classmethod
    def of(cls, features: Tensor, mean: Tensor, scale: Tensor, target_batch: TargetBatch) -> "SoftmaxProblem":
        """From float[F, N, d] features with their moments, float[F, d]."""
        x = torch.ones(*features.shape[:2], features.shape[2] + 1, device=features.device)
        torch.sub(features, mean[:, None], out=x[..., :-1])
        x[..., :-1] /= scale[:, None]
        gram = x.transpose(1, 2) @ x / x.shape[1]
        # Features are centred: the intercept is an eigenvector of its own, of eigenvalue 1.
        eigenvalues, eigenvectors = torch.ones(x.shape[::2], device=x.device), torch.zeros_like(gram)
        eigenvectors[:, -1, -1] = 1.0
        # In float32 LAPACK makes NaN of whole matrices where many features repeat one another.
        inner, turned = torch.linalg.eigh(gram[:, :-1, :-1].double())
        eigenvalues[:, :-1], eigenvectors[:, :-1, :-1] = inner.clamp(min=0.0), turned
        cells = torch.arange(len(x) * len(target_batch.weight))
        label_gradient = cls(x, eigenvectors, eigenvalues, x, target_batch).matmul_by_set(
            cells, target_batch.class_weight.repeat(len(x), 1, 1), x
        )
        return cls(x, eigenvectors, eigenvalues, label_gradient, target_batch)

    def set_and_target_indices(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Feature sets and targets of cells."""
        targets = len(self.target_batch.weight)
        return cells // targets, cells % targets

    def matmul_by_set(self, cells: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Each cell's float[a, b] times its feature set's, float[F, b, c]; one product a feature set."""
        out = left.new_empty(*left.shape[:2], right.shape[2])
        sets, counts = torch.unique_consecutive(self.set_and_target_indices(cells)[0], return_counts=True)
        first = 0
        for number, count in zip(sets.tolist(), counts.tolist(), strict=True):
            rows = slice(first, first + count)
            torch.mm(left[rows].flatten(0, 1), right[number], out=out[rows].flatten(0, 1))
            first += count
        return out

    def probabilities(self, cells: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted probabilities, float[cells, C, N], and the mean log of what they were divided by, float64[cells]."""
        targets = self.set_and_target_indices(cells)[1].to(theta.device)
        z = self.matmul_by_set(cells, theta, self.x.transpose(1, 2))
        z += self.target_batch.base[targets]
        most = z.amax(1, keepdim=True)
        total = z.sub_(most).exp_().sum(1, keepdim=True)
        weight = self.target_batch.weight[targets][:, None]
        partition = (total.log().add_(most) * weight).sum((1, 2), dtype=torch.float64)
        return z.mul_(weight / total), partition

    def evaluate(self, cells: Tensor, theta: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """The objective up to a constant, float64[cells], and its gradient, float[cells, C, D]."""
        return self.objective(cells, theta, penalty, *self.probabilities(cells, theta))

    def objective(
        self, cells: Tensor, theta: Tensor, penalty: float, p: Tensor, partition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`evaluate` where `probabilities` are known."""
        label_gradient = self.label_gradient[cells.to(theta.device)]
        shrink = penalty * theta
        shrink[..., -1] = 0.0
        loss = partition + (theta.double() * (shrink / 2 - label_gradient)).sum((1, 2))
        return loss, self.matmul_by_set(cells, p, self.x).sub_(label_gradient).add_(shrink)


@dataclass(frozen=True)
class PreconditionedCoordinates:
    """phi, float[cells, C, D], with H0 the identity: `theta = origin + classes (root * phi) features'`.

    Attributes:
        problem: whose parameters these are.
        cells: int64[cells], which of its cells these are.
        origin: float[cells, C, D], where phi is 0.
        classes: float[cells, C, C], eigenvectors of the covariance of the classes.
        root: float[cells, C, D], one over the root of H0's eigenvalues.
    """

    problem: SoftmaxProblem
    cells: Tensor
    origin: Tensor
    classes: Tensor
    root: Tensor

    @classmethod
    def at(
        cls, problem: SoftmaxProblem, cells: Tensor, origin: Tensor, penalty: float, p: Tensor
    ) -> "PreconditionedCoordinates":
        """Curvature at `origin`, where these cells have the weighted probabilities p, float[cells, C, N]."""
        sets, targets = (part.to(p.device) for part in problem.set_and_target_indices(cells))
        n = (problem.target_batch.weight > 0).sum(1)[targets]
        spread = torch.diag_embed(p.sum(2)) - n[:, None, None] * (p @ p.transpose(1, 2))
        # Along a constant added to all classes the objective is flat: any curvature will do there.
        flat = (~problem.target_batch.absent_classes).to(p)[targets]
        eigenvalues, eigenvectors = torch.linalg.eigh(spread + flat[:, :, None] * flat[:, None] / flat.shape[1])
        curvature = eigenvalues.clamp(min=0.0)[:, :, None] * problem.eigenvalues[sets][:, None]
        curvature[..., :-1] += penalty
        return cls(problem, cells, origin, eigenvectors, curvature.clamp(min=1e-6).rsqrt())

    def theta(self, rows: Tensor, phi: Tensor) -> Tensor:
        """Parameters of some of these cells."""
        at = rows.to(phi.device)
        moved = self.classes[at] @ (self.root[at] * phi)
        return self.origin[at] + self.problem.matmul_by_set(
            self.cells[rows], moved, self.problem.eigenvectors.transpose(1, 2)
        )

    def gradient(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """With respect to phi, of a gradient with respect to theta."""
        at = rows.to(gradient.device)
        turned = self.problem.matmul_by_set(self.cells[rows], gradient, self.problem.eigenvectors)
        return self.root[at] * (self.classes[at].transpose(1, 2) @ turned)


def solve(
    problem: SoftmaxProblem, theta: Tensor, penalty: float, tolerance: float, max_passes: int
) -> tuple[Tensor, Tensor]:
    """Minimise every cell, from theta, float[cells, C, D].

    Returns:
        theta, and the nats by which each cell is still above its minimum, as its last step estimates.
    """
    theta, gap = theta.clone(), theta.new_full((len(theta),), torch.inf)
    cells = torch.arange(len(theta))
    for done in range(0, max_passes, PASSES_PER_ROUND):
        at = cells.to(theta.device)
        theta[at], gap[at] = _round(
            problem, cells, theta[at], penalty, tolerance, min(PASSES_PER_ROUND, max_passes - done)
        )
        cells = cells[(gap[at] > tolerance).cpu()]
        if not len(cells):
            break
    return theta, gap


def _round(
    problem: SoftmaxProblem, cells: Tensor, theta: Tensor, penalty: float, tolerance: float, passes: int
) -> tuple[Tensor, Tensor]:
    """`solve` some cells in the coordinates of where they are now."""
    p, partition = problem.probabilities(cells, theta)
    coordinates = PreconditionedCoordinates.at(problem, cells, theta, penalty, p)
    loss, gradient = problem.objective(cells, theta, penalty, p, partition)

    def evaluate(rows: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = problem.evaluate(cells[rows], coordinates.theta(rows, phi), penalty)
        return loss, coordinates.gradient(rows, gradient)

    every = torch.arange(len(cells))
    phi, gap = minimise(evaluate, loss, coordinates.gradient(every, gradient), tolerance, passes)
    return coordinates.theta(every, phi), gap
