"""L-BFGS on many convex functions at once (Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.4)."""

from collections.abc import Callable

import torch
from torch import Tensor

HISTORY_LENGTH = 8  # pairs of steps and gradients that are remembered
MIN_STEP = 1e-4  # step: a line search that gets here has met the precision of float32
LOSS_NOISE_NATS = 1e-6  # nats, of a loss whose terms are float32; of its size, as Hager and Zhang have it


def minimise(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    loss: Tensor,
    gradient: Tensor,
    tolerance: float,
    max_passes: int,
) -> tuple[Tensor, Tensor]:
    """L-BFGS from 0 on many convex functions at once, each with its own line search.

    A cell whose step fails Armijo's test shortens it in the next pass, while the others go on.

    Args:
        evaluate: of functions, int64 on the CPU, ascending, and their parameters: loss, float64, and gradient.
        loss, gradient: at 0, float64[cells] and float[cells, ...].
        tolerance: a cell stops where its next step promises less.
        max_passes: evaluations, the one at 0 included.

    Returns:
        The parameters, and what each cell's next step promised when it stopped, float[cells].
    """
    found, gaps = torch.zeros_like(gradient), gradient.new_full((len(gradient),), torch.inf)
    cells, x = torch.arange(len(gradient)), found
    step, history = torch.ones_like(loss), list[tuple[Tensor, Tensor, Tensor]]()
    for left in range(max_passes - 1, -1, -1):
        direction = _direction(gradient, history)
        slope = _dot(gradient, direction)
        stop = (-slope / 2 <= tolerance) | (step < MIN_STEP) | (left == 0)
        if stop.any():
            where = cells.to(stop.device)
            found[where[stop]], gaps[where[stop]] = x[stop], -slope[stop].float() / 2
            going = ~stop
            cells = cells[going.cpu()]
            if not len(cells):
                break
            x, loss, gradient, direction, slope, step = (
                part[going] for part in (x, loss, gradient, direction, slope, step)
            )
            history = [(s[going], y[going], rho[going]) for s, y, rho in history]
        moved = x + _wide(step, x) * direction
        new_loss, new_gradient = evaluate(cells, moved)
        drop = new_loss - loss
        # Where rounding hides the drop, the slope beyond the step tells (Hager and Zhang 2005, equation 4.1).
        level = (drop <= LOSS_NOISE_NATS) & (_dot(new_gradient, direction) <= -0.8 * slope)
        better = (drop <= 1e-4 * step * slope) | level
        # A refused step is remembered as none: 0, 0 with rho 0 changes nothing.
        s, y = (torch.where(_wide(better, x), new - old, 0.0) for new, old in ((moved, x), (new_gradient, gradient)))
        bend = _dot(s, y)
        rho = torch.where(bend > 1e-7 * (_dot(s, s) * _dot(y, y)).sqrt(), 1 / bend, 0.0)
        history = [*history, (s, y, rho)][-HISTORY_LENGTH:]
        parabola = -slope * step.square() / (2 * (drop - slope * step))
        step = torch.where(better, 1.0, parabola.clamp(0.1 * step, 0.5 * step).nan_to_num(0.1))
        x, gradient = (torch.where(_wide(better, x), new, old) for new, old in ((moved, x), (new_gradient, gradient)))
        loss = torch.where(better, new_loss, loss)
    return found, gaps


def _direction(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Downhill: minus the inverse curvature, as the history knows it, times the gradient."""
    q, shares = gradient, []
    for s, y, rho in reversed(history):
        share = rho * _dot(s, q)
        q = q - _wide(share, q) * y
        shares.append(share)
    size = torch.ones_like(_dot(q, q))
    for _, y, rho in history:  # the newest pair that says anything sets the scale
        size = torch.where(rho > 0, 1 / (rho * _dot(y, y)), size)
    q = _wide(size, q) * q
    for (s, y, rho), share in zip(history, reversed(shares), strict=True):
        q = q + _wide(share - rho * _dot(y, q), q) * s
    return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """float64[cells]"""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()


def _wide(per_cell: Tensor, like: Tensor) -> Tensor:
    """float32 or bool[cells, 1, …], to multiply or choose with."""
    wide = per_cell[:, *[None] * (like.ndim - 1)]
    return wide if wide.dtype == torch.bool else wide.to(like.dtype)
