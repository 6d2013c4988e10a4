"""Solver of many softmax regressions with an L2 penalty in parallel.

A cell is one feature set and one target. A pass over the samples takes two matrix products per feature set, for all
of its targets together. L-BFGS (`ghosttrace.probing.lbfgs`) works in preconditioned coordinates, in which an
approximation of the Hessian at the start is the identity:

    H0 = (covariance of the classes) x (X'X / N)  +  penalty

Its factors treat classes and features separately, so one eigendecomposition of X'X serves every target and every
penalty. H0 is exact if all samples start at the same probabilities; the first step is then a Newton step. A cell is
finished once the predicted decrease of its next step is at most `tolerance` nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghosttrace.probing.fitter_utils import base_logits
from ghosttrace.probing.lbfgs import minimise

PASSES_PER_ROUND = 25  # passes before H0 is recomputed


@dataclass(frozen=True)
class TargetBatch:
    """The labels and offsets of T targets, prepared for the solver.

    Attributes:
        base: float[T, C, N] or [T, C, 1], added to the logits; -inf for absent classes.
        weight: float[T, N], weight of each sample; sums to 1 over labelled samples, 0 where a label is missing.
        class_weight: float[T, C, N], the weight where the sample has the class, else 0.
        start: float[T, C], initial intercepts; absent classes keep them.
        absent_classes: bool[T, C], classes without a labelled sample, which are not fitted.
    """

    base: Tensor
    weight: Tensor
    class_weight: Tensor
    start: Tensor
    absent_classes: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, n_classes: Sequence[int], offset: Tensor | None) -> "TargetBatch":
        """Prepare labels, int64[T, N], with the number of classes of each target and an offset, float[T, N, C]."""
        classes = torch.arange(max(n_classes), device=labels.device)
        one_hot = labels[:, None] == classes[:, None]
        counts = one_hot.sum(2)
        n = counts.sum(1, keepdim=True)
        weight = (labels >= 0) / n
        # Start at the optimal intercepts without features; an offset already includes them.
        start = (
            torch.zeros_like(counts, dtype=torch.float32) if offset is not None else (counts.clamp(min=0.5) / n).log()
        )
        start[classes >= torch.tensor(n_classes, device=labels.device)[:, None]] = 0.0
        base = base_logits(offset, n_classes, labels.device).masked_fill((counts == 0)[..., None], -torch.inf)
        return cls(base, weight, one_hot * weight[:, None], start, counts == 0)


@dataclass(frozen=True)
class SoftmaxProblem:
    """The regressions of F feature sets and T targets; the cell of a set and a target is `set * T + target`.

    Parameters of cells are float[cells, C, D] with D = d + 1, the intercept last. Cells are passed as int64 indices
    on the CPU, in ascending order.

    Attributes:
        x: float[F, N, D], standardised features; the last feature is 1.
        eigenvectors: float[F, D, D], of X'X / N, in columns.
        eigenvalues: float[F, D], of X'X / N.
        label_gradient: float[F * T, C, D], weighted sum of the features of each class, which the gradient subtracts.
        target_batch: The targets.
    """

    x: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor
    label_gradient: Tensor
    target_batch: TargetBatch

    @classmethod
    def from_features(
        cls, features: Tensor, mean: Tensor, scale: Tensor, target_batch: TargetBatch
    ) -> "SoftmaxProblem":
        """Prepare features, float[F, N, d], with their mean and scale, float[F, d] each."""
        x = torch.ones(*features.shape[:2], features.shape[2] + 1, device=features.device)
        torch.sub(features, mean[:, None], out=x[..., :-1])
        x[..., :-1] /= scale[:, None]
        gram = x.transpose(1, 2) @ x / x.shape[1]
        # Features are centred, so the intercept is a separate eigenvector with eigenvalue 1.
        eigenvalues, eigenvectors = torch.ones(x.shape[::2], device=x.device), torch.zeros_like(gram)
        eigenvectors[:, -1, -1] = 1.0
        # In float32, LAPACK returns NaN for whole matrices if many features are duplicates.
        feature_values, feature_vectors = torch.linalg.eigh(gram[:, :-1, :-1].double())
        eigenvalues[:, :-1], eigenvectors[:, :-1, :-1] = feature_values.clamp(min=0.0), feature_vectors
        cells = torch.arange(len(x) * len(target_batch.weight))
        label_gradient = cls(x, eigenvectors, eigenvalues, x, target_batch).matmul_by_set(
            cells, target_batch.class_weight.repeat(len(x), 1, 1), x
        )
        return cls(x, eigenvectors, eigenvalues, label_gradient, target_batch)

    def set_and_target_indices(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of the feature sets and of the targets of cells."""
        targets = len(self.target_batch.weight)
        return cells // targets, cells % targets

    def matmul_by_set(self, cells: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Multiply each cell's matrix, `left` float[cells, a, b], by that of its feature set, `right` float[F, b, c].

        Cells of one feature set share one matrix product.
        """
        out = left.new_empty(*left.shape[:2], right.shape[2])
        sets, counts = torch.unique_consecutive(self.set_and_target_indices(cells)[0], return_counts=True)
        first = 0
        for number, count in zip(sets.tolist(), counts.tolist(), strict=True):
            rows = slice(first, first + count)
            torch.mm(left[rows].flatten(0, 1), right[number], out=out[rows].flatten(0, 1))
            first += count
        return out

    def probabilities(self, cells: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return weighted class probabilities, float[cells, C, N], and the mean log partition, float64[cells]."""
        targets = self.set_and_target_indices(cells)[1].to(theta.device)
        z = self.matmul_by_set(cells, theta, self.x.transpose(1, 2))
        z += self.target_batch.base[targets]
        largest = z.amax(1, keepdim=True)
        total = z.sub_(largest).exp_().sum(1, keepdim=True)
        weight = self.target_batch.weight[targets][:, None]
        partition = (total.log().add_(largest) * weight).sum((1, 2), dtype=torch.float64)
        return z.mul_(weight / total), partition

    def evaluate(self, cells: Tensor, theta: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Return the objective up to a constant, float64[cells], and its gradient, float[cells, C, D]."""
        return self.objective(cells, theta, penalty, *self.probabilities(cells, theta))

    def objective(
        self, cells: Tensor, theta: Tensor, penalty: float, p: Tensor, partition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute `evaluate` from the output `p, partition` of `probabilities`."""
        label_gradient = self.label_gradient[cells.to(theta.device)]
        shrink = penalty * theta
        shrink[..., -1] = 0.0
        loss = partition + (theta.double() * (shrink / 2 - label_gradient)).sum((1, 2))
        return loss, self.matmul_by_set(cells, p, self.x).sub_(label_gradient).add_(shrink)


@dataclass(frozen=True)
class PreconditionedCoordinates:
    """Coordinates phi, float[cells, C, D], in which H0 is the identity.

    The parameters are `theta = origin + classes @ (root * phi) @ eigenvectors.T`.

    Attributes:
        problem: The problem.
        cells: int64[cells], indices of its cells.
        origin: float[cells, C, D], parameters at phi = 0.
        classes: float[cells, C, C], eigenvectors of the covariance of the classes.
        root: float[cells, C, D], inverse square root of H0's eigenvalues.
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
        """Build the coordinates around `origin`, where the weighted probabilities are p, float[cells, C, N]."""
        sets, targets = (part.to(p.device) for part in problem.set_and_target_indices(cells))
        n = (problem.target_batch.weight > 0).sum(1)[targets]
        spread = torch.diag_embed(p.sum(2)) - n[:, None, None] * (p @ p.transpose(1, 2))
        # A constant added to all classes does not change the objective, so any curvature is valid in that direction.
        flat = (~problem.target_batch.absent_classes).to(p)[targets]
        eigenvalues, eigenvectors = torch.linalg.eigh(spread + flat[:, :, None] * flat[:, None] / flat.shape[1])
        curvature = eigenvalues.clamp(min=0.0)[:, :, None] * problem.eigenvalues[sets][:, None]
        curvature[..., :-1] += penalty
        return cls(problem, cells, origin, eigenvectors, curvature.clamp(min=1e-6).rsqrt())

    def theta(self, rows: Tensor, phi: Tensor) -> Tensor:
        """Return the parameters of the cells in `rows`, indices into `cells`, from their phi."""
        at = rows.to(phi.device)
        moved = self.classes[at] @ (self.root[at] * phi)
        return self.origin[at] + self.problem.matmul_by_set(
            self.cells[rows], moved, self.problem.eigenvectors.transpose(1, 2)
        )

    def gradient(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Convert the gradient of the cells in `rows` from theta to phi."""
        at = rows.to(gradient.device)
        rotated = self.problem.matmul_by_set(self.cells[rows], gradient, self.problem.eigenvectors)
        return self.root[at] * (self.classes[at].transpose(1, 2) @ rotated)


def solve(
    problem: SoftmaxProblem, theta: Tensor, penalty: float, tolerance: float, max_passes: int
) -> tuple[Tensor, Tensor]:
    """Minimise the objective of every cell.

    Args:
        problem: The problem.
        theta: float[cells, C, D], initial parameters.
        penalty: Factor of half the squared weights.
        tolerance: A cell stops if the predicted decrease of its next step is at most this, in nats.
        max_passes: Maximum number of passes over the samples.

    Returns:
        The parameters, float[cells, C, D], and the predicted decrease of the next step of each cell, float[cells].
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
    """Run L-BFGS on some cells, preconditioned at their current parameters."""
    p, partition = problem.probabilities(cells, theta)
    coordinates = PreconditionedCoordinates.at(problem, cells, theta, penalty, p)
    loss, gradient = problem.objective(cells, theta, penalty, p, partition)

    def evaluate(rows: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = problem.evaluate(cells[rows], coordinates.theta(rows, phi), penalty)
        return loss, coordinates.gradient(rows, gradient)

    all_rows = torch.arange(len(cells))
    phi, gap = minimise(evaluate, loss, coordinates.gradient(all_rows, gradient), tolerance, passes)
    return coordinates.theta(all_rows, phi), gap
