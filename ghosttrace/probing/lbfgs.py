"""L-BFGS for many convex functions in parallel (Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.4)."""

from collections.abc import Callable

import torch
from torch import Tensor

HISTORY_LENGTH = 8  # pairs of step and gradient difference
MIN_STEP = 1e-4  # a line search with a smaller step has reached the precision of float32
LOSS_NOISE_NATS = 1e-6  # nats; rounding error of a loss with float32 terms (epsilon of Hager and Zhang)


def minimise(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    loss: Tensor,
    gradient: Tensor,
    tolerance: float,
    max_passes: int,
) -> tuple[Tensor, Tensor]:
    """Minimise many convex functions, called cells, with L-BFGS from 0 and one line search per cell.

    If a step fails Armijo's test, that cell tries a shorter step in the next pass, while the other cells continue.

    Args:
        evaluate: Takes indices of cells, int64 on the CPU, ascending, and their parameters, float[n, ...]. Returns
            losses, float64[n], and gradients, float[n, ...].
        loss: float64[cells], losses at 0.
        gradient: float[cells, ...], gradients at 0.
        tolerance: A cell stops if the predicted decrease of its next step is at most this.
        max_passes: Maximum number of evaluations, the one at 0 included.

    Returns:
        The parameters, float[cells, ...], and the predicted decrease of the next step when each cell stopped,
        float[cells].
    """
    solution, gaps = torch.zeros_like(gradient), gradient.new_full((len(gradient),), torch.inf)
    cells, x = torch.arange(len(gradient)), solution
    step, history = torch.ones_like(loss), list[tuple[Tensor, Tensor, Tensor]]()
    for passes_left in range(max_passes - 1, -1, -1):
        direction = _direction(gradient, history)
        slope = _dot(gradient, direction)
        stop = (-slope / 2 <= tolerance) | (step < MIN_STEP) | (passes_left == 0)
        if stop.any():
            indices = cells.to(stop.device)
            solution[indices[stop]], gaps[indices[stop]] = x[stop], -slope[stop].float() / 2
            active = ~stop
            cells = cells[active.cpu()]
            if not len(cells):
                break
            x, loss, gradient, direction, slope, step = (
                part[active] for part in (x, loss, gradient, direction, slope, step)
            )
            history = [(s[active], y[active], rho[active]) for s, y, rho in history]
        moved = x + _wide(step, x) * direction
        new_loss, new_gradient = evaluate(cells, moved)
        drop = new_loss - loss
        # If rounding hides the decrease, accept by the slope at the new point (Hager and Zhang 2005, equation 4.1).
        approximately_lower = (drop <= LOSS_NOISE_NATS) & (_dot(new_gradient, direction) <= -0.8 * slope)
        better = (drop <= 1e-4 * step * slope) | approximately_lower
        # A rejected step enters the history as zeros with rho 0, which has no effect.
        s, y = (torch.where(_wide(better, x), new - old, 0.0) for new, old in ((moved, x), (new_gradient, gradient)))
        curvature = _dot(s, y)
        rho = torch.where(curvature > 1e-7 * (_dot(s, s) * _dot(y, y)).sqrt(), 1 / curvature, 0.0)
        history = [*history, (s, y, rho)][-HISTORY_LENGTH:]
        parabola = -slope * step.square() / (2 * (drop - slope * step))
        step = torch.where(better, 1.0, parabola.clamp(0.1 * step, 0.5 * step).nan_to_num(0.1))
        x, gradient = (torch.where(_wide(better, x), new, old) for new, old in ((moved, x), (new_gradient, gradient)))
        loss = torch.where(better, new_loss, loss)
    return solution, gaps


def _direction(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the descent direction: minus the approximate inverse Hessian times the gradient."""
    q, shares = gradient, []
    for s, y, rho in reversed(history):
        share = rho * _dot(s, q)
        q = q - _wide(share, q) * y
        shares.append(share)
    size = torch.ones_like(_dot(q, q))
    for _, y, rho in history:  # the newest pair with rho > 0 sets the scale
        size = torch.where(rho > 0, 1 / (rho * _dot(y, y)), size)
    q = _wide(size, q) * q
    for (s, y, rho), share in zip(history, reversed(shares), strict=True):
        q = q + _wide(share - rho * _dot(y, q), q) * s
    return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return one inner product per fit, float64[fits], of tensors whose first axis is the fits."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()


def _wide(per_cell: Tensor, like: Tensor) -> Tensor:
    """Return [cells] values as [cells, 1, ...], broadcastable to `like`."""
    wide = per_cell[:, *[None] * (like.ndim - 1)]
    return wide if wide.dtype == torch.bool else wide.to(like.dtype)
